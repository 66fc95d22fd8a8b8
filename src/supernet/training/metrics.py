"""Means over the batches of an epoch, kept on the device until they are read."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from supernet.data.batches import batch_size
from supernet.errors import TrainingError
from supernet.training.forward import Returned, check_judged, judged

__all__ = ["Metrics", "accuracy"]

Metrics = Callable[[Any, Any], Any]
Summed = Callable[[Sequence[str], torch.Tensor], torch.Tensor]  # numbers of these names, over all processes


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the share of positions whose largest logit is the target class.

    Args:
        output: Logits (N, classes, ...).
        target: Classes (N, ...), as whole numbers.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor(0.5000)
    """
    return (output.argmax(1) == target).float().mean()


class Means:
    """Weighted means of named numbers. Taking one in does not wait for the device; reading does.

    A user's torchmetrics are taken as they are, but these means are not theirs: `MeanMetric.update` of torchmetrics 1.9
    asks whether there is a NaN, which waits for the device in each step, and where it is told not to ask it ignores the
    weights; it takes 19 times as long (378 to 20 microseconds on a CPU), and importing it a second.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, int] = {}
        self._last: dict[str, Any] = {}

    def update(self, name: str, value: Any, weight: int = 1) -> None:
        """Take in one number, or a tensor of one."""
        self._sums[name] = self._sums.get(name, 0.0) + value * weight
        self._weights[name] = self._weights.get(name, 0) + weight
        self._last[name] = value

    def read(self, summed: Summed | None = None) -> dict[str, float]:
        """Return name -> mean so far, over all processes where `summed` is given."""
        if summed is None:
            return {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        names = sorted(self._sums)
        pairs = [[float(self._sums[name]), float(self._weights[name])] for name in names]
        totals = dict(zip(names, summed(names, torch.tensor(pairs, dtype=torch.float64)).tolist(), strict=True))
        return {name: totals[name][0] / totals[name][1] for name in self._sums}

    def last(self) -> dict[str, float]:
        """Return name -> the number taken in last, in this process."""
        return {name: float(value) for name, value in self._last.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what has been taken in."""
        return {"sums": dict(self._sums), "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there."""
        self._sums = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in state["sums"].items()}
        self._weights = dict(state["weights"])


class Meter:
    """Means of the loss and the metrics over batches, weighted by their sizes.

    Args:
        metrics: A function `(output, target) -> number or dict of numbers`, a torchmetrics `Metric` or
            `MetricCollection` (of which a copy is used), or None.
        device: Device on which torchmetrics keep their state.
    """

    def __init__(self, metrics: Metrics | None, device: torch.device) -> None:
        self._stateful: Any = None
        self._function = metrics
        self._device = device
        if isinstance(metrics, nn.Module) and all(hasattr(metrics, name) for name in ("update", "compute", "reset")):
            self._stateful, self._function = copy.deepcopy(metrics).to(device), None
            self._stateful.persistent(True)  # its state goes into checkpoints
        elif metrics is not None and not callable(metrics):
            raise TrainingError(
                f"metrics is a function (output, target) -> number or dict, or a torchmetrics Metric, not {metrics!r}"
            )
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._means = Means()
        self._has_batches = False
        if self._stateful is not None:
            self._stateful.reset()

    def update(self, loss: Any, output: Any, target: Any, X: Any = None, *, counts: bool = True) -> None:
        """Take in one batch; its inputs help to know how many samples it has.

        Args:
            loss, output, target, X: Loss, output, targets and inputs of the batch.
            counts: Whether its samples are counted; those that stand in for a process without any are another's.
        """
        if isinstance(output, Returned):
            output, target = self._judged(output)
        rows = len(target) if isinstance(target, torch.Tensor) and target.dim() else 0  # the most frequent
        size = (rows or batch_size(target, X)) if counts else 0
        if loss is not None:
            self._means.update("loss", loss.detach(), size)
        if self._stateful is not None or self._function is not None:
            self._update_metrics(output, target, size, counts)

    def _judged(self, output: Returned) -> tuple[Any, Any]:
        check_judged(output, metrics=self._function if self._stateful is None else self._stateful)
        return judged(output, None)

    @torch.no_grad()
    def _update_metrics(self, output: Any, target: Any, size: int, counts: bool) -> None:
        if self._stateful is not None:
            self._has_batches = True
            if counts:
                self._stateful.update(output, target)
        elif self._function is not None:
            for name, value in self._named(self._function(output, target)).items():
                self._means.update(name, _checked_number(name, value), size)

    def read(self, summed: Summed | None = None) -> dict[str, float]:
        """Return name -> mean so far, over all processes where `summed` is given. This waits for the device."""
        values = self._means.read(summed)
        if self._stateful is not None and self._has_batches:  # torchmetrics reduce over processes themselves
            with self._apart() if summed is None else nullcontext():
                computed = self._stateful.compute()
            for name, value in self._named(computed).items():
                values[name] = float(_checked_number(name, value))
        return values

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Let torchmetrics read this process's batches alone: the others may measure something else, or nothing."""
        metrics = [(m, m._to_sync) for m in self._stateful.modules() if hasattr(m, "_to_sync")]
        for metric, _ in metrics:
            metric._to_sync = False
        try:
            yield
        finally:
            for metric, to_sync in metrics:
                metric._to_sync = to_sync

    def last(self) -> dict[str, float]:
        """Return name -> value of the last batch, of what is a mean over batches."""
        return self._means.last()

    def state_dict(self) -> dict[str, Any]:
        """Return what has been taken in."""
        stateful = None if self._stateful is None else self._stateful.state_dict()
        return {"means": self._means.state_dict(), "has_batches": self._has_batches, "stateful": stateful}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._means.load_state_dict(state["means"], self._device)
        self._has_batches = state["has_batches"]
        if self._stateful is not None and state["stateful"] is not None:
            self._stateful.load_state_dict(state["stateful"])
            self._stateful.to(self._device)  # torchmetrics take what is read as it is, wherever it was written
            for metric in self._stateful.modules():
                if hasattr(metric, "_update_count"):  # torchmetrics does not save it, and warns where it is 0
                    metric._update_count = int(self._has_batches)

    def _named(self, values: Any) -> dict[str, Any]:
        if isinstance(values, Mapping):
            return dict(values)
        source = self._function if self._stateful is None else type(self._stateful)
        name = getattr(source, "__name__", type(source).__name__)
        return {"metric" if name == "<lambda>" else name: values}


def _checked_number(name: str, value: Any) -> Any:
    if not hasattr(value, "__float__") or math.prod(getattr(value, "shape", ())) != 1:
        what = f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise TrainingError(f"metrics must return a number or a dict of numbers, but {name!r} is {what}")
    return value
