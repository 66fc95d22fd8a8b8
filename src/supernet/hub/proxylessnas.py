"""ProxylessNAS's search space (arXiv 1812.00332), and the networks that were found in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.errors import ChoiceError
from supernet.hub.blocks import Classifier, check_sizes, conv_norm, inverted_residual
from supernet.nn import LayerChoice
from supernet.nn.composed import Composed
from supernet.space import Architecture

__all__ = [
    "PROXYLESS_CPU",
    "PROXYLESS_CPU_WIDTHS",
    "PROXYLESS_GPU",
    "PROXYLESS_GPU_WIDTHS",
    "PROXYLESS_MOBILE",
    "PROXYLESS_MOBILE_14_WIDTHS",
    "PROXYLESS_MOBILE_WIDTHS",
    "ProxylessNas",
]

DEPTHS = (4, 4, 4, 4, 4, 1)


def _architecture(*stages: str) -> Architecture:
    """Return the architecture of "kernel:expansion" of each block, "-" where it is skipped."""
    blocks = [block for stage in stages for block in stage.split()]
    return {
        f"block_{i}": "skip" if block == "-" else "k{}_e{}".format(*block.split(":")) for i, block in enumerate(blocks)
    }


# proxyless_{mobile,gpu,cpu}.config of mit-han-lab/proxylessnas, as pytorchcv has read them (osmr/imgclsmob,
# pytorch/pytorchcv/models/proxylessnas.py). They are wider than one another: so the widths stand beside.
PROXYLESS_MOBILE = _architecture(
    "5:3 3:3 - -", "7:3 3:3 5:3 5:3", "7:6 5:3 5:3 5:3", "5:6 5:3 5:3 5:3", "7:6 7:6 7:3 7:3", "7:6"
)
PROXYLESS_GPU = _architecture("5:3 - - -", "7:3 - - 3:3", "7:6 - - 5:3", "5:6 - 3:3 5:3", "7:6 7:6 7:6 5:6", "7:6")
PROXYLESS_CPU = _architecture(
    "3:6 3:3 3:3 3:3", "3:6 3:3 3:3 5:3", "3:6 - - 3:3", "5:6 3:3 3:3 3:3", "5:6 5:3 5:3 3:3", "5:6"
)
PROXYLESS_MOBILE_WIDTHS = (32, 16, 32, 40, 80, 96, 192, 320, 1280)
PROXYLESS_MOBILE_14_WIDTHS = (48, 24, 40, 56, 112, 136, 256, 448, 1792)
PROXYLESS_GPU_WIDTHS = (40, 24, 32, 56, 112, 128, 256, 432, 1728)
PROXYLESS_CPU_WIDTHS = (40, 24, 32, 48, 88, 104, 216, 360, 1432)


class ProxylessNas(Composed):
    """ProxylessNAS's search space (arXiv 1812.00332): MobileNetV2's blocks, 6**6 * 7**15 networks of 21 of them.

    Each of `block_0` to `block_20` has a kernel of 3, 5 or 7 and an expansion of 3 or 6, "k3_e3" to "k7_e6"; but for
    the first of a stage, which changes the shape, it may be left out, "skip". The paper states no number.

    Args:
        num_classes: Number of classes. Default: 1000.
        in_channels: Number of channels of the images. Default: 3.
        widths: Number of channels of the stem, the block after it, each stage, and the head. Default: the published
            mobile network's, `PROXYLESS_MOBILE_WIDTHS`.
        depths: Number of blocks of each stage. Default: the paper's, (4, 4, 4, 4, 4, 1).
        strides: Stride of the stem, and of the first block of each stage. Default: the paper's, of 32 together.
        dropout: Rate of the dropout before the classifier. Default: 0.

    Raises:
        ChoiceError: Widths, depths and strides are of different numbers of stages.

    >>> SearchSpace(supernet.hub.ProxylessNas()).size == 6**6 * 7**15
    True
    >>> model = supernet.hub.ProxylessNas(10, 1, (8, 8, 8, 16, 32), (2, 2), (1, 2, 2))  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = PROXYLESS_MOBILE_WIDTHS,
        depths: Sequence[int] = DEPTHS,
        strides: Sequence[int] = (2, 2, 2, 2, 1, 2, 1),
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_sizes(widths=widths, depths=depths, strides=strides)
        if not len(widths) - 3 == len(depths) == len(strides) - 1:
            raise ChoiceError(
                f"{len(depths)} stages have {len(depths) + 3} widths (stem, first block, each stage, head) and "
                f"{len(depths) + 1} strides (stem, each stage), not {len(widths)} and {len(strides)}"
            )
        stem, first, *of_stages, head = widths
        self.stem = conv_norm(in_channels, stem, 3, strides[0], activation=nn.ReLU6)
        self.first = inverted_residual(stem, first, 3, 1, activation=nn.ReLU6, expands=False)
        blocks: list[LayerChoice] = []
        before = first
        for width, depth, stride in zip(of_stages, depths, strides[1:], strict=True):
            for position in range(depth):
                candidates = _candidates(before, width, 1 if position else stride, can_skip=position > 0)
                blocks.append(LayerChoice(candidates, label=f"block_{len(blocks)}"))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm(before, head, activation=nn.ReLU6)
        self.classifier = Classifier(head, num_classes, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.head(self.blocks(self.first(self.stem(x)))))


def _candidates(in_channels: int, out_channels: int, stride: int, can_skip: bool) -> dict[str, nn.Module]:
    candidates: dict[str, nn.Module] = {
        f"k{kernel}_e{expansion}": inverted_residual(
            in_channels, out_channels, kernel, expansion, stride, activation=nn.ReLU6
        )
        for kernel, expansion in product((3, 5, 7), (3, 6))
    }
    return candidates | ({"skip": nn.Identity()} if can_skip else {})
