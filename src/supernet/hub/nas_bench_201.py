"""The search space of NAS-Bench-201 (arXiv 2001.00326), which is NATS-Bench's topology space too (arXiv 2009.00437)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.hub.blocks import Classifier
from supernet.hub.darts import Zero
from supernet.nn import NasBench201Cell
from supernet.nn.composed import Composed

__all__ = ["NasBench201"]

CANDIDATES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class NasBench201(Composed):
    """NAS-Bench-201's search space (arXiv 2001.00326): one cell of 5**6 = 15,625, which all stages have.

    A cell has four tensors, of which each is the sum of an operation on each tensor before: `cell__1_3` is the
    operation from tensor 1 to tensor 3, the last. Decisions are the benchmark's own names.

    Args:
        num_classes: Number of classes. Default: 10.
        channels: Number of channels of the first stage; each stage has twice as many as the one before. Default: 16.
        cells: Number of cells of each of three stages. Default: 5.
        in_channels: Number of channels of the images. Default: 3.
        affine: Whether norms inside cells scale and shift. Default: as in the benchmark's networks, they do.

    >>> SearchSpace(supernet.hub.NasBench201()).size
    15625
    >>> model = supernet.hub.NasBench201(channels=4, cells=1, in_channels=1)  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 16,
        cells: int = 5,
        *,
        in_channels: int = 3,
        affine: bool = True,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels, cells=cells, in_channels=in_channels)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        body: list[nn.Module] = []
        for stage in range(3):
            if stage:
                body.append(_Halving(channels))
                channels *= 2
            body += [NasBench201Cell(_factories(affine), channels, channels, label="cell") for _ in range(cells)]
        self.body = nn.Sequential(*body, nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = Classifier(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.body(self.stem(x)))


def _factories(affine: bool) -> dict[str, Callable[[int, int], nn.Module]]:
    return {
        "none": lambda c_in, c_out: Zero(),
        "skip_connect": lambda c_in, c_out: nn.Identity(),
        "nor_conv_1x1": partial(_relu_conv_norm, kernel=1, affine=affine),
        "nor_conv_3x3": partial(_relu_conv_norm, kernel=3, affine=affine),
        "avg_pool_3x3": lambda c_in, c_out: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    }


def _relu_conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, affine: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(c_out, affine=affine))


class _Halving(Composed):
    """The residual block between two stages: half the height and width, twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (
            _relu_conv_norm(channels, 2 * channels, 3, stride=2),
            _relu_conv_norm(2 * channels, 2 * channels, 3),
        )
        self.body = nn.Sequential(first, second)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 2 C, H / 2, W / 2) of x (N, C, H, W)."""
        return self.body(x) + self.shortcut(x)
