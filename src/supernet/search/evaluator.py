"""How good architectures are with the weights of a supernet, and BatchNorm's statistics of their own."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any

import torch

from supernet.checks import check_counts
from supernet.data.batches import batch_size
from supernet.errors import DataError, TrainingError
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import Forms, seeded
from supernet.execution.supernet import Supernet
from supernet.files.digests import bits, digest_of
from supernet.processes.messages import Processes
from supernet.space import Architecture
from supernet.training.first_call import called_with_first
from supernet.training.forward import Forward
from supernet.training.metrics import Meter

__all__ = ["Evaluator"]

Batches = Iterable[tuple[Any, Any]]


class Evaluator(ABC):
    """Says how good architectures are with the weights that a supernet has.

    BatchNorm's running statistics are those of the architecture alone: before it is measured, they are computed from
    scratch on training samples, as the plain average over batches. They, the weights, the form of each module and the
    random numbers are after it as they were.

    A subclass says which supernet it is, and on which data, by which loss and metrics it is measured.

    Args:
        supernet: The supernet whose architectures are measured.
        processes: The processes that share the evaluations of many.

    Attributes:
        evaluations: What has been evaluated by `evaluate_many` since the weights last moved.
    """

    def __init__(self, supernet: Supernet, processes: Processes) -> None:
        self.supernet, self.space, self.processes = supernet, supernet.space, processes
        self.evaluations: dict[str, dict[str, float]] = {}

    def __call__(self, architecture: Mapping[str, Any], *, num_batches: int | None = None) -> dict[str, float]:
        """Return loss and metrics of an architecture.

        Args:
            architecture: Label -> decision.
            num_batches: Number of batches of the validation data that it is measured on. Default: all.

        Raises:
            ArchitectureError: It is not an architecture of the space.
            DataError: The data give no batch.
        """
        if num_batches is not None:
            check_counts(num_batches=num_batches)
        path = self.space.canonical(architecture)
        meters, size = self.meters(), 0
        with self.recalibrated(path):
            for X, y in islice(self.valid_batches(), num_batches):
                size += batch_size(y, X)
                output = self.run(X, path)
                for meter in meters:
                    meter.update(self.loss_of(output, y) if meter is meters[0] else None, output, y, X)
        if not size:
            raise _no_batch("validation")
        return {name: value for meter in meters for name, value in meter.read().items()}

    def evaluate_many(
        self,
        architectures: Sequence[Mapping[str, Any]],
        *,
        num_batches: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Return loss and metrics of each architecture, the processes sharing the work: all must ask for the same.

        What has been evaluated since the weights last moved is not evaluated again.

        Args:
            architectures: Dicts label -> decision.
            num_batches: Number of batches of the validation data that each is measured on. Default: all.
            progress: Is called now and then, with how many have been evaluated since.

        Raises:
            ArchitectureError: One is not an architecture of the space.
            TrainingError: The processes ask for different ones.
        """
        paths = [self.space.canonical(architecture) for architecture in architectures]
        names = [json.dumps([num_batches, path]) for path in paths]
        new = [(n, path) for n, path in dict(zip(names, paths, strict=True)).items() if n not in self.evaluations]
        self.processes.compare_digests(
            {"architectures": [name for name, _ in new]},
            "the processes evaluate different architectures, so a constraint or a draw differs",
            "a comparison of the architectures that are evaluated",
        )
        rank, count = self.processes.rank, self.processes.count
        for first in range(0, len(new), count):
            mine = new[first : first + count][rank : rank + 1]
            found = {name: self.measure(path, num_batches) for name, path in mine}
            of_all = self.processes.values("what evaluations have found", found)
            for of_one in of_all:
                self.evaluations |= of_one
            if progress is not None:
                progress(sum(map(len, of_all)))
        return [dict(self.evaluations[name]) for name in names]

    def digest(self) -> str:
        """Return a digest of what evaluations depend on: weights, buffers, a batch of each data, how it is measured."""
        result = hashlib.sha256()
        for tensor in self.tensors():
            result.update(bits(tensor).data)
        with seeded(self.seed, self.device):
            for batches in (self.train_batches(), self.valid_batches()):
                with suppress(TrainingError):  # of a batch that holds what no checkpoint can
                    result.update(digest_of(next(iter(batches), None)).encode())
        about = {"samples": self.recalibration_samples, "seed": self.seed, **self.about()}
        result.update(json.dumps(about, sort_keys=True, default=str).encode())
        return result.hexdigest()

    def example(self) -> Any:
        """Return what the model is called with for the first sample that is measured, as costs take it.

        None where there is no sample, or where it is not found what the model is called with.
        """
        with seeded(self.seed, self.device):
            batch = next(iter(self.valid_batches()), None)
            return None if batch is None else called_with_first(self.forward, self.supernet.model, *batch)

    def forget(self) -> None:
        """Forget what has been evaluated, for the weights move."""
        self.evaluations.clear()

    @contextmanager
    def recalibrated(self, architecture: Mapping[str, Any]) -> Iterator[None]:
        """Let the model be in eval form in this context, BatchNorm's statistics those of an architecture alone.

        So a network that is frozen in it has them.
        """
        path = self.space.canonical(architecture)
        with ExitStack() as stack:
            stack.enter_context(seeded(self.seed, self.device))
            stack.enter_context(self.supernet.preserve_buffers())
            stack.enter_context(self.evaluating())
            with statistics_anew(self.supernet.model, self.forms) as norms:
                seen = 0
                for X, y in self.train_batches() if norms else ():
                    self.run(X, path)
                    seen += batch_size(y, X)
                    if seen >= self.recalibration_samples:
                        break
                if norms and not seen:
                    raise _no_batch("training")
            yield

    # --- what a subclass says --------------------------------------------------------------------------------

    forms: Forms  # of the model's modules
    forward: Forward  # how batches are given to the model
    device: torch.device
    seed: int  # of what the data draw
    recalibration_samples: int

    @abstractmethod
    def run(self, X: Any, path: Architecture) -> Any:
        """Return the output of an architecture for a batch, computed without a gradient."""

    @abstractmethod
    def train_batches(self) -> Batches:
        """Return the batches of which the first are used for statistics."""

    @abstractmethod
    def valid_batches(self) -> Batches:
        """Return the batches that are measured."""

    @abstractmethod
    def loss_of(self, output: Any, target: Any) -> torch.Tensor | None:
        """Return the loss of a batch; None where none is measured."""

    @abstractmethod
    def meters(self) -> list[Meter]:
        """Return what measures the outputs; the first one takes the loss too."""

    @abstractmethod
    def evaluating(self) -> AbstractContextManager[None]:
        """Let all that runs be ready in this context, in eval form, and as it was after it."""

    def tensors(self) -> Iterable[torch.Tensor]:
        """Return what an evaluation computes with: by default the model's parameters and buffers."""
        return [*self.supernet.model.parameters(), *self.supernet.model.buffers()]

    def about(self) -> dict[str, Any]:
        """Return what else an evaluation depends on, as JSON has it, such as the metrics; by default nothing."""
        return {}

    def measure(self, path: Architecture, num_batches: int | None) -> dict[str, float]:
        """Return what `evaluate_many` is to find out about an architecture that is new to it."""
        return self(path, num_batches=num_batches)


def _no_batch(what: str) -> DataError:
    return DataError(f"the {what} data give no batch: they have fewer samples than one batch; lower batch_size")
