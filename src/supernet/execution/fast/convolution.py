"""Convolutions and their gradients on the routes that were measured to be fast, with torch's own beside them.

Measured on 2 CPU cores (AVX-512, oneDNN in torch 2.13) in float32 and `channels_last`, batch 16, milliseconds for 16
channels of 32x32, torch's own route against the one here:

- pointwise: forward 0.070, input gradient 0.075, weight gradient 0.083; as matrix products 0.039, 0.038, 0.064.
- depthwise of stride 1, input gradient: 5x5 0.14, 3x3 of dilation 2 0.44, 5x5 of dilation 2 0.88; as a forward
  convolution with the flipped kernel 0.10, 0.07, 0.10.
- depthwise, weight gradient: oneDNN is fast for kernels up to 3 wide, of any height. 5x5 0.91, in two parts of 3 and 2
  columns 0.39. With dilation 2 the columns of one parity are channels of their own, which is a view: 3x3 0.53 to
  0.13, 5x5 1.00 to 0.48.
- depthwise 5x5 of stride 2 (32 channels): weight gradient 0.59, by the columns' parities 0.16.
- depthwise of stride 2 and dilation 2 (32 channels): it sees the even rows and columns only, so it is a convolution of
  stride 1 on a quarter of the image: input gradient 3x3 3.0 and 5x5 4.9 to 0.1, weight gradient 0.9 and 2.0 to 0.1 and
  0.3.

A call of oneDNN costs 0.03 beside its work, and so does choosing a route: routes are chosen once for each shape.
Elsewhere (other devices, other memory formats, other shapes) torch's own routes are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

__all__: list[str] = []

# N batch, C channels of the input x, D of the result y, G = C / groups; x has H rows and W columns, y has I and J,
# a kernel R and S. A name that ends in such letters is a tensor of that shape.

WIDEST = 3  # kernel width up to which oneDNN's weight gradient of a depthwise convolution is fast

Pair = tuple[int, int]
Run = Callable[..., torch.Tensor]
Sides = tuple[int, int, int, int]  # (N, C, H, W) of an image


class Shape(NamedTuple):
    """What of a convolution is not its weight's values: (rows, columns) of each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def is_pointwise(self) -> bool:
        """Say whether each position is a matrix product of its own."""
        return (self.kernel, self.padding, self.groups) == ((1, 1), (0, 0), 1)

    def sides_after(self, sides: Pair) -> tuple[int, ...]:
        """Return height and width of the result."""
        each = zip(sides, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in each)


def shape_of(conv: nn.Conv2d) -> Shape:
    """Return the shape of a convolution whose padding is given in numbers."""
    assert not isinstance(conv.padding, str)
    return Shape(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]


class Route(NamedTuple):
    """How a convolution of x (N, C, H, W) with a weight (D, C / groups, R, S) to y (N, D, I, J) runs."""

    forward: Run  # of x, weight, bias
    grad_x: Run  # of grad_y, weight
    grad_weight: Run  # of grad_y, x, weight


@lru_cache(maxsize=4096)
def route(shape: Shape, channels: int, sides: Sides, is_fast: bool) -> Route:
    """Return the route of a convolution to `channels` channels.

    Args:
        shape: Shape of the convolution.
        channels: Number of channels of the result.
        sides: Sides (N, C, H, W) of the input.
        is_fast: Whether input and gradients are such that `has_fast_routes` holds.
    """
    forward: Run = partial(_forward, shape)
    grad_x: Run = partial(_grad_x, shape, sides)
    grad_weight: Run = partial(_grad_weight, shape)
    if not is_fast:
        return Route(forward, grad_x, grad_weight)
    if shape.is_pointwise() and shape.stride == (1, 1):
        return Route(*_pointwise(sides, channels))
    if shape.groups == sides[1] == channels > 1:
        grad_x = _depthwise_grad_x(shape, sides) or grad_x
        grad_weight = _depthwise_grad_weight(shape, sides) or grad_weight
    return Route(_in_channels_last(forward), _in_channels_last(grad_x), grad_weight)


def _in_channels_last(run: Run) -> Run:
    """Return what lays the result out in channels_last, where torch has not done so (it has not in float64)."""
    return lambda *tensors: run(*tensors).contiguous(memory_format=torch.channels_last)


# --- torch's own routes ------------------------------------------------------------------------------------


def _forward(
    shape: Shape, x_NCHW: torch.Tensor, weight_DGRS: torch.Tensor, bias_D: torch.Tensor | None
) -> torch.Tensor:
    return torch.conv2d(x_NCHW, weight_DGRS, bias_D, shape.stride, shape.padding, shape.dilation, shape.groups)


def _grad_x(shape: Shape, sides: Sides, grad_y_NDIJ: torch.Tensor, weight_DGRS: torch.Tensor) -> torch.Tensor:
    unread_NCHW = _unwritten(sides, grad_y_NDIJ)  # for its shape only: this gradient does not depend on x
    return _backward(shape, grad_y_NDIJ, unread_NCHW, weight_DGRS, [True, False, False])[0]


def _grad_weight(
    shape: Shape, grad_y_NDIJ: torch.Tensor, x_NCHW: torch.Tensor, weight_DGRS: torch.Tensor
) -> torch.Tensor:
    return _backward(shape, grad_y_NDIJ, x_NCHW, weight_DGRS, [False, True, False])[1]


def _backward(
    shape: Shape, grad_y_NDIJ: torch.Tensor, x_NCHW: torch.Tensor, weight_DGRS: torch.Tensor, wanted: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, stride, padding, dilation, groups = shape
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _convolution_backward(
        grad_y_NDIJ, x_NCHW, weight_DGRS, None, stride, padding, dilation, False, (0, 0), groups, wanted
    )
    return result


_convolution_backward = torch.ops.aten.convolution_backward.default


# --- pointwise: matrix products ----------------------------------------------------------------------------


def _pointwise(sides: Sides, d: int) -> tuple[Run, Run, Run]:
    n, c, h, w = sides
    positions = n * h * w  # P: of all images together
    matrix_x, matrix_y = (positions, c), (positions, d)
    rows_x, rows_y = (c, 1), (d, 1)
    image_x, strides_x = (n, c, h, w), (h * w * c, 1, w * c, c)
    image_y, strides_y = (n, d, h, w), (h * w * d, 1, w * d, d)

    # In channels_last images are a matrix (P, C) as they lie, which `as_strided` says in one call.
    def forward(x_NCHW: torch.Tensor, weight_DC11: torch.Tensor, bias_D: torch.Tensor | None) -> torch.Tensor:
        x_PC, weight_CD = x_NCHW.as_strided(matrix_x, rows_x), weight_DC11.reshape(d, c).t()
        y_PD = torch.mm(x_PC, weight_CD) if bias_D is None else torch.addmm(bias_D, x_PC, weight_CD)
        return y_PD.as_strided(image_y, strides_y)

    def grad_x(grad_y_NDHW: torch.Tensor, weight_DC11: torch.Tensor) -> torch.Tensor:
        grad_x_PC = torch.mm(grad_y_NDHW.as_strided(matrix_y, rows_y), weight_DC11.reshape(d, c))
        return grad_x_PC.as_strided(image_x, strides_x)

    def grad_weight(grad_y_NDHW: torch.Tensor, x_NCHW: torch.Tensor, weight_DC11: torch.Tensor) -> torch.Tensor:
        grad_y_DP, x_PC = grad_y_NDHW.as_strided(matrix_y, rows_y).t(), x_NCHW.as_strided(matrix_x, rows_x)
        return torch.mm(grad_y_DP, x_PC).view(weight_DC11.shape)

    return forward, grad_x, grad_weight


# --- depthwise: D = C, G = 1 -------------------------------------------------------------------------------


def _depthwise_grad_x(shape: Shape, sides: Sides) -> Run | None:
    kernel, stride, _, _, groups = shape
    sees_a_subgrid = _sees_a_subgrid(shape)
    on_subgrid = _on_subgrid(shape) if sees_a_subgrid else shape
    padding = tuple(d * (k - 1) - p for d, k, p in zip(on_subgrid.dilation, kernel, on_subgrid.padding, strict=True))
    if min(padding) < 0 or not (sees_a_subgrid or stride == (1, 1)):
        return None
    dilation = on_subgrid.dilation

    def grad_x(grad_y_NCIJ: torch.Tensor, weight_C1RS: torch.Tensor) -> torch.Tensor:
        """Convolve with the flipped kernel."""
        result = torch.conv2d(grad_y_NCIJ, weight_C1RS.flip(2, 3), None, 1, padding, dilation, groups)
        return spread(result, sides, (0, 0), stride) if sees_a_subgrid else result

    return grad_x


def _depthwise_grad_weight(shape: Shape, sides: Sides) -> Run | None:
    if _sees_a_subgrid(shape):
        (s, t), (n, c, h, w) = shape.stride, sides
        on_subgrid = _on_subgrid(shape)
        seen = (n, c, -(-h // s), -(-w // t))  # rounded up: row and column 0 are seen
        inner: Run = _depthwise_grad_weight(on_subgrid, seen) or partial(_grad_weight, on_subgrid)
        return lambda grad_y_NCIJ, x_NCHW, weight_C1RS: inner(grad_y_NCIJ, picked(x_NCHW, (0, 0), (s, t)), weight_C1RS)
    (height, width), (rows, columns), groups = shape.kernel, shape.padding, shape.groups
    columns_out = (sides[3] + 2 * columns - shape.dilation[1] * (width - 1) - 1) // shape.stride[1] + 1
    # An odd padding would let even columns be odd ones, and of an odd width the parities have different lengths.
    in_parities = not (sides[3] % 2 or columns % 2)
    if in_parities and shape.dilation == (2, 2) and shape.stride == (1, 1) and columns_out % 2 == 0:
        # The kernel has a row between each two: its gradient is computed too, and dropped. Rows are not split by
        # parity as well, for that is no view.
        undilated = Shape((2 * height - 1, width), (1, 1), (rows, columns // 2), (1, 1), 2 * groups)
        in_parts = _in_narrow_parts(undilated)

        def of_dilated(grad_y_NCIJ: torch.Tensor, x_NCHW: torch.Tensor, weight_C1RS: torch.Tensor) -> torch.Tensor:
            of_both = in_parts(_by_column_parity(grad_y_NCIJ), _by_column_parity(x_NCHW))  # (2 C, 1, 2 R - 1, S)
            return of_both[:, :, ::2].reshape(2, *weight_C1RS.shape).sum(0)

        return of_dilated
    if shape.dilation != (1, 1) or width <= WIDEST:
        return None
    if shape.stride == (1, 1):
        in_parts = _in_narrow_parts(shape)
        return lambda grad_y_NCIJ, x_NCHW, weight_C1RS: in_parts(grad_y_NCIJ, x_NCHW)
    half = (width + 1) // 2
    if in_parities and shape.stride == (2, 2) and half <= WIDEST and columns_out == sides[3] // 2 + columns - half + 1:
        # Even columns of the kernel meet even columns of the image, odd ones odd ones.
        in_parts = _in_narrow_parts(Shape((height, half), (2, 1), (rows, columns // 2), (1, 1), 2 * groups))

        def of_halving(grad_y_NCIJ: torch.Tensor, x_NCHW: torch.Tensor, weight_C1RS: torch.Tensor) -> torch.Tensor:
            even, odd = in_parts(torch.cat([grad_y_NCIJ, grad_y_NCIJ], 1), _by_column_parity(x_NCHW)).chunk(2)
            result_C1RS = torch.empty_like(weight_C1RS)
            # A kernel of odd width has a column less among the odd ones.
            result_C1RS[..., ::2], result_C1RS[..., 1::2] = even, odd[..., : width // 2]
            return result_C1RS

        return of_halving
    return None


def _in_narrow_parts(shape: Shape) -> Run:
    """Return what computes the gradient of an undilated depthwise weight (C, 1, R, S), a few columns at a time."""
    (height, width), (rows, columns), groups = shape.kernel, shape.padding, shape.groups
    if width <= WIDEST:
        return lambda grad_y, x: _grad_weight(shape, grad_y, x, grad_y.new_empty(groups, 1, height, width))
    unpadded = shape._replace(padding=(0, 0))
    parts = [(first, min(WIDEST, width - first)) for first in range(0, width, WIDEST)]

    def in_parts(grad_y_NCIJ: torch.Tensor, x_NCHW: torch.Tensor) -> torch.Tensor:
        # Padded here, for a part of the kernel does not meet the padding on both sides.
        padded, seen = F.pad(x_NCHW, (columns, columns, rows, rows)), grad_y_NCIJ.shape[3] - 1
        found = [
            _grad_weight(
                unpadded,
                grad_y_NCIJ,
                padded[..., first : first + seen + part],
                grad_y_NCIJ.new_empty(groups, 1, height, part),
            )
            for first, part in parts
        ]
        return torch.cat(found, 3)

    return in_parts


def _sees_a_subgrid(shape: Shape) -> bool:
    """Say whether only every s-th row and column of the input is seen, s the stride."""
    return shape.stride != (1, 1) and all(
        d % s == 0 and p % s == 0 for s, p, d in zip(shape.stride, shape.padding, shape.dilation, strict=True)
    )


def _on_subgrid(shape: Shape) -> Shape:
    (s, t), (p, q), (d, e) = shape.stride, shape.padding, shape.dilation
    return Shape(shape.kernel, (1, 1), (p // s, q // t), (d // s, e // t), shape.groups)


def _by_column_parity(x_NCHW: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) in channels_last as (N, 2C, H, W / 2): the even columns' channels, then the odd ones'."""
    n, c, h, w = x_NCHW.shape
    return x_NCHW.permute(0, 2, 3, 1).reshape(n, h, w // 2, 2 * c).permute(0, 3, 1, 2)


# --- layouts -----------------------------------------------------------------------------------------------


def picked(x: torch.Tensor, corner: Pair, stride: Pair) -> torch.Tensor:
    """Return a copy of every s-th row and column of x (N, C, H, W) from a corner on, in its memory format."""
    rows, columns = corner
    s, t = stride
    result = x[:, :, rows::s, columns::t]
    return result.clone(memory_format=layout_of(x))


def spread(g: torch.Tensor, shape: Sides, corner: Pair, stride: Pair) -> torch.Tensor:
    """Return the gradient of what `picked` was given, from that of what it returned."""
    rows, columns = corner
    s, t = stride
    result = _unwritten(shape, g).zero_()
    result[:, :, rows::s, columns::t] = g
    return result


def _unwritten(shape: Sides, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout_of(like))


def has_fast_routes(x: torch.Tensor) -> bool:
    """Say whether the routes measured here are for this tensor."""
    return layout_of(x) == torch.channels_last and x.device.type == "cpu"


def layout_of(x: torch.Tensor) -> torch.memory_format:
    """Return the memory format of a tensor: channels_last (_3d) only where its strides say that it is meant."""
    # Grey images are contiguous in both formats; what follows them is laid out as their strides say.
    channels_last = _CHANNELS_LAST.get(x.dim())
    meant = channels_last and x.stride(1) == 1 and x.is_contiguous(memory_format=channels_last)
    return channels_last if meant else torch.contiguous_format  # type: ignore[return-value]


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
