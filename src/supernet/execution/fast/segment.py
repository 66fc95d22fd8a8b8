"""A stretch of a candidate whose intermediate results are cheaper to compute again than to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from supernet.execution.fast.convolution import (
    Shape,
    convolved,
    input_gradient,
    shape_of,
    weight_gradient,
)

__all__ = ["Segment"]

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Segment:
    """BatchNorm, ReLU and convolutions in a row; of these all but the convolutions may lack.

    Holds its input for the backward pass, which computes the rest again: elementwise work, and depthwise convolutions.
    So no convolution but the last should be an expensive one.

    Args:
        norm: a BatchNorm2d with running statistics and a momentum.
        rectified: whether a ReLU stands before the convolutions.
        convs: at least one, whose padding is zeros and given in numbers.
    """

    norm: Norm | None
    rectified: bool
    convs: tuple[nn.Conv2d, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the modules would: (N, C, H, W) to (N, C', H', W')."""
        norm = self.norm
        if x.dim() != 4 or x.numel() == 0 or (norm is not None and x.numel() == x.shape[1]):
            y = x if norm is None else norm(x)  # torch's own errors, and its own way with nothing at all
            y = y.relu() if self.rectified else y
            for conv in self.convs:
                y = conv(y)
            return y
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        of_convs = [tensor for conv in self.convs for tensor in (conv.weight, conv.bias)]
        return _Segment.apply(self, x, *affine, *of_convs)


class _Segment(Function):
    @staticmethod
    def forward(
        ctx: Any,
        segment: Segment,
        x: torch.Tensor,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        *of_convs: torch.Tensor | None,
    ) -> torch.Tensor:
        mean = rstd = None
        y, norm = x, segment.norm
        if norm is not None:
            y, mean, rstd = normalized(norm, x, gamma, beta)
        if segment.rectified:
            y = y.relu() if norm is None else y.relu_()
        ctx.shapes = [shape_of(conv) for conv in segment.convs]
        ctx.segment, ctx.in_training = segment, norm is not None and norm.training
        ctx.save_for_backward(x, mean, rstd, gamma, beta, *of_convs)
        return _through(y, of_convs, ctx.shapes)[-1]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, mean, rstd, gamma, beta, *of_convs = ctx.saved_tensors
        segment, shapes = ctx.segment, ctx.shapes
        wants_x, wants_gamma, wants_beta, *wants_of_convs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a second backward: through operations that have one

            def again(x: Any, gamma: Any, beta: Any, *of_convs: Any) -> torch.Tensor:
                y = plainly_normalized(segment.norm, x, gamma, beta, ctx.in_training, mean, rstd)
                y = y.relu() if segment.rectified else y
                for w, bias, s in zip(of_convs[::2], of_convs[1::2], shapes, strict=True):
                    y = F.conv2d(y, w, bias, s.stride, s.padding, s.dilation, s.groups)
                return y

            return None, *differentiable_gradients(again, g, ctx.needs_input_grad[1:], (x, gamma, beta, *of_convs))
        y = x
        if segment.norm is not None:
            factor = rstd if gamma is None else rstd * gamma
            offset = -mean * factor if beta is None else torch.addcmul(beta, mean, factor, value=-1)
            y = torch.addcmul(offset.view(1, -1, 1, 1), x, factor.view(1, -1, 1, 1))
        if segment.rectified:
            y = y.relu() if segment.norm is None else y.relu_()
        wants_input = wants_x or wants_gamma or wants_beta
        last_weight = max((i for i in range(len(shapes)) if wants_of_convs[2 * i]), default=0)
        inputs = [y, *_through(y, of_convs[: 2 * last_weight], shapes[:last_weight])]
        of_x = of_gamma = of_beta = None
        gradients: list[torch.Tensor | None] = [None] * len(of_convs)
        for i in reversed(range(len(shapes))):
            w = of_convs[2 * i]
            if wants_of_convs[2 * i]:
                gradients[2 * i] = weight_gradient(g, inputs[i], w, shapes[i])
            if wants_of_convs[2 * i + 1]:
                gradients[2 * i + 1] = g.sum((0, 2, 3))
            if not wants_input and not any(wants_of_convs[: 2 * i]):
                break
            into = inputs[i].shape if i < len(inputs) else _shape_after(y, of_convs, shapes[:i])
            g = input_gradient(g, into, w, shapes[i])
        else:
            if segment.rectified:
                g = torch.ops.aten.threshold_backward(g, y, 0)
            of_x = g
            if segment.norm is not None:
                of_x, of_gamma, of_beta = normalized_gradients(g, x, gamma, mean, rstd, segment.norm, ctx.in_training)
        return None, of_x, of_gamma if wants_gamma else None, of_beta if wants_beta else None, *gradients


def _through(y: torch.Tensor, of_convs: Any, shapes: list[Shape]) -> list[torch.Tensor]:
    """Return the result after each convolution."""
    results = []
    for w, bias, shape in zip(of_convs[::2], of_convs[1::2], shapes, strict=True):
        y = convolved(y, w, bias, shape)
        results.append(y)
    return results


def _shape_after(y: torch.Tensor, of_convs: Any, shapes: list[Shape]) -> torch.Size:
    """Return the shape after these convolutions, without running them."""
    n, channels, *sides = y.shape
    for w, s in zip(of_convs[::2], shapes, strict=False):
        channels = w.shape[0]
        sides = [
            (side + 2 * p - d * (k - 1) - 1) // stride + 1
            for side, p, d, k, stride in zip(sides, s.padding, s.dilation, w.shape[2:], s.stride, strict=True)
        ]
    return torch.Size((n, channels, *sides))


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
    if in_training:
        return F.batch_norm(x, None, None, gamma, beta, True, 0.0, norm.eps)
    assert mean is not None and rstd is not None
    column = [-1 if dim == 1 else 1 for dim in range(x.dim())]
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
