"""Choices: what a user writes into an ordinary model."""

from supernet.nn.cell import Cell, NasBench201Cell
from supernet.nn.choice import Alternative, Choice
from supernet.nn.domain import Domain
from supernet.nn.elastic import (
    Attention,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    MultiheadAttention,
    Parameter,
    RMSNorm,
)
from supernet.nn.input_choice import InputChoice
from supernet.nn.layer_choice import LayerChoice
from supernet.nn.mutable import Mutable
from supernet.nn.nas_bench_101 import NasBench101Cell
from supernet.nn.repeat import Repeat
from supernet.nn.sizes import Sizes, Span
from supernet.nn.value import Expression, Value, ValueChoice

__all__ = [
    "Alternative",
    "Attention",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Cell",
    "Choice",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Domain",
    "Dropout",
    "Embedding",
    "Expression",
    "GroupNorm",
    "InputChoice",
    "LayerChoice",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "Mutable",
    "NasBench101Cell",
    "NasBench201Cell",
    "Parameter",
    "RMSNorm",
    "Repeat",
    "Sizes",
    "Span",
    "Value",
    "ValueChoice",
]
