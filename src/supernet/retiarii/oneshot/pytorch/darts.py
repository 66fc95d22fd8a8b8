"""`nni.retiarii.oneshot.pytorch.darts`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from supernet.execution import MixedInput, MixedLayer, Plan
from supernet.nn import InputChoice, LayerChoice
from supernet.retiarii.choices import as_list
from supernet.retiarii.oneshot.pytorch.utils import Split, halves
from supernet.trainers import DartsTrainer as OurDartsTrainer

__all__ = ["DartsInputChoice", "DartsLayerChoice", "DartsTrainer"]


class DartsLayerChoice(MixedLayer):
    """Mixes candidates by softmax(alpha). Made without a plan, in a trainer of one's own, alpha is its parameter."""

    def __init__(self, layer_choice: LayerChoice, plan: Plan | None = None) -> None:
        super().__init__(layer_choice, Plan() if plan is None else plan)
        self.name, self._has_own_alpha = self.label, plan is None
        if plan is None:
            self.alpha = nn.Parameter(1e-3 * torch.randn(len(self.candidates)))

    @property
    def op_choices(self) -> nn.ModuleDict:
        """The candidates by name."""
        return self.candidates

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Mix what the candidates return."""
        if self._has_own_alpha:
            self.plan[self.label] = torch.softmax(self.alpha, -1)
        return super().forward(*args, **kwargs)

    def export(self) -> str:
        """Return the name of the candidate of the largest alpha."""
        return list(self.candidates)[int(self.alpha.argmax())]


class DartsInputChoice(MixedInput):
    """The same for the inputs of an InputChoice."""

    def __init__(self, input_choice: InputChoice, plan: Plan | None = None) -> None:
        super().__init__(input_choice, Plan() if plan is None else plan)
        self.name, self.n_chosen, self._has_own_alpha = self.label, input_choice.n_chosen or 1, plan is None
        if plan is None:
            self.alpha = nn.Parameter(1e-3 * torch.randn(input_choice.n_candidates))

    def forward(self, inputs: Any) -> Any:
        """Mix the inputs."""
        if self._has_own_alpha:
            self.plan[self.label] = torch.softmax(self.alpha, -1)
        return super().forward(as_list(inputs))

    def export(self) -> list[int]:
        """Return the positions of the `n_chosen` largest alphas, ascending."""
        return sorted(self.alpha.argsort(descending=True, stable=True)[: self.n_chosen].tolist())


class DartsTrainer(OurDartsTrainer):
    """`supernet.DartsTrainer` with Retiarii's signature.

    Args:
        learning_rate: warned about: the weights' learning rate is the optimizer's.
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        loop: more of what ours takes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Any,
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        grad_clip: float | None = 5.0,
        learning_rate: float = 2.5e-3,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        arc_learning_rate: float = 3e-4,
        unrolled: bool = False,
        *,
        split: Split = "random",
        **loop: Any,
    ) -> None:
        if learning_rate != 2.5e-3:
            warnings.warn("learning_rate is ignored: the optimizer has its own", DeprecationWarning, stacklevel=2)
        super().__init__(
            model,
            loss,
            metrics,
            optimizer,
            num_epochs,
            grad_clip=grad_clip,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            arc_learning_rate=arc_learning_rate,
            unrolled=unrolled,
            **{**halves(dataset, split), **loop},
        )

    def take_over(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in, each of which knows its alpha and holds it outside of the model."""
        super().take_over(DartsLayerChoice, DartsInputChoice, plan)
        for label, module in self.nas_modules:
            module.__dict__["alpha"] = self.alphas[label]
