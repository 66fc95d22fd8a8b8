"""How a batch goes through a model, to what loss and metrics are computed from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from supernet.data.batches import split_batch
from supernet.errors import DataError, TrainingError

__all__: list[str] = []

ForwardFn = Callable[[Any, Any], Any]  # (model, X) -> output
LossFn = Callable[[Any, Any], Any]  # (model, batch) -> loss, or (loss, output, target)


class Returned(NamedTuple):
    """What a `loss_fn` returned for a batch; without an output where that was the loss alone."""

    loss: torch.Tensor
    output: Any = None
    target: Any = None


class Forward:
    """Runs batches through a model: `loss_fn(model, batch)`, `forward_fn(model, X)`, or the model itself.

    Args:
        model: The model whose `forward` says whether the parts of X are its arguments.
        forward_fn: A function (model, X) -> output. Default: the model is called with X, or with its parts, by name in
            a dict, where only these fit.
        loss_fn: A function (model, batch) -> loss, or (loss, output, target), that takes the whole batch, which is X
            and y then.

    Raises:
        TrainingError: Both are given, or one cannot be called.
    """

    def __init__(self, model: nn.Module, forward_fn: ForwardFn | None, loss_fn: LossFn | None) -> None:
        for name, function in {"forward_fn": forward_fn, "loss_fn": loss_fn}.items():
            if function is not None and not callable(function):
                raise TrainingError(f"{name} is a function or None, not {function!r}")
        if forward_fn is not None and loss_fn is not None:
            raise TrainingError("loss_fn runs the model itself, so it goes without forward_fn; give one of them")
        self._name, self._forward_fn, self._loss_fn = type(model).__name__, forward_fn, loss_fn
        self.takes_whole_batches = loss_fn is not None
        try:
            self._signature: inspect.Signature | None = inspect.signature(model.forward)
        except (TypeError, ValueError):  # such as one that is not written in Python
            self._signature = None
        self._calls: dict[Any, Callable[[Any, Any], Any]] = {}  # form of X -> how the model is called, once it was

    def of(self, model: nn.Module) -> Forward:
        """Return what runs batches in the same way through another model."""
        return Forward(model, self._forward_fn, self._loss_fn)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Return what `__call__` takes, and what loss and metrics take beside the output."""
        return split_batch(batch) if self._loss_fn is None else (batch, batch)

    def __call__(self, model: Any, X: Any) -> Any:
        """Return the output of X, or what `loss_fn` returned for a batch.

        Args:
            model: Something that is called as the model is.
            X: Inputs, as `split` returns them.

        Raises:
            DataError: The model's `forward` takes neither X nor its parts, or may take both and fails with X.
            TrainingError: `loss_fn` returned something else than it may.
        """
        if self._loss_fn is not None:
            return _returned(self._loss_fn(model, X))
        if self._forward_fn is not None:
            return self._forward_fn(model, X)
        form = _form(X)
        if form in self._calls:
            return self._calls[form](model, X)
        call, other = self._call(X)
        try:
            output = call(model, X)
        except (AttributeError, TypeError) as error:
            if other is None:
                raise
            raise DataError(
                f"{self._name}.forward{self._signature} fails with X, {_described(X)}, as its one argument: "
                f"{type(error).__name__}: {error}; if it takes the parts, give forward_fn=lambda model, X: {other}"
            ) from error
        self._calls[form] = call
        return output

    def gives_x_itself(self, X: Any) -> bool:
        """Say whether such an X is the one argument of the model, so that `model(X)` is all that is to be done."""
        return self._loss_fn is None and self._forward_fn is None and self._calls.get(_form(X)) is _with_one

    def in_eval_form(self, model: nn.Module, X: Any, trained: Any, needed_by: str | None = None) -> Any:
        """Put the model to eval form, and return what `__call__` does then.

        Detection models and the like have losses in training form only. So where a `loss_fn` fails in eval form, the
        other outputs are returned, unless somebody needs these.

        Args:
            model, X: The same as `__call__` takes.
            trained: The outputs in training form.
            needed_by: Name of what needs those in eval form, for the error.

        Raises:
            TrainingError: `loss_fn` fails in it, and somebody needs what it does.
        """
        model.eval()
        try:
            return self(model, X)
        except Exception as error:
            if self._loss_fn is None:
                raise
            if needed_by is not None:
                raise TrainingError(
                    f"loss_fn fails where the model is in eval form, in which {needed_by} measures architectures: "
                    f"{type(error).__name__}: {error}; let it return the loss in both forms"
                ) from error
            return trained

    def _call(self, X: Any) -> tuple[Callable[[Any, Any], Any], str | None]:
        """Return how a model is called with such an X; and how else it may be meant, where that is not certain."""
        parts: tuple[Callable[[Any, Any], Any], str] | None = None
        if isinstance(X, Mapping):
            if all(isinstance(name, str) for name in X) and self._binds((), X):
                parts = _with_keywords, "model(**X)"
        elif isinstance(X, tuple | list) and self._binds(X, {}):
            parts = _with_parts, "model(*X)"
        if self._binds((X,), {}):
            return _with_one, None if parts is None else parts[1]
        if parts is None:
            raise DataError(
                f"{self._name}.forward{self._signature} takes neither X, {_described(X)}, as its one argument nor the "
                "parts of it as several; give forward_fn=lambda model, X: model(...), or loss_fn, which is "
                "given all of a batch, weights of its samples too"
            )
        return parts[0], None

    def _binds(self, arguments: Iterable[Any], keywords: Mapping[str, Any]) -> bool:
        if self._signature is None:
            return not keywords and len(tuple(arguments)) == 1
        try:
            self._signature.bind(*arguments, **keywords)
        except TypeError:
            return False
        return True


def _form(X: Any) -> Any:
    """Return what of X decides how a model is called with it."""
    if isinstance(X, Mapping):
        return tuple(X)
    return len(X) if isinstance(X, tuple | list) else None


def _with_one(model: Any, X: Any) -> Any:
    return model(X)


def _with_parts(model: Any, X: Any) -> Any:
    return model(*X)


def _with_keywords(model: Any, X: Any) -> Any:
    return model(**X)


def checked_loss(loss: Any, loss_fn: LossFn | None, *, may_lack: bool = False) -> Any:
    """Return the function `(output, target) -> loss` of the two.

    Raises:
        TrainingError: There are both, or neither where it may not lack.
    """
    if loss_fn is not None:
        if loss is not None:
            raise TrainingError("loss_fn computes the loss itself, so it goes with loss=None; give one of them")
        return _LossReturned(loss_fn)
    if loss is None and not may_lack:
        raise TrainingError("loss is a function (output, target) -> tensor, not None; or give loss_fn")
    return loss


def check_judged(output: Any, **functions: Any) -> None:
    """Raise `TrainingError` if a function, named here, takes an output and a target, but `loss_fn` returned none."""
    for name, function in functions.items():
        if function is not None and isinstance(output, Returned) and output.output is None:
            raise TrainingError(
                f"{name} takes an output and a target, but loss_fn returns the loss alone; let it return "
                "(loss, output, target)"
            )


def judged(output: Any, target: Any) -> tuple[Any, Any]:
    """Return output and target as metrics and rewards take them: those that `loss_fn` returned, where there is one."""
    return (output.output, output.target) if isinstance(output, Returned) else (output, target)


class _LossReturned(nn.Module):
    """Reads the loss off what `loss_fn` returned, whose parameters, if it is a module, count as those of the loss."""

    def __init__(self, loss_fn: LossFn) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, returned: Returned, batch: Any) -> torch.Tensor:
        return returned.loss


def _returned(value: Any) -> Returned:
    if isinstance(value, torch.Tensor):
        return Returned(value)
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], torch.Tensor):
        return Returned(*value)
    raise TrainingError(
        f"loss_fn returns the loss, a tensor of one number, or (loss, output, target), not {_described(value)}"
    )


def _described(value: Any) -> str:
    if isinstance(value, tuple | list | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
