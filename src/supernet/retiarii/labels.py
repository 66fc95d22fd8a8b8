"""Automatic labels: those of NNI 2.3 to 2.5, and beside each the one that 2.6 to 2.10 gave."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__: list[str] = []

_LATER = re.compile(r"(model|default)(_\d+)+(/|$)")

# Whether choices that are constructed now are known by their later labels.
_later: ContextVar[bool] = ContextVar("supernet_later_labels", default=False)

_numbers = itertools.count(1)
_numbers_outside = itertools.count(1)
_models: list[tuple[str, Iterator[int]]] = []  # those that are under construction, outer before inner


@contextmanager
def one_model() -> Iterator[None]:
    """What the construction of a model stands in: its labels begin anew, those of a model inside another go on."""
    global _numbers
    if not _models:
        _numbers = itertools.count(1)
    _models.append((_next_later() if _models else "model", itertools.count(1)))
    try:
        yield
    finally:
        _models.pop()


@contextmanager
def as_in(labels: Iterable[str]) -> Iterator[None]:
    """Let choices that are constructed inside be known as in an architecture with these labels."""
    labels = list(labels)
    later = any(map(_LATER.match, labels)) and not any(label.startswith("_mutation_") for label in labels)
    token = _later.set(later)
    try:
        yield
    finally:
        _later.reset(token)


def next_labels() -> tuple[str, str]:
    """Return the next automatic label as choices are known by now, and as they were in NNI 2.6 to 2.10.

    These are `_mutation_1`, `_mutation_2`, ... in order of construction, and `model_1`, `model_2`, ..., where a model
    inside another counts as one and numbers its own below: `model_3_1`.
    """
    label, later = f"_mutation_{next(_numbers)}", _next_later()
    return (later if _later.get() else label), later


def _next_later() -> str:
    name, numbers = _models[-1] if _models else ("default", _numbers_outside)
    return f"{name}_{next(numbers)}"
