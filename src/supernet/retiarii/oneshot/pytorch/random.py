"""`nni.retiarii.oneshot.pytorch.random`: single path one-shot, which Retiarii called random too."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution import InputSlot, LayerSlot, Plan, replace_input_choice, replace_layer_choice
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import Buffers
from supernet.nn import InputChoice, LayerChoice
from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.choices import as_list
from supernet.retiarii.oneshot.pytorch.subclassing import Assignable, RetiariiTrainer
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup
from supernet.space import SearchSpace
from supernet.trainers import RandomTrainer as OurRandomTrainer
from supernet.trainers import SinglePathTrainer as OurSinglePathTrainer

__all__ = ["PathSamplingInputChoice", "PathSamplingLayerChoice", "RandomTrainer", "SinglePathTrainer"]

logger = logging.getLogger("supernet")


class PathSamplingLayerChoice(LayerSlot):
    """Runs the candidate at `sampled`, which a trainer's plan says, or a trainer of one's own sets."""

    def __init__(self, layer_choice: LayerChoice, plan: Plan | None = None) -> None:
        super().__init__(layer_choice, Plan() if plan is None else plan)
        self.name = self.label

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def op_names(self) -> list[str]:
        """The candidates' names."""
        return list(self.candidates)

    @property
    def sampled(self) -> int | None:
        """The position of the candidate that runs; None before one is drawn."""
        return list(self.candidates).index(self.plan[self.label]) if self.label in self.plan else None

    @sampled.setter
    def sampled(self, sampled: int | str | list[int]) -> None:
        if isinstance(sampled, list):
            if len(sampled) != 1:
                raise ChoiceError(f"one candidate of choice {self.label!r} runs at a time, not those at {sampled}")
            sampled = sampled[0]
        self.plan[self.label] = sampled if isinstance(sampled, str) else list(self.candidates)[sampled]

    @property
    def mask(self) -> torch.Tensor:
        """Which candidate runs, (K,) of booleans."""
        return torch.tensor([position == self.sampled for position in range(len(self))])

    def export(self) -> str:
        """Return the name of the candidate that runs."""
        return self.plan[self.label]


class PathSamplingInputChoice(InputSlot):
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
    def sampled(self) -> list[int] | None:
        """The positions of the inputs that are taken; None before some are drawn."""
        return list(self.plan[self.label]) if self.label in self.plan else None

    @sampled.setter
    def sampled(self, sampled: int | list[int]) -> None:
        self.plan[self.label] = [sampled] if isinstance(sampled, int) else sorted(sampled)

    @property
    def mask(self) -> torch.Tensor:
        """Which inputs are taken, (n_candidates,) of booleans."""
        return torch.tensor([position in (self.sampled or []) for position in range(len(self))])

    def export(self) -> list[int]:
        """Return the positions of the inputs that are taken."""
        return list(self.plan[self.label])


class RetiariiPaths(RetiariiTrainer):
    """What subclasses of the trainers that draw one path may override: the parts of Retiarii's loop for all of them."""

    hooks: ClassVar[tuple[str, ...]] = (*RetiariiTrainer.hooks, "_resample")
    own_options: ClassVar[tuple[str, ...]] = (*RetiariiTrainer.own_options, "num_samples")
    epochs: ClassVar[tuple[str, ...]]  # the hooks that read the data
    num_samples = 10
    optimizer = Assignable("optimizer", "_use_optimizer")

    def build_supernet(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in."""
        super().build_supernet(PathSamplingLayerChoice, PathSamplingInputChoice, plan)  # type: ignore[misc]

    def _put_modules_in(self) -> None:
        self.space = SearchSpace(self.model)
        replace_layer_choice(self.model, PathSamplingLayerChoice, self.nas_modules)
        replace_input_choice(self.model, PathSamplingInputChoice, self.nas_modules)

    def _resample(self) -> dict[str, Any]:
        """Draw a path, let the modules in the choices' places follow it, and return it; a hook."""
        return self._followed(SearchSpace(self.model).sample(torch.default_generator))

    def _followed(self, architecture: dict[str, Any]) -> dict[str, Any]:
        for label, module in self.nas_modules:
            if label in architecture:
                module.sampled = architecture[label]
        return architecture

    def _train_on(self, loader: Any, epoch: int, what: str = "Epoch") -> None:
        """Take a step of the weights of a path of its own with each batch."""
        self._to_training_form()
        meters, optimizer, loss_fn = AverageMeterGroup(), self._given("optimizer"), self._given("loss")
        grad_clip = getattr(self, "grad_clip", None)
        for step, (X, y) in enumerate(self._on_device(loader)):
            optimizer.zero_grad()
            self._resample()
            logits = self.model(X)
            loss = loss_fn(logits, y)
            if loss.requires_grad:  # a path may have no parameters
                loss.backward()
            if grad_clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), grad_clip)
            optimizer.step()
            self._note(meters, logits, y, loss, (what, epoch, step, loader))

    def _score(self, logits: Any, y: Any) -> Any:
        return -self._given("loss")(logits, y)

    def export(self) -> Any:
        """Return the best of `num_samples` paths on the validation data.

        In a subclass that reads the data in a way of its own, for which no such evaluation is known, one path.
        """
        if self.is_ours:
            return super().export()
        if set(self.overridden) & set(self.epochs):
            logger.warning(
                "%s.export() draws one path and evaluates none, as in Retiarii, for %s; override export to choose",
                *(type(self).__name__, self.why_own_loop),
            )
            self._resample()
            return super().export()
        scored: list[tuple[float, dict[str, Any]]] = []
        self._to_training_form()
        with self._forms.preserve(), Buffers(self.model).preserve(), torch.no_grad():
            for _ in range(self.num_samples):
                self._resample()
                with statistics_anew(self.model, self._forms) as norms:
                    for X, _ in self._on_device(self.train_loader) if norms else ():
                        self.model(X)
                scores = [float(self._score(self.model(X), y)) for X, y in self._on_device(self.valid_loader)]
                scored.append((sum(scores) / len(scores), super().export()))
        return max(scored, key=lambda pair: pair[0])[1]


class _RetiariiSinglePath(RetiariiPaths):
    """What is the same for both trainers of `dataset_train` and `dataset_valid`: see there."""

    epochs: ClassVar[tuple[str, ...]] = ("_train_one_epoch", "_validate_one_epoch", "fit")
    hooks: ClassVar[tuple[str, ...]] = (*RetiariiPaths.hooks, "_train_one_epoch", "_validate_one_epoch")

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
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
        if isinstance(mutator, int):  # positions as in the versions without a mutator
            mutator, batch_size, workers, device, log_frequency = None, mutator, batch_size, workers, device
        if mutator is not None:
            warnings.warn("mutator is ignored, as it was in Retiarii", DeprecationWarning, stacklevel=2)
        data = {"dataset_train": dataset_train, "dataset_valid": dataset_valid}
        why = self._why_own_loop(loss=loss or options.get("loss_fn"), optimizer=optimizer, **data)
        if why is not None:
            self._take_arguments(
                why, options, device=device, model=model, loss=loss, metrics=metrics, optimizer=optimizer,
                num_epochs=num_epochs, batch_size=batch_size, workers=workers, log_frequency=log_frequency, **data,
            )  # fmt: skip
            self._put_modules_in()
            self.init_dataloader()
            return
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

    def _init_dataloader(self) -> None:
        """Make `train_loader` and `valid_loader` of the datasets that there are; a hook."""
        if self.dataset_train is not None:
            self.train_loader = self._loader(self.dataset_train)
        if self.dataset_valid is not None:
            self.valid_loader = self._loader(self.dataset_valid, shuffle=False)

    def _fit_one_epoch(self, epoch: int) -> None:
        self._train_one_epoch(epoch)
        self._validate_one_epoch(epoch)

    def _train_one_epoch(self, epoch: int) -> None:
        """Take a step of the weights of a drawn path with each batch; a hook."""
        self._train_on(self.train_loader, epoch)

    def _validate_one_epoch(self, epoch: int) -> None:
        """Measure a drawn path on each batch of the validation data; a hook."""
        self.model.eval()
        meters, loss_fn = AverageMeterGroup(), self._given("loss")
        with torch.no_grad():
            for step, (X, y) in enumerate(self._on_device(self.valid_loader)):
                self._resample()
                logits = self.model(X)
                self._note(meters, logits, y, loss_fn(logits, y), ("Validation Epoch", epoch, step, self.valid_loader))


class SinglePathTrainer(_RetiariiSinglePath, OurSinglePathTrainer):
    """`supernet.SinglePathTrainer` with Retiarii's signature; more by keyword."""


class RandomTrainer(_RetiariiSinglePath, OurRandomTrainer):
    """`supernet.RandomTrainer` with Retiarii's signature; more by keyword."""


__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch.random")
