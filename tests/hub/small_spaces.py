"""The hub's convolutional spaces in small settings."""

from functools import partial

from supernet.hub import Darts, FBNet, MobileNetV3, NasBench201, NasBenchMacro, ProxylessNas, ShuffleNetV2


def small_mobilenet(**options):
    return MobileNetV3(4, 1, (8, 8, 8, 16, 16, 8), (1, 2), (1, 2, 2), dropout=0, **options)


# Small settings: what makes the model, and the shape of a batch.
SMALL = {
    "Darts": (lambda: Darts(4, channels=4, layers=3), (2, 3, 8, 8)),
    "NasBench201": (lambda: NasBench201(4, channels=4, cells=1), (2, 3, 8, 8)),
    "NasBenchMacro": (lambda: NasBenchMacro(4, channels=4, head_channels=8), (2, 3, 16, 16)),
    "ProxylessNas": (lambda: ProxylessNas(4, 1, (4, 4, 4, 8, 8), (2, 2), (1, 2, 2)), (2, 1, 8, 8)),
    "FBNet": (lambda: FBNet(4, 1, (4, 4, 8, 8), (2, 2), (1, 1, 2)), (2, 1, 8, 8)),
    "MobileNetV3": (small_mobilenet, (2, 1, 8, 8)),
    "MobileNetV3 with kernel transforms": (partial(small_mobilenet, kernel_transform=True), (2, 1, 8, 8)),
    "ShuffleNetV2": (lambda: ShuffleNetV2(4, 1, (4, 8, 16, 16), (2, 2), stride=1, dropout=0), (2, 1, 8, 8)),
}
