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

# N batch, C channels, H rows, W columns of the input x; D, I, J those of a convolution's result. Gradients are called
# grad_ and the name of what they belong to. A name that ends in such letters is a tensor of that shape.

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Segment:
    """BatchNorm, ReLU and convolutions in a row; of these all but the convolutions may lack.

    Holds its input for the backward pass, which computes the rest again: elementwise work, and depthwise convolutions.
    So no convolution but the last should be an expensive one. A pointwise convolution with a stride sees some positions
    only: these are picked before.

    Args:
        norm: A BatchNorm2d with running statistics and a momentum, or None.
        rectified: Whether a ReLU stands before the convolutions.
        convs: At least one convolution, whose padding is zeros and given in numbers.
        corner: Numbers of rows and columns that are cut off at the top and the left, where the first convolution is
            pointwise and there is no norm. Default: none.
    """

    norm: Norm | None
    rectified: bool
    convs: tuple[nn.Conv2d, ...]
    corner: Pair = (0, 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the modules would: (N, C, H, W) to (N, C', H', W')."""
        norm = self.norm
        if x.dim() != 4 or x.numel() == 0 or (norm is not None and x.numel() == x.shape[1]):
            return self._module_by_module(x)  # torch's own errors, and its own way with an empty batch
        if norm is not None and norm.weight is None and norm.bias is not None:  # see `normalized_gradients`
            return self._module_by_module(x)
        first = shape_of(self.convs[0])
        # Of a norm's input all positions count, since they are in its statistics.
        is_picked = self.corner != (0, 0) or (norm is None and first.stride != (1, 1) and first.is_pointwise())
        if is_picked:
            x = _Picked.apply(x, self.corner, first.stride)
        tensors: list[torch.Tensor | None] = [] if norm is None else [norm.weight, norm.bias]
        for conv in self.convs:
            parameters = conv._parameters
            tensors += parameters["weight"], parameters["bias"]
        return _Segment.apply(self, is_picked, x, *tensors)

    def _module_by_module(self, x: torch.Tensor) -> torch.Tensor:
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
    def forward(ctx: Any, segment: Segment, is_picked: bool, x_NCHW: torch.Tensor, *tensors: Any) -> torch.Tensor:
        ctx.is_fast = has_fast_routes(x_NCHW)
        ctx.segment, ctx.is_picked, ctx.routes = segment, is_picked, segment.routes(is_picked, x_NCHW, ctx.is_fast)
        y, norm = x_NCHW, segment.norm
        if norm is None:
            ctx.save_for_backward(x_NCHW, *tensors)
            of_convs = tensors
            y = y.relu() if segment.rectified else y
        else:
            y, mean_C, rstd_C = normalized(norm, x_NCHW, tensors[0], tensors[1])
            ctx.in_training = norm.training
            ctx.save_for_backward(x_NCHW, mean_C, rstd_C, *tensors)
            of_convs = tensors[2:]
            y = y.relu_() if segment.rectified else y
        for i, step in enumerate(ctx.routes):
            y = step.forward(y, of_convs[2 * i], of_convs[2 * i + 1])
        return y

    @staticmethod
    def backward(ctx: Any, grad_y_NDIJ: torch.Tensor) -> Any:
        segment, routes, norm = ctx.segment, ctx.routes, ctx.segment.norm
        if torch.is_grad_enabled():  # a second backward: through operations that have one
            return None, None, *_twice(ctx, grad_y_NDIJ)
        wants_x, *wants = ctx.needs_input_grad[2:]
        grad_affine: list[Any] = []
        wants_input = wants_x
        # What the first convolution was given: by the same operations as in the forward pass where there is no norm;
        # with one by a factor and an offset a channel, one pass over the image.
        if norm is None:
            x_NCHW, *of_convs = ctx.saved_tensors
            y_NCHW = x_NCHW.relu() if segment.rectified else x_NCHW
        else:
            x_NCHW, mean_C, rstd_C, gamma_C, beta_C, *of_convs = ctx.saved_tensors
            factor_C = rstd_C if gamma_C is None else rstd_C * gamma_C
            offset_C = -mean_C * factor_C if beta_C is None else torch.addcmul(beta_C, mean_C, factor_C, value=-1)
            y_NCHW = torch.addcmul(offset_C.view(1, -1, 1, 1), x_NCHW, factor_C.view(1, -1, 1, 1))
            y_NCHW = y_NCHW.relu_() if segment.rectified else y_NCHW
            grad_affine, wants_affine, wants = [None, None], wants[:2], wants[2:]
            wants_input |= any(wants_affine)
        if ctx.is_fast:
            grad_y_NDIJ = grad_y_NDIJ.contiguous(memory_format=torch.channels_last)
        # The inputs of the convolutions, up to the last one whose weight's gradient is wanted.
        inputs = [y_NCHW]
        for i in range(max((i for i in range(len(routes)) if wants[2 * i]), default=0)):
            inputs.append(routes[i].forward(inputs[i], of_convs[2 * i], of_convs[2 * i + 1]))
        grad_x_NCHW = None
        grad_convs: list[Any] = [None] * len(of_convs)  # weight, bias of each
        grad = grad_y_NDIJ  # of the result of the convolution that is looked at
        for i in reversed(range(len(routes))):
            if wants[2 * i]:
                grad_convs[2 * i] = routes[i].grad_weight(grad, inputs[i], of_convs[2 * i])
            if wants[2 * i + 1]:
                grad_convs[2 * i + 1] = grad.sum((0, 2, 3))
            if not wants_input and not any(wants[: 2 * i]):
                break
            grad = routes[i].grad_x(grad, of_convs[2 * i])
        else:
            grad_x_NCHW = _threshold_backward(grad, y_NCHW, 0) if segment.rectified else grad
            if norm is not None:
                grad_x_NCHW, *grads_of_norm = normalized_gradients(
                    grad_x_NCHW, x_NCHW, gamma_C, mean_C, rstd_C, norm, ctx.in_training
                )
                grad_affine = [g if wanted else None for g, wanted in zip(grads_of_norm, wants_affine, strict=True)]
        return None, None, grad_x_NCHW, *grad_affine, *grad_convs


_threshold_backward = torch.ops.aten.threshold_backward.default


def _twice(ctx: Any, grad_y_NDIJ: torch.Tensor) -> list[Any]:
    """Return the gradients of x and the other tensors with a graph of their own."""
    segment, mean_C, rstd_C = ctx.segment, None, None
    if segment.norm is None:
        x_NCHW, *tensors = ctx.saved_tensors
    else:
        x_NCHW, mean_C, rstd_C, *tensors = ctx.saved_tensors

    def again(x_NCHW: Any, *tensors: Any) -> torch.Tensor:
        y, of_convs = x_NCHW, tensors
        if segment.norm is not None:
            gamma_C, beta_C, *of_convs = tensors  # type: ignore[assignment]
            y = differentiable_norm(segment.norm, x_NCHW, gamma_C, beta_C, ctx.in_training, mean_C, rstd_C)
        y = y.relu() if segment.rectified else y
        for i, (_, stride, padding, dilation, groups) in enumerate(segment.shapes(ctx.is_picked)):
            y = torch.conv2d(y, of_convs[2 * i], of_convs[2 * i + 1], stride, padding, dilation, groups)
        return y

    return differentiable_gradients(again, grad_y_NDIJ, ctx.needs_input_grad[2:], (x_NCHW, *tensors))


class _Picked(Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: torch.Tensor, corner: Pair, stride: Pair) -> torch.Tensor:
        ctx.sides, ctx.corner, ctx.stride = tuple(x_NCHW.shape), corner, stride
        return picked(x_NCHW, corner, stride)

    @staticmethod
    def backward(ctx: Any, grad_y_NCIJ: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return spread(grad_y_NCIJ, ctx.sides, ctx.corner, ctx.stride), None, None
        (rows, columns), (s, t) = ctx.corner, ctx.stride  # a second backward: by operations that have one
        zeros_NCHW = grad_y_NCIJ.new_zeros(ctx.sides)
        grad_rows_NCIW = zeros_NCHW[:, :, rows::s].slice_scatter(grad_y_NCIJ, 3, columns, None, t)
        return zeros_NCHW.slice_scatter(grad_rows_NCIW, 2, rows, None, s), None, None


# --- BatchNorm ---------------------------------------------------------------------------------------------


def count_batch(norm: Norm) -> None:
    """Let a BatchNorm in training count its batch, as its own forward would."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def normalized(
    norm: Norm, x: torch.Tensor, gamma_C: torch.Tensor | None, beta_C: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x normalized by a BatchNorm, with the mean and 1 / deviation (C,) that it took; statistics move."""
    count_batch(norm)
    y, mean_C, rstd_C = torch.native_batch_norm(
        x, gamma_C, beta_C, norm.running_mean, norm.running_var, norm.training, norm.momentum or 0.0, norm.eps
    )
    if not norm.training:  # torch's own gives neither then
        assert norm.running_mean is not None and norm.running_var is not None
        # A copy: a pass in training may move the norm's own before the backward pass.
        mean_C, rstd_C = norm.running_mean.clone(), torch.rsqrt(norm.running_var + norm.eps)
    return y, mean_C, rstd_C


def normalized_gradients(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    gamma_C: torch.Tensor | None,
    mean_C: torch.Tensor,
    rstd_C: torch.Tensor,
    norm: Norm,
    in_training: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients (input, weight, bias) of a BatchNorm; the latter two only where it has a weight."""
    if in_training:
        # Of one image it is wrong where one lies in NCHW and the other in channels_last with an odd first stride, which
        # both formats leave open, such as that of image.permute(2, 0, 1).unsqueeze(0).
        grad_y = grad_y.contiguous(memory_format=layout_of(x))
        has_weight = gamma_C is not None  # which CUDA's kernel makes both other gradients like
        wanted = [True, has_weight, has_weight]
        result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
        result = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, gamma_C, None, None, mean_C, rstd_C, True, norm.eps, wanted
        )
        return result
    # Mean and deviation are constants.
    others = [dim for dim in range(x.dim()) if dim != 1]
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    grad_x = grad_y * (rstd_C if gamma_C is None else rstd_C * gamma_C).view(column)
    grad_gamma_C = ((x - mean_C.view(column)) * grad_y).sum(others) * rstd_C
    return grad_x, grad_gamma_C, grad_y.sum(others)


def differentiable_norm(
    norm: Norm,
    x: torch.Tensor,
    gamma_C: torch.Tensor | None,
    beta_C: torch.Tensor | None,
    in_training: bool,
    mean_C: torch.Tensor | None,
    rstd_C: torch.Tensor | None,
) -> torch.Tensor:
    """Return x normalized by operations that can be differentiated twice; statistics do not move."""
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    if in_training:  # not by F.batch_norm, whose gradient depends on strides: see `normalized_gradients`
        others = [dim for dim in range(x.dim()) if dim != 1]
        variance_C, mean_C = torch.var_mean(x, others, correction=0)
        rstd_C = torch.rsqrt(variance_C + norm.eps)
    assert mean_C is not None and rstd_C is not None
    y = (x - mean_C.view(column)) * rstd_C.view(column)
    y = y if gamma_C is None else y * gamma_C.view(column)
    return y if beta_C is None else y + beta_C.view(column)


def differentiable_gradients(
    function: Callable[..., torch.Tensor],
    grad_output: torch.Tensor,
    wanted: Any,
    inputs: tuple[torch.Tensor | None, ...],
) -> list[torch.Tensor | None]:
    """Return the gradient of each input that is wanted, None for the others, with a graph of their own."""
    with torch.enable_grad():
        # An input may be made of another one. Seen through aliases, no input lies on the way to another.
        aliases = [None if x is None else x.view_as(x) for x in inputs]
        output = function(*aliases)
    sought = [x for x, wants in zip(aliases, wanted, strict=True) if wants and x is not None]
    found = iter(torch.autograd.grad(output, sought, grad_output, create_graph=True, allow_unused=True))
    return [next(found) if wants and x is not None else None for x, wants in zip(inputs, wanted, strict=True)]
