"""Arithmetic of labels: of which channel, or of which element that is given, each element of a tensor is.

Above 0 they are atoms, channels of layers; below 0 elements of parameters, buffers and inputs; 0 is of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__: list[str] = []


def pairs_of(one: Tensor, other: Tensor) -> Tensor:
    """Return the pairs (n, 2) of two sequences of numbers above 0, each pair once."""
    base = int(other.max()) + 1
    keys = (one * base + other).unique()
    return torch.stack([keys // base, keys % base], 1)


def compressed(labels: Tensor) -> Tensor:
    """Return labels with each dimension along which they are the same as one of size 1."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    for dim, size in enumerate(labels.shape):
        if size > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels


def combined(one: Tensor, other: Tensor) -> Tensor:
    """Return the labels of what is of two: of an atom where it is of any."""
    one, other = torch.broadcast_tensors(one, other)
    return torch.where((one > 0) | (other > 0), torch.maximum(one, other), torch.minimum(one, other))


def is_broadcast(labels: Tensor, shape: Sequence[int]) -> bool:
    """Say whether labels may stand for a tensor of a shape, be it broadcast."""
    return labels.dim() <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(labels.shape), reversed(shape), strict=False)
    )


def along_dim(labels: Tensor, dim: int) -> Tensor:
    """Return the labels along a dimension, at the first place of all others."""
    dim %= labels.dim()
    return labels[tuple(slice(None) if d == dim else 0 for d in range(labels.dim()))]


def varying(labels: Tensor) -> Iterable[Tensor]:
    """Yield the labels along each dimension along which they differ."""
    small = compressed(labels)
    for dim in range(small.dim()):
        if small.shape[dim] > 1:
            along = along_dim(small, dim)
            if bool((along > 0).any()) and len(along.unique()) > 1:
                yield along
