"""Decorators that recorded a class's arguments for multi-trial search; here classes stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.labels import one_model

__all__ = ["basic_unit", "model_wrapper", "serialize", "serialize_cls"]

T = TypeVar("T")


def serialize(cls: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return `cls(*args, **kwargs)`."""
    return cls(*args, **kwargs)


def serialize_cls(cls: T) -> T:
    """Return the class."""
    return cls


def basic_unit(cls: T, basic_unit_tag: bool = True) -> T:
    """Return the class."""
    return cls


def model_wrapper(cls: type[T]) -> type[T]:
    """Let automatic labels begin with `_mutation_1` each time this class is built, unless it is a part of another."""
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with one_model() if type(self) is cls else nullcontext():
            construct(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


__getattr__ = names_absent_from(__name__, "nni.retiarii.serializer")
