"""FBNet's search space (arXiv 1812.03443), and the networks that were found in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.errors import ChoiceError
from supernet.hub.blocks import Classifier, check_sizes, conv_norm, inverted_residual
from supernet.nn import LayerChoice
from supernet.nn.composed import Composed
from supernet.space import Architecture

__all__ = ["FBNET_A", "FBNET_B", "FBNET_C", "FBNet"]

# Kernel, expansion and groups of the pointwise convolutions, by the paper's names.
BLOCKS = {
    "k3_e1": (3, 1, 1),
    "k3_e1_g2": (3, 1, 2),
    "k3_e3": (3, 3, 1),
    "k3_e6": (3, 6, 1),
    "k5_e1": (5, 1, 1),
    "k5_e1_g2": (5, 1, 2),
    "k5_e3": (5, 3, 1),
    "k5_e6": (5, 6, 1),
}


def _architecture(*stages: str) -> Architecture:
    names = [name for stage in stages for name in stage.split()]
    return {f"layer_{position}": name for position, name in enumerate(names)}


# Figure 4 of the paper, as facebookresearch/mobile-vision has it (mobile_cv/arch/fbnet_v2/fbnet_modeldef_cls_fbnet.py).
FBNET_A = _architecture(  # with a head of 1504 channels
    "skip",
    "k3_e3 k3_e1 skip skip",
    "k5_e6 k3_e3 k5_e1 k3_e3",
    "k5_e6 k5_e3 k5_e1_g2 k5_e6",
    "k3_e6 k5_e1_g2 k5_e3 k3_e1_g2",
    "k5_e6 k5_e6 k5_e3 k5_e6",
    "k5_e6",
)
FBNET_B = _architecture(
    "k3_e1",
    "k3_e6 k5_e1 k3_e1 k3_e1",
    "k5_e6 k5_e3 k3_e6 k5_e6",
    "k5_e6 k5_e6 skip k5_e3",
    "k5_e6 k3_e1 k5_e1 k5_e3",
    "k5_e6 k5_e1 k5_e6 k5_e6",
    "k3_e6",
)
FBNET_C = _architecture(
    "k3_e1",
    "k3_e6 skip k3_e1 k3_e1",
    "k5_e6 k5_e3 k5_e6 k3_e6",
    "k5_e6 k5_e3 k5_e6 k5_e6",
    "k5_e6 k5_e6 k5_e6 k5_e3",
    "k5_e6 k5_e6 k5_e6 k5_e6",
    "k3_e6",
)


class FBNet(Composed):
    """FBNet's search space (arXiv 1812.03443): one of nine blocks at each of 22 layers, 9**22.

    `layer_0` to `layer_21` are decided between "k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", the same with a kernel of 5, and
    "skip", which where a layer changes the shape is a pointwise convolution, as in the authors' code.

    Args:
        num_classes: Number of classes. Default: 1000.
        in_channels: Number of channels of the images. Default: 3.
        widths: Number of channels of the stem, each stage, and the head. Default: the paper's.
        depths: Number of layers of each stage. Default: the paper's, (1, 4, 4, 4, 4, 4, 1).
        strides: Stride of the stem, and of the first layer of each stage. Default: the paper's, of 32 together.
        dropout: Rate of the dropout before the classifier. Default: 0.

    Raises:
        ChoiceError: Widths, depths and strides are of different numbers of stages.

    >>> SearchSpace(supernet.hub.FBNet()).size == 9**22
    True
    >>> model = supernet.hub.FBNet(10, 1, (8, 8, 16, 32), (2, 2), (1, 2, 2))  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 16, 24, 32, 64, 112, 184, 352, 1984),
        depths: Sequence[int] = (1, 4, 4, 4, 4, 4, 1),
        strides: Sequence[int] = (2, 1, 2, 2, 2, 1, 2, 1),
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_sizes(widths=widths, depths=depths, strides=strides)
        if not len(widths) - 2 == len(depths) == len(strides) - 1:
            raise ChoiceError(
                f"{len(depths)} stages have {len(depths) + 2} widths (stem, each stage, head) and {len(depths) + 1} "
                f"strides (stem, each stage), not {len(widths)} and {len(strides)}"
            )
        before, *of_stages, head = widths
        self.stem = conv_norm(in_channels, before, 3, strides[0])
        layers: list[LayerChoice] = []
        for width, depth, stride in zip(of_stages, depths, strides[1:], strict=True):
            for position in range(depth):
                candidates = _candidates(before, width, 1 if position else stride)
                layers.append(LayerChoice(candidates, label=f"layer_{len(layers)}"))
                before = width
        self.layers = nn.Sequential(*layers)
        self.head = conv_norm(before, head)
        self.classifier = Classifier(head, num_classes, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.head(self.layers(self.stem(x))))


def _candidates(in_channels: int, out_channels: int, stride: int) -> dict[str, nn.Module]:
    candidates: dict[str, nn.Module] = {
        name: inverted_residual(in_channels, out_channels, kernel, expansion, stride, groups=groups)
        for name, (kernel, expansion, groups) in BLOCKS.items()
    }
    keeps_shape = stride == 1 and in_channels == out_channels
    skip: nn.Module = nn.Identity() if keeps_shape else conv_norm(in_channels, out_channels, 1, stride)
    return candidates | {"skip": skip}
