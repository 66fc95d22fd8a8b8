"""The operations of DARTS's search space (arXiv 1806.09055), which many papers after it search too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.errors import ChoiceError

__all__ = ["FactorizedReduce", "Zero", "darts_candidates", "darts_operation", "relu_conv_norm"]

CANDIDATES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def darts_candidates(channels: int, stride: int = 1, *, affine: bool = False) -> dict[str, nn.Module]:
    """Return the eight candidates of an edge of DARTS's cell, as its search network has them.

    Pools have a BatchNorm after them here, without which their larger outputs would draw the architecture to them.

    Args:
        channels: Number of channels of input and output, (N, channels, H, W).
        stride: 2 halves height and width. Default: 1.
        affine: Whether the norms after convolutions scale and shift. Default: as in the paper, they do not while one
            searches.

    >>> list(darts_candidates(16))[3:5]
    ['skip_connect', 'sep_conv_3x3']
    """
    result: dict[str, nn.Module] = {}
    for name in CANDIDATES:
        result[name] = darts_operation(name, channels, stride, affine=affine)
        if "pool" in name:
            result[name] = nn.Sequential(result[name], nn.BatchNorm2d(channels, affine=False))
    return result


def darts_operation(name: str, channels: int, stride: int = 1, *, affine: bool = True) -> nn.Module:
    """Return an operation by the name that genotypes of DARTS, and of the papers after it, have for it.

    Args:
        name: One of the eight candidates of `darts_candidates`, "sep_conv_7x7" or "conv_7x1_1x7".
        channels: Number of channels of input and output, (N, channels, H, W).
        stride: 2 halves height and width. Default: 1.
        affine: Whether its norms scale and shift. Default: they do, as in networks that are trained from new weights.

    Raises:
        ChoiceError: There is no operation of that name.
    """
    check_counts(channels=channels, stride=stride)
    separable = partial(_separable, channels, stride=stride, affine=affine)
    operations: dict[str, Callable[[], nn.Module]] = {
        "none": lambda: Zero(stride),
        "max_pool_3x3": lambda: nn.MaxPool2d(3, stride, 1),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        "skip_connect": lambda: nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine),
        "sep_conv_3x3": lambda: separable(3, times=2),
        "sep_conv_5x5": lambda: separable(5, times=2),
        "sep_conv_7x7": lambda: separable(7, times=2),
        "dil_conv_3x3": lambda: separable(3, dilation=2),
        "dil_conv_5x5": lambda: separable(5, dilation=2),
        "conv_7x1_1x7": lambda: nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        ),
    }
    if name not in operations:
        raise ChoiceError(f"DARTS has no operation {name!r}; it has: {', '.join(operations)}")
    return operations[name]()


def relu_conv_norm(in_channels: int, out_channels: int, *, affine: bool = True) -> nn.Sequential:
    """Return ReLU, 1x1 convolution, BatchNorm: what brings a cell's inputs to its number of channels."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(out_channels, affine=affine))


class Zero(nn.Module):
    """The candidate "none": gives zeros, on every `stride`-th position."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Halves height and width: one half of the channels sees the even positions, the other the odd ones.

    Args:
        in_channels: Number of channels of the input, whose height and width are even.
        out_channels: Number of channels of the output, an even one.
        affine: Whether the norm scales and shifts. Default: it does.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        if out_channels % 2:
            raise ChoiceError(f"FactorizedReduce gives an even number of channels, not {out_channels}")
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, out_channels, H / 2, W / 2)."""
        x = self.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def _separable(
    channels: int, kernel: int, *, stride: int, affine: bool, dilation: int = 1, times: int = 1
) -> nn.Sequential:
    """Return ReLU, depthwise convolution, pointwise convolution, BatchNorm; that `times` times, the first strided."""
    layers: list[nn.Module] = []
    for position in range(times):
        of_this, padding = stride if position == 0 else 1, dilation * (kernel - 1) // 2
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, of_this, padding, dilation, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        ]
    return nn.Sequential(*layers)
