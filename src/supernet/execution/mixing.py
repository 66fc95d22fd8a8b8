"""Weighted sums of whatever candidates return, where that is not simply a tensor each."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from supernet.errors import ChoiceError
from supernet.execution.selection import check_weights
from supernet.execution.structure import outline_of, parts_of, rebuilt

__all__: list[str] = []

# K candidates.


def weighted_sum_of_structures(outputs: Mapping[str, Any], weights_K: torch.Tensor, label: str) -> Any:
    """Return `sum_k weights[k] * outputs[k]`, in each tensor of the structure that all outputs have.

    What is no floating point or complex tensor cannot be weighted: positions, lengths, masks, numbers, texts. It is to
    be equal in all outputs, and comes out as it is.

    Args:
        outputs: Name -> tensor, or structure of tensors, of each candidate; all have the same shapes.
        weights_K: Weights (K,), in the order of the outputs.
        label: Label of the choice, for errors.

    Raises:
        ChoiceError: Two outputs differ in shape or structure, or in what cannot be weighted; or there is not a weight
            for each.
    """
    check_weights(weights_K, len(outputs), label)
    (name, first), *others = outputs.items()
    outline = outline_of(first)
    for other, output in others:
        if outline_of(output) != outline:
            raise ChoiceError(
                f"the outputs of choice {label!r} differ in shape, so they cannot be mixed: "
                f"{name!r} gives {outline}, {other!r} gives {outline_of(output)}"
            )
    return _weighted_sum(list(outputs.values()), weights_K, label, list(outputs))


def weighted(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the product in the dtype of x, which may have fewer bits than the weight."""
    # A weight has no dimensions, so torch takes the dtype of x; unless that has none either.
    return weight * x if x.dim() else weight.to(x.dtype) * x


def _weighted_sum(values: Sequence[Any], weights_K: torch.Tensor, label: str, names: Sequence[str]) -> Any:
    first = values[0]
    if all(isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()) for value in values):
        # Added one by one: stacking them would hold every output twice.
        total = weighted(weights_K[0], first)
        for k in range(1, len(values)):
            total = total + weighted(weights_K[k], values[k])
        return total
    if (parts := parts_of(first)) is not None:
        each = [parts_of(value) or {} for value in values]
        return rebuilt(first, {key: _weighted_sum([p[key] for p in each], weights_K, label, names) for key in parts})
    for name, value in zip(names, values, strict=True):
        if not _is_equal(first, value):
            raise ChoiceError(
                f"the outputs of choice {label!r} hold what cannot be mixed, and so is to be equal for all candidates: "
                f"{names[0]!r} gives {_shown(first)}, {name!r} gives {_shown(value)}"
            )
    return first


def _is_equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)  # waits for the device: the price of knowing
    try:
        return bool(a == b or (a != a and b != b))  # NaN too
    except Exception:  # such as arrays, of which no truth is known
        return False


def _shown(value: Any) -> str:
    return f"{value.dtype} {reprlib.repr(value.tolist())}" if isinstance(value, torch.Tensor) else reprlib.repr(value)
