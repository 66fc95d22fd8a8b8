"""A stretch of a candidate whose intermediate results are cheaper to compute again than to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from supernet.execution.fast.convolution import (
    Pair,
    Route,
    Shape,
    has_fast_routes,
    layout_of,
    picked,
    route,
    shape_of,
    spread,
)

__all__ = ["Segment"]

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Segment:
    """BatchNorm, ReLU and convolutions in a row; of these all but the convolutions may lack.

    Holds its input for the backward pass, which computes the rest again: elementwise work, and depthwise convolutions.
    So no convolution but the last should be an expensive one. A pointwise convolution with a stride sees some positions
    only: these are picked before.

    Args:
        norm: a BatchNorm2d with running statistics and a momentum.
        rectified: whether a ReLU stands before the convolutions.
        convs: at least one, whose padding is zeros and given in numbers.
        corner: how many rows and columns are cut off at the top and the left, where the first convolution is
            pointwise and there is no norm.
    """

    norm: Norm | None
    rectified: bool
    convs: tuple[nn.Conv2d, ...]
    corner: Pair = (0, 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the modules would: (N, C, H, W) to (N, C', H', W')."""
        norm = self.norm
        if x.dim() != 4 or x.numel() == 0 or (norm is not None and x.numel() == x.shape[1]):
            return self._plain(x)  # torch's own errors, and its own way with nothing at all
        first = shape_of(self.convs[0])
        is_picked = self.corner != (0, 0) or (norm is None and first.stride != (1, 1) and first.is_pointwise())
        if is_picked:
            x = _Picked.apply(x, self.corner, first.stride)
        tensors: list[torch.Tensor | None] = [] if norm is None else [norm.weight, norm.bias]
        for conv in self.convs:
            parameters = conv._parameters
            tensors += parameters["weight"], parameters["bias"]
        return _Segment.apply(self, is_picked, x, *tensors)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        if self.corner != (0, 0):
            x = x[:, :, self.corner[0] :, self.corner[1] :]
        y = x if self.norm is None else self.norm(x)
        y = y.relu() if self.rectified else y
        for conv in self.convs:
            y = conv(y)
        return y

    def shapes(self, is_picked: bool) -> tuple[Shape, ...]:
        """Return the shapes of the convolutions; of a picked input the first one sees all."""
        shapes = tuple(map(shape_of, self.convs))
        return (shapes[0]._replace(stride=(1, 1)), *shapes[1:]) if is_picked else shapes

    def routes(self, is_picked: bool, x: torch.Tensor, is_fast: bool) -> tuple[Route, ...]:
        """Return how the convolutions run."""
        channels = tuple(conv.out_channels for conv in self.convs)
        return _routes(self.shapes(is_picked), channels, tuple(x.shape), is_fast)


@lru_cache(maxsize=4096)
def _routes(shapes: tuple[Shape, ...], channels: tuple[int, ...], x: Any, is_fast: bool) -> tuple[Route, ...]:
    routes = []
    for shape, c in zip(shapes, channels, strict=True):
        routes.append(route(shape, c, x, is_fast))
        x = (x[0], c, *shape.sides_after(x[2:]))
    return tuple(routes)


class _Segment(Function):
    @staticmethod
    def forward(ctx: Any, segment: Segment, is_picked: bool, x: torch.Tensor, *tensors: Any) -> torch.Tensor:
        ctx.is_fast = has_fast_routes(x)
        ctx.segment, ctx.is_picked, ctx.routes = segment, is_picked, segment.routes(is_picked, x, ctx.is_fast)
        y, norm = x, segment.norm
        if norm is None:
            ctx.save_for_backward(x, *tensors)
            of_convs = tensors
            y = y.relu() if segment.rectified else y
        else:
            y, mean, rstd = normalized(norm, x, tensors[0], tensors[1])
            ctx.in_training = norm.training
            ctx.save_for_backward(x, mean, rstd, *tensors)
            of_convs = tensors[2:]
            y = y.relu_() if segment.rectified else y
        for i, step in enumerate(ctx.routes):
            y = step.forward(y, of_convs[2 * i], of_convs[2 * i + 1])
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        segment, routes, norm = ctx.segment, ctx.routes, ctx.segment.norm
        if torch.is_grad_enabled():  # a second backward: through operations that have one
            return None, None, *_twice(ctx, g)
        wants_x, *wants = ctx.needs_input_grad[2:]
        of_affine: list[Any] = []
        wants_input = wants_x
        if norm is None:
            x, *of_convs = ctx.saved_tensors
            y = x.relu() if segment.rectified else x
        else:
            x, mean, rstd, gamma, beta, *of_convs = ctx.saved_tensors
            factor = rstd if gamma is None else rstd * gamma
            offset = -mean * factor if beta is None else torch.addcmul(beta, mean, factor, value=-1)
            y = torch.addcmul(offset.view(1, -1, 1, 1), x, factor.view(1, -1, 1, 1))
            y = y.relu_() if segment.rectified else y
            of_affine, wants_affine, wants = [None, None], wants[:2], wants[2:]
            wants_input |= any(wants_affine)
        if ctx.is_fast:
            g = g.contiguous(memory_format=torch.channels_last)
        inputs = [y]
        for i in range(max((i for i in range(len(routes)) if wants[2 * i]), default=0)):
            inputs.append(routes[i].forward(inputs[i], of_convs[2 * i], of_convs[2 * i + 1]))
        of_x = None
        of_tensors: list[Any] = [None] * len(of_convs)
        for i in reversed(range(len(routes))):
            if wants[2 * i]:
                of_tensors[2 * i] = routes[i].weight_gradient(g, inputs[i], of_convs[2 * i])
            if wants[2 * i + 1]:
                of_tensors[2 * i + 1] = g.sum((0, 2, 3))
            if not wants_input and not any(wants[: 2 * i]):
                break
            g = routes[i].input_gradient(g, of_convs[2 * i])
        else:
            of_x = _threshold_backward(g, y, 0) if segment.rectified else g
            if norm is not None:
                of_x, *of_norm = normalized_gradients(of_x, x, gamma, mean, rstd, norm, ctx.in_training)
                of_affine = [grad if wanted else None for grad, wanted in zip(of_norm, wants_affine, strict=True)]
        return None, None, of_x, *of_affine, *of_tensors


_threshold_backward = torch.ops.aten.threshold_backward.default


def _twice(ctx: Any, g: torch.Tensor) -> list[Any]:
    """Return the gradients of x and the other tensors with a graph of their own."""
    segment, mean, rstd = ctx.segment, None, None
    if segment.norm is None:
        x, *tensors = ctx.saved_tensors
    else:
        x, mean, rstd, *tensors = ctx.saved_tensors

    def again(x: Any, *tensors: Any) -> torch.Tensor:
        y, of_convs = x, tensors
        if segment.norm is not None:
            gamma, beta, *of_convs = tensors  # type: ignore[assignment]
            y = plainly_normalized(segment.norm, x, gamma, beta, ctx.in_training, mean, rstd)
        y = y.relu() if segment.rectified else y
        for i, (_, stride, padding, dilation, groups) in enumerate(segment.shapes(ctx.is_picked)):
            y = torch.conv2d(y, of_convs[2 * i], of_convs[2 * i + 1], stride, padding, dilation, groups)
        return y

    return differentiable_gradients(again, g, ctx.needs_input_grad[2:], (x, *tensors))


class _Picked(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, corner: Pair, stride: Pair) -> torch.Tensor:
        ctx.sides, ctx.corner, ctx.stride = tuple(x.shape), corner, stride
        return picked(x, corner, stride)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return spread(g, ctx.sides, ctx.corner, ctx.stride), None, None
        (rows, columns), (s, t) = ctx.corner, ctx.stride  # a second backward: by operations that have one
        result = g.new_zeros(ctx.sides)
        of_rows = result[:, :, rows::s].slice_scatter(g, 3, columns, None, t)
        return result.slice_scatter(of_rows, 2, rows, None, s), None, None


# --- BatchNorm ---------------------------------------------------------------------------------------------


def count_batch(norm: Norm) -> None:
    """Let a BatchNorm in training count its batch, as its own forward would."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def normalized(
    norm: Norm, x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x normalized by a BatchNorm, with the mean and 1 / deviation (C,) that it took; statistics move."""
    count_batch(norm)
    result, mean, rstd = torch.native_batch_norm(
        x, gamma, beta, norm.running_mean, norm.running_var, norm.training, norm.momentum or 0.0, norm.eps
    )
    if not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, rstd = norm.running_mean.clone(), torch.rsqrt(norm.running_var + norm.eps)
    return result, mean, rstd


def normalized_gradients(
    g: torch.Tensor,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm: Norm,
    in_training: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients (input, weight, bias) of a BatchNorm."""
    if in_training:
        # Of one image it is wrong where one lies in NCHW and the other in channels_last with an odd first stride, which
        # both formats leave open, such as that of image.permute(2, 0, 1).unsqueeze(0).
        g = g.contiguous(memory_format=layout_of(x))
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten.native_batch_norm_backward(
            g, x, gamma, None, None, mean, rstd, True, norm.eps, [True, True, True]
        )
        return result
    others = [dim for dim in range(x.dim()) if dim != 1]
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    of_input = g * (rstd if gamma is None else rstd * gamma).view(column)
    return of_input, ((x - mean.view(column)) * g).sum(others) * rstd, g.sum(others)


def plainly_normalized(
    norm: Norm | None,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    in_training: bool,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
) -> torch.Tensor:
    """Return x normalized by operations that can be differentiated twice; statistics do not move."""
    if norm is None:
        return x
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    if in_training:  # not by F.batch_norm, whose gradient depends on strides: see `normalized_gradients`
        others = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(x, others, correction=0)
        rstd = torch.rsqrt(variance + norm.eps)
    assert mean is not None and rstd is not None
    y = (x - mean.view(column)) * rstd.view(column)
    y = y if gamma is None else y * gamma.view(column)
    return y if beta is None else y + beta.view(column)


def differentiable_gradients(
    function: Callable[..., torch.Tensor], g: torch.Tensor, wanted: Any, inputs: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """Return the gradient of each input that is wanted, None for the others, with a graph of their own."""
    with torch.enable_grad():
        # An input may be made of another one. Seen through aliases, no input lies on the way to another.
        aliases = [None if x is None else x.view_as(x) for x in inputs]
        output = function(*aliases)
    sought = [x for x, wants in zip(aliases, wanted, strict=True) if wants and x is not None]
    found = iter(torch.autograd.grad(output, sought, g, create_graph=True, allow_unused=True))
    return [next(found) if wants and x is not None else None for x, wants in zip(inputs, wanted, strict=True)]
