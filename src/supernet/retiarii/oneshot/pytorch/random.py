"""`nni.retiarii.oneshot.pytorch.random`: single path one-shot, which Retiarii called random too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from supernet.execution import PathInput, PathLayer, Plan
from supernet.nn import InputChoice, LayerChoice
from supernet.retiarii.choices import as_list
from supernet.trainers import RandomTrainer as OurRandomTrainer
from supernet.trainers import SinglePathTrainer as OurSinglePathTrainer

__all__ = ["PathSamplingInputChoice", "PathSamplingLayerChoice", "RandomTrainer", "SinglePathTrainer"]


class PathSamplingLayerChoice(PathLayer):
    """Runs the candidate at `sampled`, which a trainer's plan says, or a trainer of one's own sets."""

    def __init__(self, layer_choice: LayerChoice, plan: Plan | None = None) -> None:
        super().__init__(layer_choice, Plan() if plan is None else plan)
        self.name = self.label

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def sampled(self) -> int:
        """The position of the candidate that runs."""
        return list(self.candidates).index(self.plan[self.label])

    @sampled.setter
    def sampled(self, sampled: int | str) -> None:
        self.plan[self.label] = sampled if isinstance(sampled, str) else list(self.candidates)[sampled]

    @property
    def mask(self) -> torch.Tensor:
        """Which candidate runs, (K,) of booleans."""
        return torch.arange(len(self)) == self.sampled


class PathSamplingInputChoice(PathInput):
    """Reduces the inputs at `sampled`."""

    def __init__(self, input_choice: InputChoice, plan: Plan | None = None) -> None:
        super().__init__(input_choice, Plan() if plan is None else plan)
        self.name, self.n_candidates = self.label, input_choice.n_candidates
        self.n_chosen, self.reduction = input_choice.n_chosen, input_choice.reduction

    def __len__(self) -> int:
        return self.n_candidates

    def forward(self, inputs: Any) -> Any:
        """Pick and reduce."""
        return super().forward(as_list(inputs))

    @property
    def sampled(self) -> list[int]:
        """The positions of the inputs that are taken."""
        return list(self.plan[self.label])

    @sampled.setter
    def sampled(self, sampled: int | list[int]) -> None:
        self.plan[self.label] = [sampled] if isinstance(sampled, int) else sorted(sampled)

    @property
    def mask(self) -> torch.Tensor:
        """Which inputs are taken, (n_candidates,) of booleans."""
        return torch.tensor([position in self.sampled for position in range(len(self))])


class _RetiariiPaths:
    """What is the same for both trainers of `dataset_train` and `dataset_valid`: see there."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Any,
        optimizer: Any,
        num_epochs: int,
        dataset_train: Any,
        dataset_valid: Any,
        mutator: Any = None,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        **options: Any,
    ) -> None:
        if mutator is not None:
            warnings.warn("mutator is ignored, as it was in Retiarii", DeprecationWarning, stacklevel=2)
        super().__init__(
            model,
            loss,
            metrics,
            optimizer,
            num_epochs,
            dataset_train,
            valid_dataset=dataset_valid,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            **options,
        )  # type: ignore[call-arg]

    def take_over(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in."""
        super().take_over(PathSamplingLayerChoice, PathSamplingInputChoice, plan)  # type: ignore[misc]


class SinglePathTrainer(_RetiariiPaths, OurSinglePathTrainer):
    """`supernet.SinglePathTrainer` with Retiarii's signature; more by keyword."""


class RandomTrainer(_RetiariiPaths, OurRandomTrainer):
    """`supernet.RandomTrainer` with Retiarii's signature; more by keyword."""
