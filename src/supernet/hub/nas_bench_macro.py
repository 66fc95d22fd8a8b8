"""The search space of NAS-Bench-Macro (arXiv 2103.11922)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.hub.blocks import Classifier, check_sizes, conv_norm, inverted_residual
from supernet.nn import LayerChoice
from supernet.nn.composed import Composed

__all__ = ["NasBenchMacro"]


class NasBenchMacro(Composed):
    """NAS-Bench-Macro's search space (arXiv 2103.11922): one of three blocks at each of 8 layers, 3**8 = 6,561.

    `layer_0` to `layer_7` are decided between the benchmark's own names: "id", which is a pointwise convolution where
    the shape changes, "ir_3x3_t3" and "ir_5x5_t6", inverted residuals.

    Args:
        num_classes: Number of classes. Default: 10.
        channels: Number of channels of the stem; each stage has twice as many as what is before it. Default: 32.
        stages: Number of layers of each stage, the first of which halves the image. Default: (2, 3, 3).
        in_channels: Number of channels of the images. Default: 3.
        head_channels: Number of channels before the average over the image. Default: 1280.

    >>> SearchSpace(supernet.hub.NasBenchMacro()).size
    6561
    >>> model = supernet.hub.NasBenchMacro(channels=4, in_channels=1, head_channels=32)  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 32,
        stages: Sequence[int] = (2, 3, 3),
        *,
        in_channels: int = 3,
        head_channels: int = 1280,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels, in_channels=in_channels, head_channels=head_channels)
        check_sizes(stages=stages)
        self.stem = conv_norm(in_channels, channels, 3)
        layers: list[LayerChoice] = []
        for depth in stages:
            for position in range(depth):
                before, stride = channels, 2 if position == 0 else 1
                channels = before * stride
                layers.append(LayerChoice(_candidates(before, channels, stride), label=f"layer_{len(layers)}"))
        self.layers = nn.Sequential(*layers)
        self.head = conv_norm(channels, head_channels)
        self.classifier = Classifier(head_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.head(self.layers(self.stem(x))))


def _candidates(in_channels: int, out_channels: int, stride: int) -> dict[str, nn.Module]:
    keeps_shape = stride == 1 and in_channels == out_channels
    return {
        "id": nn.Identity() if keeps_shape else conv_norm(in_channels, out_channels, 1, stride, activation=None),
        "ir_3x3_t3": inverted_residual(in_channels, out_channels, 3, 3, stride),
        "ir_5x5_t6": inverted_residual(in_channels, out_channels, 5, 6, stride),
    }
