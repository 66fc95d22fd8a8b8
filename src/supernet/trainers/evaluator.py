"""A trainer's evaluator: it measures architectures on the data that the trainer has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.data.split import DataSplit
from supernet.execution.structure import are_finite
from supernet.search.evaluator import Evaluator
from supernet.space import Architecture
from supernet.training.description import as_json
from supernet.training.metrics import Meter
from supernet.training.snapshot import digest

if TYPE_CHECKING:
    from supernet.trainers.supernet_trainer import SupernetTrainer

__all__: list[str] = []


class TrainerEvaluator(Evaluator):
    """Evaluates on the data of a trainer, by its loss and metrics, which are asked for each time: they may change.

    Args:
        trainer: A trainer whose supernet is built.
    """

    def __init__(self, trainer: SupernetTrainer) -> None:
        super().__init__(trainer.supernet, trainer.processes)
        self._trainer = trainer
        self.forms, self.device, self.seed = trainer._forms, trainer.device, trainer.seed
        self.forward = trainer._forward
        self._digest: str | None = None  # of the weights that the evaluations are of, where it is known

    @property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """What has been evaluated since the weights last moved."""
        if self._trainer.weights_moved:
            self._trainer.forget_evaluations()
        return self._evaluations

    @evaluations.setter
    def evaluations(self, evaluations: dict[str, dict[str, float]]) -> None:
        self._evaluations = evaluations

    def evaluate_many(
        self,
        architectures: Sequence[Mapping[str, Any]],
        *,
        num_batches: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Return what `Evaluator.evaluate_many` says of the weights as they are, whoever has moved them."""
        self.look_at_weights()
        return super().evaluate_many(architectures, num_batches=num_batches, progress=progress)

    def look_at_weights(self) -> None:
        """Forget what was evaluated if weights or buffers have moved since, outside of steps too: in a user's hands."""
        trainer, now = self._trainer, digest(self.tensors())
        moved = self._digest not in (None, now)  # after a resume it is not known, and evaluations are the checkpoint's
        if any(of_one for (of_one,) in self.processes.exchange("whether weights have moved", int(moved))):
            trainer.forget_evaluations()
        self._digest = now

    def tensors(self) -> list[torch.Tensor]:
        """Return the parameters and buffers of the model and of a loss that is a module, and what else is trained."""
        loss = self._trainer.loss
        modules = [self._trainer.model, *([loss] if isinstance(loss, nn.Module) else [])]
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        return [*tensors, *self._trainer.parameters_outside()]

    def about(self) -> dict[str, Any]:
        """Return what measures, and which samples."""
        trainer = self._trainer
        data = [part.digest() for part in (trainer._recalibration_part, trainer._evaluation_part)]
        return {"loss": as_json(trainer.loss), "metrics": as_json(trainer.metrics), "data": data}

    def forget(self) -> None:
        """Forget what has been evaluated, for the weights move."""
        super().forget()
        self._digest = None

    @property
    def recalibration_samples(self) -> int:  # type: ignore[override]
        """How many samples of the training part the statistics are of."""
        return self._trainer.recalibration_samples

    def run(self, X: Any, path: Architecture) -> Any:
        """Run an architecture apart from the other processes, which may be at another one."""
        return self._trainer.distributed.forward_local(X, path)

    def train_batches(self) -> Iterator[tuple[Any, Any]]:
        """Return the batches of the training part."""
        return self._usable(self._trainer._recalibration_part)

    def valid_batches(self) -> Iterator[tuple[Any, Any]]:
        """Return the batches of the validation part, all processes' of it."""
        return self._usable(self._trainer._evaluation_part)

    def _usable(self, part: DataSplit) -> Iterator[tuple[Any, Any]]:
        """Yield a part's batches; where steps may be skipped, without those that hold what is not finite."""
        for X, y in part.batches(0):
            if self._trainer.on_nonfinite != "skip" or are_finite((X, y)):
                yield X, y

    def loss_of(self, output: Any, target: Any) -> torch.Tensor:
        """Return the trainer's loss."""
        return self._trainer.loss_of(output, target)

    def meters(self) -> list[Meter]:
        """Return the meters that the trainer has for evaluations."""
        return self._trainer.evaluation_meters()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the model, and a loss that is a module, be in eval form, and the weights be laid out as they run."""
        with self._trainer.distributed.laid_out(), self.forms.evaluating(self._trainer.loss):
            yield

    def measure(self, path: Architecture, num_batches: int | None) -> dict[str, float]:
        """Return what the trainer's `evaluate` says, which a subclass may have overridden."""
        return self._trainer.evaluate(path, num_batches=num_batches)
