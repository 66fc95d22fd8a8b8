"""Evaluating architectures in a supernet that was trained in whatever loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.data.loaders import Data, derive_seed, loaders_of_two_parts
from supernet.data.split import DataSplit
from supernet.errors import TrainingError
from supernet.execution.state import Forms
from supernet.execution.supernet import Supernet
from supernet.files.digests import bits
from supernet.processes.fabric import TIMEOUT
from supernet.processes.messages import Place, Processes
from supernet.search.evaluator import Evaluator
from supernet.space import Architecture
from supernet.training.description import as_json
from supernet.training.forward import Forward, ForwardFn, LossFn, checked_loss
from supernet.training.metrics import Meter, Metrics

__all__ = ["SupernetEvaluator"]


class SupernetEvaluator(Evaluator):
    """Says how good architectures are with a supernet's weights, and with BatchNorm's statistics of their own.

    `evaluator(architecture)` returns loss and metrics of one, `evaluator.evaluate_many(architectures)` those of each,
    which it remembers until the weights move. Before an architecture is measured, BatchNorm's running statistics are
    computed from scratch on training samples, as the plain average over batches. They, the weights, the form of each
    module and the random numbers are after it as they were.

    What it runs under, such as `torch.autocast`, holds for what is measured too.

    Args:
        supernet: A supernet, on the device on which it is to run.
        data: Two torch Datasets or DataLoaders: the training data, and the data that architectures are measured on.
        recalibration_samples: Number of training samples that statistics are computed on. Default: 20,000 (arXiv
            1904.00420), or as many as there are.
        loss: A function `(output, target) -> tensor`, one number: a mean over the samples. Default: none is measured.
        metrics: A function `(output, target) -> number or dict of numbers`, or a torchmetrics `Metric` or
            `MetricCollection`. Default: none.
        forward_fn: A function `(model, X) -> output`, for what X is not the one argument of the model. Default: the
            model is called with X, or with its parts where these and not X alone fit the arguments of its `forward`.
        loss_fn: A function `(model, batch) -> loss`, or `-> (loss, output, target)` where there are metrics, that does
            all with a batch. Default: `loss` of the model's output.
        batch_size: Number of samples in a batch, of a Dataset. Default: 64.
        workers: Number of processes that load a Dataset. Default: 0.
        seed: Seed of the order of the training samples, and of what samples and batches draw. Default: 0.
        shared: Whether the processes of `torch.distributed` share the evaluations of many. Then all must make the
            evaluator, and call `evaluate_many` for the same architectures, together. Default: each evaluates all.

    Raises:
        TrainingError: An argument cannot be, or there is nothing to measure.
        DataError: The data are none that can be read.

    >>> supernet = Supernet(nn.Sequential(LayerChoice({"tanh": nn.Tanh(), "none": nn.Identity()}, label="op")))
    >>> data = TensorDataset(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    >>> SupernetEvaluator(supernet, (data, data), metrics=accuracy)({"op": "none"})
    {'accuracy': 0.5}
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Sequence[Data],
        recalibration_samples: int = 20_000,
        *,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        metrics: Metrics | None = None,
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
        shared: bool = False,
    ) -> None:
        from lightning_fabric.utilities import move_data_to_device  # here, for its import takes as long as torch's

        if not isinstance(supernet, Supernet):
            raise TrainingError(f"supernet is a Supernet, not a {type(supernet).__name__}; give Supernet(model)")
        if not isinstance(data, tuple | list) or len(data) != 2 or any(part is None for part in data):
            raise TrainingError(f"data is (training data, validation data), not {data!r:.80}")
        check_counts(recalibration_samples=recalibration_samples, batch_size=batch_size)
        check_counts(0, workers=workers)
        self._loss, self._metrics = checked_loss(loss, loss_fn, may_lack=True), metrics
        if self._loss is None and metrics is None:
            raise TrainingError("there is nothing to measure; give loss, metrics or loss_fn")
        self.forward = Forward(supernet.model, forward_fn, loss_fn)
        self.recalibration_samples, self.seed = recalibration_samples, seed
        self.forms = Forms(supernet.model)
        place = Place.in_torch()
        among: dict[str, Any] = {"rank": place.global_rank, "world_size": place.world_size}
        loaders = loaders_of_two_parts(*data, batch_size=batch_size, workers=workers, seed=seed, **among)

        def to_device(batch: Any) -> Any:
            return move_data_to_device(batch, self.device)

        train, valid = (
            DataSplit(
                loader, lambda batch: move_data_to_device(batch, self.device), of_split, self.forward.split, **among
            )
            for loader, of_split in zip(loaders, (seed, derive_seed(seed, 1)), strict=True)
        )
        self._train, self._valid = train.unsharded(shuffle=True), valid.unsharded(shuffle=False)
        self._weights = ""  # a digest of those that the evaluations are of
        super().__init__(supernet, Processes(place if shared else Place(), TIMEOUT))
        self.meters()  # which looks whether they can be

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the model is now."""
        tensor = next(chain(self.supernet.model.parameters(), self.supernet.model.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def evaluate_many(
        self,
        architectures: Sequence[Mapping[str, Any]],
        *,
        num_batches: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Return loss and metrics of each architecture; what is known of the weights as they are is not measured again.

        Args:
            architectures: Dicts label -> decision.
            num_batches: Number of batches of the validation data that each is measured on. Default: all.
            progress: Is called now and then, with how many have been evaluated since.

        Raises:
            ArchitectureError: One is not an architecture of the space.
            TrainingError: Processes that share the work have different weights, or ask for different architectures.
            DataError: The data give no batch.
        """
        digest = hashlib.sha256()
        for parameter in self.supernet.model.parameters():
            digest.update(bits(parameter).data)
        self.processes.compare_digests(
            {"weights": digest.hexdigest()},
            "the processes that share evaluations have different weights",
            "a comparison of the weights that are evaluated",
        )
        of_loss = self._loss.state_dict().values() if isinstance(self._loss, nn.Module) else ()
        for tensor in (*self.supernet.model.buffers(), *of_loss):  # running statistics may differ among processes
            digest.update(bits(tensor).data)
        if digest.hexdigest() != self._weights:
            self.forget()
            self._weights = digest.hexdigest()
        return super().evaluate_many(architectures, num_batches=num_batches, progress=progress)

    def run(self, X: Any, path: Architecture) -> Any:
        """Run an architecture on a batch."""
        with torch.no_grad():
            return self.forward(_Path(self.supernet, path), X)

    def train_batches(self) -> Iterator[tuple[Any, Any]]:
        """Return the batches of the training data."""
        return self._train.batches(0)

    def valid_batches(self) -> Iterator[tuple[Any, Any]]:
        """Return the batches of the validation data."""
        return self._valid.batches(0)

    def loss_of(self, output: Any, target: Any) -> torch.Tensor | None:
        """Return the loss, if there is one."""
        return None if self._loss is None else self._loss(output, target)

    def meters(self) -> list[Meter]:
        """Return what measures loss and metrics."""
        return [Meter(self._metrics, self.device)]

    def tensors(self) -> list[torch.Tensor]:
        """Return the model's parameters and buffers, and those of a loss that is a module."""
        of_loss = self._loss.state_dict().values() if isinstance(self._loss, nn.Module) else ()
        return [*super().tensors(), *of_loss]

    def about(self) -> dict[str, Any]:
        """Return what measures, and which samples."""
        data = [part.digest() for part in (self._train, self._valid)]
        return {"loss": as_json(self._loss), "metrics": as_json(self._metrics), "data": data}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the model, and a loss that is a module, be in eval form."""
        self.forms.note()
        with self.forms.evaluating(self._loss):
            yield


class _Path:
    """A supernet that is called as its model is, and runs one architecture."""

    def __init__(self, supernet: Supernet, path: Architecture) -> None:
        self._supernet, self._path = supernet, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._supernet(*args, self._path, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supernet.model, name)
