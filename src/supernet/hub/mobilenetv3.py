"""Once-for-All's search space (arXiv 1908.09791), made of MobileNetV3's blocks (arXiv 1905.02244)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from supernet.checks import check_counts
from supernet.errors import ChoiceError
from supernet.hub.blocks import Residual, check_sizes, conv_norm
from supernet.nn import BatchNorm2d, Conv2d, Repeat, ValueChoice
from supernet.nn.composed import Composed
from supernet.space import fixed_architecture

__all__ = ["MobileNetV3", "mobilenet_v3_large"]

KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)

Activation = Callable[[], nn.Module]


class MobileNetV3(Composed):
    """Once-for-All's search space (arXiv 1908.09791): kernels, widths and depths of MobileNetV3, 7371**5 networks.

    Each of five stages has `depth_0` to `depth_4` blocks, 2, 3 or 4; block b of stage s has a depthwise convolution of
    `kernel_s_b`, 3, 5 or 7, and `expansion_s_b` times as many channels inside as go in, 3, 4 or 6. All sizes are parts
    of one weight. Blocks that are left out are not decided: (9**2 + 9**3 + 9**4)**5 is the paper's 2e19.

    Departs from the paper: a smaller kernel is the centre of a larger one, unless `kernel_transform` is True; images
    have one size, that of the data.

    Args:
        num_classes: Number of classes. Default: 1000.
        in_channels: Number of channels of the images. Default: 3.
        widths: Number of channels of the stem, the block after it, each stage, what is averaged, and the layer before
            the classifier. Default: the paper's.
        depths: How many blocks a stage may have. Default: (2, 3, 4).
        strides: Stride of the stem, and of the first block of each stage; fewer stages are the first of these. Default:
            the paper's, of 32 together.
        dropout: Rate of the dropout before the classifier. Default: 0.1.
        kernel_transform: Whether a smaller kernel is the centre of the next larger one times a matrix that is learnt.
            Default: it is the centre itself.

    Raises:
        ChoiceError: Widths and strides are of different numbers of stages, or not of one to five.

    >>> SearchSpace(supernet.hub.MobileNetV3()).size == (9**2 + 9**3 + 9**4) ** 5
    True
    >>> model = supernet.hub.MobileNetV3(10, 1, (8, 8, 16, 24, 64, 32), (1, 2), (1, 2, 2))  # for small images
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 16, 24, 40, 80, 112, 160, 960, 1280),
        depths: Sequence[int] = DEPTHS,
        strides: Sequence[int] = (2, 2, 2, 2, 1, 2),
        *,
        dropout: float = 0.1,
        kernel_transform: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_sizes(widths=widths, depths=depths, strides=strides)
        num_stages = len(strides) - 1
        if not 1 <= num_stages == len(widths) - 4 <= 5:
            raise ChoiceError(
                f"there are one to five stages, not {num_stages} (a stride each, after the stem's), with 4 more widths "
                f"(stem, first block, averaged, last), not {len(widths)}"
            )
        stem, before, *of_stages, averaged, last = widths
        self.stem = conv_norm(in_channels, stem, 3, strides[0], activation=nn.Hardswish)
        self.first = _block(stem, before, 3, stem)
        self.stages = nn.Sequential()
        for stage, (width, stride) in enumerate(zip(of_stages, strides[1:], strict=True)):
            blocks = []
            for position in range(max(depths)):
                kernel = ValueChoice(KERNELS, label=f"kernel_{stage}_{position}")
                expansion = ValueChoice(EXPANSIONS, label=f"expansion_{stage}_{position}")
                blocks.append(
                    _block(
                        before,
                        width,
                        kernel,
                        _in_eights(before * expansion),
                        1 if position else stride,
                        activation=nn.ReLU if stage < 2 else nn.Hardswish,
                        squeezes=stage in (1, 3, 4),
                        kernel_transform=kernel_transform,
                    )
                )
                before = width
            self.stages.append(Repeat(blocks, ValueChoice(depths, label=f"depth_{stage}")))
        self.head = _Head(before, averaged, last, num_classes, dropout, bias=False)  # as the authors' code has it

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.head(self.stages(self.first(self.stem(x))))


# Kernel, channels inside, channels out, stride of each block, and whether it squeezes: table 1 of the paper.
_LARGE = (
    (3, 16, 16, 1, False),
    (3, 64, 24, 2, False),
    (3, 72, 24, 1, False),
    (5, 72, 40, 2, True),
    (5, 120, 40, 1, True),
    (5, 120, 40, 1, True),
    (3, 240, 80, 2, False),
    (3, 200, 80, 1, False),
    (3, 184, 80, 1, False),
    (3, 184, 80, 1, False),
    (3, 480, 112, 1, True),
    (3, 672, 112, 1, True),
    (5, 672, 160, 2, True),
    (5, 960, 160, 1, True),
    (5, 960, 160, 1, True),
)


def mobilenet_v3_large(num_classes: int = 1000, dropout: float = 0.2) -> nn.Sequential:
    """Return MobileNetV3-Large (arXiv 1905.02244), a plain network with new weights.

    It is made of the blocks of `MobileNetV3`, but is no architecture of it: some of its blocks have 2.3 or 2.5 times as
    many channels inside.

    Args:
        num_classes: Number of classes. Default: 1000.
        dropout: Rate of the dropout before the classifier. Default: 0.2.

    >>> sum(p.numel() for p in supernet.hub.mobilenet_v3_large().parameters())
    5483032
    """
    with fixed_architecture({}):  # what nothing is left to decide of is torch's own layer
        layers: list[nn.Module] = [conv_norm(3, 16, 3, 2, activation=nn.Hardswish)]
        before = 16
        for position, (kernel, inside, width, stride, squeezes) in enumerate(_LARGE):
            activation = nn.ReLU if position < 6 else nn.Hardswish
            layers.append(_block(before, width, kernel, inside, stride, activation=activation, squeezes=squeezes))
            before = width
        return nn.Sequential(*layers, _Head(before, 960, 1280, num_classes, dropout))


def _block(
    in_channels: int,
    out_channels: int,
    kernel: Any,
    inside: Any,
    stride: int = 1,
    *,
    activation: Activation = nn.ReLU,
    squeezes: bool = False,
    kernel_transform: bool = False,
) -> nn.Module:
    """Return an inverted residual, whose kernel and number of channels inside may be decided by choices."""

    def conv_norm_of(c_in: Any, c_out: Any, *activations: nn.Module, **options: Any) -> nn.Sequential:
        return nn.Sequential(Conv2d(c_in, c_out, bias=False, **options), BatchNorm2d(c_out), *activations)

    layers: list[nn.Module] = []
    if inside is not in_channels:  # the first block does not expand
        layers.append(conv_norm_of(in_channels, inside, activation(), kernel_size=1))
    depthwise = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "groups": inside}
    layers.append(conv_norm_of(inside, inside, activation(), **depthwise, kernel_transform=kernel_transform))
    if squeezes:
        layers.append(_SqueezeExcitation(inside))
    layers.append(conv_norm_of(inside, out_channels, kernel_size=1))
    body = nn.Sequential(*layers)
    return Residual(body) if stride == 1 and in_channels == out_channels else body


class _SqueezeExcitation(Composed):
    """Scales each channel by a gate that sees the averages of all channels (arXiv 1709.01507)."""

    def __init__(self, channels: Any) -> None:
        super().__init__()
        squeezed = _in_eights(channels // 4)
        self.gate = nn.Sequential(
            Conv2d(channels, squeezed, 1), nn.ReLU(), Conv2d(squeezed, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of x (N, C, H, W)."""
        return x * self.gate(x.mean((2, 3), keepdim=True))


class _Head(Composed):
    """Widens, averages over the image, and classifies by two linear layers."""

    def __init__(
        self, in_channels: int, averaged: int, last: int, num_classes: int, dropout: float, bias: bool = True
    ) -> None:
        super().__init__()
        self.widening = conv_norm(in_channels, averaged, activation=nn.Hardswish)
        self.classifier = nn.Sequential(
            nn.Linear(averaged, last, bias), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of x (N, in_channels, H, W)."""
        return self.classifier(self.widening(x).mean((2, 3)))


def _in_eights(channels: Any) -> Any:
    """Return the nearest multiple of 8, but none that is less than nine tenths: as the authors of MobileNets round."""

    def rounded(number: int) -> int:
        nearest = max(8, (number + 4) // 8 * 8)
        return nearest + 8 if nearest < 0.9 * number else nearest

    return rounded(channels) if isinstance(channels, int) else ValueChoice.compute(rounded, channels)
