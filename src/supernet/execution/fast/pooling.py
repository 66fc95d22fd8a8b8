"""Pools that hold less than torch's own for the backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from supernet.execution.fast.convolution import layout_of

__all__: list[str] = []


class MaxPool(NamedTuple):
    """A 2-D max-pool, (rows, columns) of each; called with an image (N, C, H, W).

    Holds the positions of the maxima in two bytes each (four in images of more than 32,768 positions), not eight,
    and not the input.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maxima."""
        return _MaxPool.apply(x, self)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pool: MaxPool) -> torch.Tensor:
        result, positions = torch.ops.aten.max_pool2d_with_indices(x, *pool)
        if ctx.needs_input_grad[0]:
            size = x.shape[2] * x.shape[3]
            ctx.save_for_backward(positions.to(torch.int16 if size <= 2**15 else torch.int32))
            ctx.pool, ctx.shape = pool, x.shape
            ctx.layout = layout_of(x)
        return result

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        positions = ctx.saved_tensors[0].long()
        if torch.is_grad_enabled():  # a second backward: by an operation that has one
            flat = g.new_zeros((*ctx.shape[:2], ctx.shape[2] * ctx.shape[3]))
            return flat.scatter_add(2, positions.flatten(2), g.flatten(2)).view(ctx.shape), None
        x = torch.empty(ctx.shape, dtype=g.dtype, device=g.device, memory_format=ctx.layout)  # only its shape is read
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *ctx.pool, positions), None
