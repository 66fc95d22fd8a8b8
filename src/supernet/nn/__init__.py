"""Choices: what a user writes into an ordinary model."""

from supernet.nn.cell import Cell, NasBench201Cell
from supernet.nn.choice import Choice
from supernet.nn.domain import Domain
from supernet.nn.input_choice import InputChoice
from supernet.nn.layer_choice import LayerChoice

__all__ = ["Cell", "Choice", "Domain", "InputChoice", "LayerChoice", "NasBench201Cell"]
