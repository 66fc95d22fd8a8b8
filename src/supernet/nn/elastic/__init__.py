"""Elastic layers: torch's own, in which a `ValueChoice` or an expression may stand wherever a number may."""

from supernet.nn.elastic.attention import Attention
from supernet.nn.elastic.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from supernet.nn.elastic.dropout import Dropout
from supernet.nn.elastic.embedding import Embedding
from supernet.nn.elastic.linear import Linear
from supernet.nn.elastic.multihead_attention import MultiheadAttention
from supernet.nn.elastic.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm
from supernet.nn.elastic.parameter import Parameter

__all__ = [
    "Attention",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "Parameter",
    "RMSNorm",
]
