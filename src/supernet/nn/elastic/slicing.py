"""The part of a weight that a size takes, and plain layers that have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from torch import Tensor, nn
from torch.compiler import is_compiling

from supernet.nn.sizes import Sizes

__all__: list[str] = []

Layer = TypeVar("Layer", bound=nn.Module)
OptionalTensor = TypeVar("OptionalTensor", Tensor, None, Tensor | None)


def first(weight: OptionalTensor, *sizes: int) -> OptionalTensor:
    """Return the first of each of a weight's dimensions, as many as the sizes say: a view, or what was given."""
    return weight if weight is None else part(weight, sizes, len(sizes))


def part(weight: Tensor, sizes: Sequence[int], num_first: int) -> Tensor:
    """Return a part of a weight: a view, or the weight itself.

    Args:
        weight: The weight.
        sizes: How many are taken of each of its first dimensions; the others are taken whole.
        num_first: Number of its first dimensions of which the first are taken; of the others it is the middle.
    """
    if is_compiling():  # where to compare a size is to compile for it
        for dim, (length, size) in enumerate(zip(weight.shape, sizes, strict=False)):
            weight = weight.narrow(dim, 0 if dim < num_first else (length - size) // 2, size)
        return weight
    taken, shape, offset = _taken(weight.shape, weight.stride(), tuple(sizes), num_first)
    if not taken:
        return weight
    if shape is None:
        for dim, start, size in taken:
            weight = weight.narrow(dim, start, size)
        return weight
    return weight.as_strided(shape, weight.stride(), weight.storage_offset() + offset)


@lru_cache(maxsize=4096)  # each pass asks the same of each layer: that takes longer than the views do
def _taken(
    lengths: tuple[int, ...], strides: tuple[int, ...], sizes: tuple[int, ...], num_first: int
) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...] | None, int]:
    """Return (dimension, start, size) of what is taken; and, where that is one step, the shape and offset of the view.

    In one step, for of several each would write a gradient as large as what it was given, and copy.
    """
    taken = tuple(
        (dim, 0 if dim < num_first else (lengths[dim] - size) // 2, size)
        for dim, size in enumerate(sizes)
        if size != lengths[dim]
    )
    if len(taken) < 2 or any(size > lengths[dim] for dim, _, size in taken):  # which `narrow` refuses
        return taken, None, 0
    return taken, (*sizes, *lengths[len(sizes) :]), sum(start * strides[dim] for dim, start, _ in taken)


def narrowed(x: Tensor, dim: int, size: int) -> Tensor:
    """Return an input as one of several sizes takes it that are mixed: the first, of a dimension that has more."""
    return x.narrow(dim, 0, size) if x.shape[dim] > size else x


def in_one_pass(run: Callable[[Tensor, bool], Tensor], x: Tensor, sizes: Sizes) -> Tensor:
    """Return a mixture that one pass computes; where some sizes are detached, they have a second one without gradients.

    Args:
        run: A function of the input, and of whether the sizes that are detached are to be mixed, or the others.
        x: The input.
        sizes: The sizes that are mixed.
    """
    output = run(x, False)
    return output + run(x.detach(), True) if sizes.has_detached() else output


def with_weights(layer: Layer, like: nn.Module, **tensors: Tensor | None) -> Layer:
    """Return a plain layer with these tensors as its parameters and buffers, in the form that an elastic one has.

    A parameter takes gradients where that of the same name does. It is a view: `freeze` copies it, and makes those
    that are the same part of one weight one parameter again.

    Args:
        layer: A layer of torch, made on the device "meta".
        like: The elastic layer.
        tensors: Name -> part of the elastic layer's tensor.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if name in layer._parameters:
            requires_grad = getattr(like, name).requires_grad
            layer._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=requires_grad)
        else:
            layer._buffers[name] = tensor.detach()
    layer.training = like.training
    return layer
