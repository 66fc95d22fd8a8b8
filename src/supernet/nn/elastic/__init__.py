"""Elastic layers: torch's own, in which a `ValueChoice` or an expression may stand wherever a number may."""

from supernet.nn.elastic.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from supernet.nn.elastic.linear import Linear
from supernet.nn.elastic.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RMSNorm",
]
