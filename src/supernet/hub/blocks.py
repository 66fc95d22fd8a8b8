"""What networks of the hub have in common: convolutions with their norms, and the blocks of mobile networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.nn.composed import Composed

__all__ = ["Classifier", "Residual", "check_sizes", "conv_norm", "inverted_residual"]


def check_sizes(**sizes: Sequence[int]) -> None:
    """Raise `TrainingError` unless each entry of each of these is a whole number from 1 on."""
    check_counts(**{f"{name}[{i}]": size for name, each in sizes.items() for i, size in enumerate(each)})


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return a convolution without bias that keeps the image's size but for the stride, BatchNorm, and an activation.

    Args:
        in_channels, out_channels, kernel, stride, groups: Of the convolution, whose kernel is odd.
        activation: Makes what follows the norm; None: nothing does. Default: ReLU.
    """
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [convolution, nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


def inverted_residual(
    in_channels: int,
    out_channels: int,
    kernel: int,
    expansion: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
    expands: bool = True,
) -> nn.Module:
    """Return MobileNetV2's block (arXiv 1801.04381): it widens, convolves each channel, and narrows again.

    The input is added where it has the output's shape.

    Args:
        in_channels, out_channels: Number of channels of input and output.
        kernel: Size of the depthwise convolution, an odd number.
        expansion: How many times as many channels as the input the block has inside.
        stride: 2 halves height and width. Default: 1.
        groups: Groups of both pointwise convolutions; channels are shuffled between. Default: 1.
        activation: Makes what follows the first two norms. Default: ReLU.
        expands: Whether there is a first pointwise convolution. Default: there is.
    """
    inside = in_channels * expansion
    layers: list[nn.Module] = []
    if expands:
        layers.append(conv_norm(in_channels, inside, groups=groups, activation=activation))
    if groups > 1:
        layers.append(nn.ChannelShuffle(groups))
    layers.append(conv_norm(inside, inside, kernel, stride, groups=inside, activation=activation))
    layers.append(conv_norm(inside, out_channels, groups=groups, activation=None))
    body = nn.Sequential(*layers)
    return Residual(body) if stride == 1 and in_channels == out_channels else body


class Residual(Composed):
    """Adds what a module gives to its input.

    Args:
        body: The module, which keeps the input's shape.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + body(x)."""
        return x + self.body(x)


class Classifier(Composed):
    """Averages over the image, then a linear layer.

    Args:
        in_channels: Number of channels of the input.
        num_classes: Number of classes.
        dropout: Rate of the dropout before the linear layer. Default: none.
        bias: Whether the linear layer adds a bias. Default: it does.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.linear(self.dropout(x.mean((2, 3))))
