"""What a model is called with for one sample, as costs of what runs take it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from supernet.data.batches import batch_size
from supernet.execution.structure import parts_of, rebuilt
from supernet.training.forward import Forward

__all__: list[str] = []


class _Called(BaseException):
    """Carries what a model would have been called with; no `except Exception` of a user's catches it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args_given, self.kwargs_given = args, kwargs


class _Callee:
    """Stands in a model's place where a batch is given to it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Called(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def called_with_first(forward: Forward, model: nn.Module, X: Any, y: Any) -> Any:
    """Return what a model is called with for the first sample of a batch, as costs take it; None if that is not found.

    Args:
        forward: How batches are given to the model.
        model: The model, which does not run.
        X, y: A batch, as `forward.split` has it.
    """
    first = first_of(X, batch_size(y, X))
    try:
        forward(_Callee(model), first)
    except _Called as called:
        args, kwargs = called.args_given, called.kwargs_given
        if not kwargs:
            return args
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        return dict(bound.arguments) if bound.arguments.keys() >= kwargs.keys() else None
    except Exception:  # of a function of the user's, which does more with the model than to call it
        return None
    return None


def first_of(value: Any, size: int) -> Any:
    """Return the first sample of a batch of so many, as a batch of one."""
    if isinstance(value, Tensor):
        return value[:1] if value.dim() and value.size(0) == size else value
    parts = parts_of(value)
    if parts is None:
        return value
    is_of_samples = isinstance(value, list) and len(value) == size
    if is_of_samples and not all(isinstance(item, Tensor) and item.dim() and item.size(0) == size for item in value):
        return value[:1]
    return rebuilt(value, {key: first_of(part, size) for key, part in parts.items()})
