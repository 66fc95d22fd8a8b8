"""Metrics over the batches of an epoch, kept on the device until they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn

from supernet.errors import TrainingError

__all__ = ["Metrics", "accuracy"]

Metrics = Callable[[Any, Any], Any]


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the share of positions whose largest logit is the target class.

    Args:
        output: logits (N, classes, ...).
        target: classes (N, ...).
    """
    return (output.argmax(1) == target).float().mean()


class Meter:
    """Means of the loss and the metrics over batches, weighted by their sizes.

    Args:
        metrics: a function `(output, target) -> number or dict of numbers`, a torchmetrics `Metric` or
            `MetricCollection` (of which a copy is used), or None.
        device: where torchmetrics keep their state.
    """

    def __init__(self, metrics: Metrics | None, device: torch.device) -> None:
        self._stateful: Any = None
        self._function = metrics
        if isinstance(metrics, nn.Module) and all(hasattr(metrics, name) for name in ("update", "compute", "reset")):
            self._stateful, self._function = copy.deepcopy(metrics).to(device), None
        elif metrics is not None and not callable(metrics):
            raise TrainingError(
                f"metrics is a function (output, target) -> number or dict, or a torchmetrics Metric, not {metrics!r}"
            )
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._sums: dict[str, Any] = {}
        self._count = 0
        if self._stateful is not None:
            self._stateful.reset()

    def update(self, loss: torch.Tensor | None, output: Any, target: Any) -> None:
        """Take in one batch."""
        size = _batch_size(target)
        values: dict[str, Any] = {} if loss is None else {"loss": loss.detach()}
        with torch.no_grad():
            if self._stateful is not None:
                self._stateful.update(output, target)
            elif self._function is not None:
                values |= self._named(self._function(output, target))
        for name, value in values.items():
            if not hasattr(value, "__float__"):
                raise TrainingError(f"metrics must return a number or a dict of numbers, but {name!r} is {value!r}")
            self._sums[name] = self._sums.get(name, 0.0) + value * size
        self._count += size

    def read(self) -> dict[str, float]:
        """Return name -> mean so far. This waits for the device."""
        values = {name: float(total) / self._count for name, total in self._sums.items()}
        if self._stateful is not None and self._count:
            values |= {name: float(value) for name, value in self._named(self._stateful.compute()).items()}
        return values

    def _named(self, values: Any) -> dict[str, Any]:
        if isinstance(values, Mapping):
            return dict(values)
        source = self._function if self._stateful is None else type(self._stateful)
        name = getattr(source, "__name__", type(source).__name__)
        return {"metric" if name == "<lambda>" else name: values}


def _batch_size(target: Any) -> int:
    sizes: list[int] = []
    apply_to_collection(target, torch.Tensor, lambda t: sizes.append(len(t) if t.dim() else 1))
    return sizes[0] if sizes else 1
