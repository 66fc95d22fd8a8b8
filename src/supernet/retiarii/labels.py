"""Automatic labels: those of NNI 2.3 to 2.5, and beside each the one that 2.6 to 2.10 gave."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__: list[str] = []

_LATER = re.compile(r"(model|default)(_\d+)+(/|$)")

# The decisions that constructors follow, and whether choices that are constructed now are known by their later labels.
_followed: ContextVar[tuple[dict[str, Any], bool] | None] = ContextVar("supernet_retiarii_followed", default=None)

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
def as_in(decisions: dict[str, Any]) -> Iterator[None]:
    """Let choices that are constructed inside be known as in an architecture, in which cells put their labels right."""
    later = any(map(_LATER.match, decisions)) and not any(label.startswith("_mutation_") for label in decisions)
    token = _followed.set((decisions, later))
    try:
        yield
    finally:
        _followed.reset(token)


def put_labels_of_cell_right(
    label: str, there: str | None, num_predecessors: int, decisions: dict[str, Any] | None = None
) -> None:
    """Let the decisions of a cell's choices have their labels here, where they have those of NNI 2.6 to 2.10.

    `cell/op_2_0` is `cell__op_0_0` here, for nodes came to be numbered after the cell's inputs; of a `NasBench201Cell`
    `cell/0_1` is `cell__0_1`.

    Args:
        label: Label of the cell.
        there: Label that it had in 2.6 to 2.10, if the label is automatic.
        num_predecessors: Number of its inputs.
        decisions: The architecture. Default: the one that constructors follow, if there is one.
    """
    if decisions is None:
        if (followed := _followed.get()) is None:
            return
        decisions = followed[0]
    for name in {label, there or label}:
        ops = [key for key in decisions if re.fullmatch(re.escape(name) + r"/op_\d+_\d+", key)]
        edges = [key for key in decisions if re.fullmatch(re.escape(name) + r"/\d+_\d+", key)]
        shift = 0 if f"{name}/op_0_0" in ops else num_predecessors
        renamed = {key: f"{label}__{key.rpartition('/')[2]}" for key in edges}
        for key in ops:
            node, k = key.rpartition("/op_")[2].split("_")
            renamed[key] = f"{label}__op_{int(node) - shift}_{k}"
            renamed[f"{name}/input_{node}_{k}"] = f"{label}/input_{int(node) - shift}_{k}"
        moved = {new: decisions.pop(old) for old, new in renamed.items() if old in decisions}
        decisions.update(moved)


def next_labels() -> tuple[str, str]:
    """Return the next automatic label as choices are known by now, and as they were in NNI 2.6 to 2.10.

    These are `_mutation_1`, `_mutation_2`, ... in order of construction, and `model_1`, `model_2`, ..., where a model
    inside another counts as one and numbers its own below: `model_3_1`.
    """
    label, later = f"_mutation_{next(_numbers)}", _next_later()
    followed = _followed.get()
    return (later if followed is not None and followed[1] else label), later


def pass_over_label() -> None:
    """Let a label of NNI 2.3 to 2.5 be that of what had none later."""
    next(_numbers)


def _next_later() -> str:
    name, numbers = _models[-1] if _models else ("default", _numbers_outside)
    return f"{name}_{next(numbers)}"
