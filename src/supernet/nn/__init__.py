"""Choices: what a user writes into an ordinary model."""

from supernet.nn.cell import Cell, NasBench201Cell
from supernet.nn.choice import Alternative, Choice
from supernet.nn.domain import Domain
from supernet.nn.elastic import Linear
from supernet.nn.input_choice import InputChoice
from supernet.nn.layer_choice import LayerChoice
from supernet.nn.mutable import Mutable
from supernet.nn.repeat import Repeat
from supernet.nn.sizes import Sizes
from supernet.nn.value import Expression, Value, ValueChoice

__all__ = [
    "Alternative",
    "Cell",
    "Choice",
    "Domain",
    "Expression",
    "InputChoice",
    "LayerChoice",
    "Linear",
    "Mutable",
    "NasBench201Cell",
    "Repeat",
    "Sizes",
    "Value",
    "ValueChoice",
]
