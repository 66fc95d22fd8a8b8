"""The search space of Single Path One-Shot (arXiv 1904.00420), made of ShuffleNetV2's blocks (arXiv 1807.11164)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supernet.checks import check_counts
from supernet.errors import ChoiceError
from supernet.hub.blocks import Classifier, check_sizes, conv_norm
from supernet.nn import LayerChoice
from supernet.nn.composed import Composed
from supernet.space import Architecture

__all__ = ["SPOS", "ShuffleNetV2", "shufflenet_v2_x1_0"]

CANDIDATES = ("k3", "k5", "k7", "xception")

# What the authors' code lists, with 323 M multiply-adds: README.md of megvii-model/SinglePathOneShot.
SPOS: Architecture = {
    f"block_{position}": CANDIDATES[choice]
    for position, choice in enumerate((2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3))
}


class ShuffleNetV2(Composed):
    """Single Path One-Shot's search space (arXiv 1904.00420): one of four blocks at each of 20 places, 4**20.

    `block_0` to `block_19` are ShuffleNetV2's block with a kernel of 3, 5 or 7, "k3", "k5", "k7", or "xception", which
    has three depthwise convolutions of 3x3.

    Args:
        num_classes: Number of classes. Default: 1000.
        in_channels: Number of channels of the images. Default: 3.
        widths: Number of channels of the stem, each stage (an even one), and the head. Default: the paper's.
        depths: Number of blocks of each stage, the first of which halves the image. Default: (4, 4, 8, 4).
        stride: Stride of the stem. Default: 2.
        dropout: Rate of the dropout before the classifier. Default: 0.1, as in the authors' code.

    Raises:
        ChoiceError: Widths and depths are of different numbers of stages, or the width of a stage is odd.

    >>> SearchSpace(supernet.hub.ShuffleNetV2()).size == 4**20
    True
    >>> model = supernet.hub.ShuffleNetV2(10, 1, (8, 16, 32, 64), (2, 2), stride=1)  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 64, 160, 320, 640, 1024),
        depths: Sequence[int] = (4, 4, 8, 4),
        *,
        stride: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, stride=stride)
        check_sizes(widths=widths, depths=depths)
        if len(widths) - 2 != len(depths):
            raise ChoiceError(
                f"{len(depths)} stages have {len(depths) + 2} widths (stem, each stage, head), not {len(widths)}"
            )
        before, *of_stages, head = widths
        self.stem = conv_norm(in_channels, before, 3, stride)
        blocks: list[LayerChoice] = []
        for width, depth in zip(of_stages, depths, strict=True):
            for position in range(depth):
                # Of the first block's channels as many come by the shortcut as go in, as the authors' code has it.
                shortcut = 0 if position else before
                candidates = {kind: _block(kind, before, width, shortcut) for kind in CANDIDATES}
                blocks.append(LayerChoice(candidates, label=f"block_{len(blocks)}"))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm(before, head)
        self.classifier = Classifier(head, num_classes, dropout, bias=False)  # as the authors' code has it

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.head(self.blocks(self.stem(x))))


def shufflenet_v2_x1_0(num_classes: int = 1000) -> nn.Sequential:
    """Return ShuffleNetV2 1x (arXiv 1807.11164), a plain network with new weights.

    It is made of the blocks "k3", but is no architecture of the space: its stages have other depths and widths.

    Args:
        num_classes: Number of classes. Default: 1000.

    >>> sum(p.numel() for p in supernet.hub.shufflenet_v2_x1_0().parameters())
    2278604
    """
    layers: list[nn.Module] = [conv_norm(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    before = 24
    for width, depth in ((116, 4), (232, 8), (464, 4)):
        for position in range(depth):
            layers.append(_block("k3", before, width, shortcut=0 if position else width // 2))
            before = width
    return nn.Sequential(*layers, conv_norm(before, 1024), Classifier(1024, num_classes))


def _block(kind: str, in_channels: int, out_channels: int, shortcut: int) -> nn.Module:
    """Return a block of one of `CANDIDATES`.

    Args:
        kind: Which one.
        in_channels, out_channels: Number of channels of input and output.
        shortcut: How many come by the shortcut of a block that halves the image; 0: it does not, and half of them pass.
    """
    if out_channels % 2:
        raise ChoiceError(f"a stage of ShuffleNetV2 has an even number of channels, not {out_channels}")
    inside = out_channels // 2
    if not shortcut:
        return _Split(_branch(kind, inside, inside, inside, 1))
    kernel = 3 if kind == "xception" else int(kind.removeprefix("k"))
    by_shortcut = nn.Sequential(_depthwise(in_channels, kernel, 2), conv_norm(in_channels, shortcut))
    return _Halving(by_shortcut, _branch(kind, in_channels, inside, out_channels - shortcut, 2))


def _branch(kind: str, in_channels: int, channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return the branch that convolves: `channels` inside, depthwise convolutions between pointwise ones."""
    if kind == "xception":
        return nn.Sequential(
            _depthwise(in_channels, 3, stride),
            conv_norm(in_channels, channels),
            _depthwise(channels, 3),
            conv_norm(channels, channels),
            _depthwise(channels, 3),
            conv_norm(channels, out_channels),
        )
    return nn.Sequential(
        conv_norm(in_channels, channels),
        _depthwise(channels, int(kind.removeprefix("k")), stride),
        conv_norm(channels, out_channels),
    )


def _depthwise(channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return conv_norm(channels, channels, kernel, stride, groups=channels, activation=None)


class _Split(Composed):
    """Half of the channels pass, the others are convolved; then all are shuffled."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.shuffle = branch, nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of x (N, C, H, W)."""
        halves = x.chunk(2, 1)
        return self.shuffle(torch.cat([halves[0], self.branch(halves[1])], 1))


class _Halving(Composed):
    """Two branches see all channels and halve the image; then all are shuffled."""

    def __init__(self, shortcut: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.branch, self.shuffle = shortcut, branch, nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H / 2, W / 2) of what both branches give, C channels together."""
        return self.shuffle(torch.cat([self.shortcut(x), self.branch(x)], 1))
