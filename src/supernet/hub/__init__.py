"""Published search spaces, and what they are made of."""

from supernet.hub.autoformer import AUTOFORMER_B, AUTOFORMER_S, AUTOFORMER_T, DEIT_S, AutoFormer
from supernet.hub.darts import (
    DARTS_V1,
    DARTS_V2,
    GDAS_V1,
    PC_DARTS_CIFAR,
    PC_DARTS_IMAGENET,
    Darts,
    darts_candidates,
    darts_network,
    darts_operation,
)
from supernet.hub.fbnet import FBNET_A, FBNET_B, FBNET_C, FBNet
from supernet.hub.gpt import GPT, GPT2_LARGE, GPT2_MEDIUM, GPT2_SMALL
from supernet.hub.mobilenetv3 import MobileNetV3, mobilenet_v3_large
from supernet.hub.nas_bench_201 import NasBench201
from supernet.hub.nas_bench_macro import NasBenchMacro
from supernet.hub.proxylessnas import (
    PROXYLESS_CPU,
    PROXYLESS_CPU_WIDTHS,
    PROXYLESS_GPU,
    PROXYLESS_GPU_WIDTHS,
    PROXYLESS_MOBILE,
    PROXYLESS_MOBILE_14_WIDTHS,
    PROXYLESS_MOBILE_WIDTHS,
    ProxylessNas,
)
from supernet.hub.shufflenetv2 import SPOS, ShuffleNetV2, shufflenet_v2_x1_0

__all__ = [
    "AUTOFORMER_B",
    "AUTOFORMER_S",
    "AUTOFORMER_T",
    "DARTS_V1",
    "DARTS_V2",
    "DEIT_S",
    "FBNET_A",
    "FBNET_B",
    "FBNET_C",
    "GDAS_V1",
    "GPT",
    "GPT2_LARGE",
    "GPT2_MEDIUM",
    "GPT2_SMALL",
    "PC_DARTS_CIFAR",
    "PC_DARTS_IMAGENET",
    "PROXYLESS_CPU",
    "PROXYLESS_CPU_WIDTHS",
    "PROXYLESS_GPU",
    "PROXYLESS_GPU_WIDTHS",
    "PROXYLESS_MOBILE",
    "PROXYLESS_MOBILE_14_WIDTHS",
    "PROXYLESS_MOBILE_WIDTHS",
    "SPOS",
    "AutoFormer",
    "Darts",
    "FBNet",
    "MobileNetV3",
    "NasBench201",
    "NasBenchMacro",
    "ProxylessNas",
    "ShuffleNetV2",
    "darts_candidates",
    "darts_network",
    "darts_operation",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
]
