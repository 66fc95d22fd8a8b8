"""Choices: what a user writes into an ordinary model."""

from supernet.nn.cell import Cell, NasBench201Cell
from supernet.nn.choice import Choice
from supernet.nn.input_choice import InputChoice
from supernet.nn.layer_choice import LayerChoice

__all__ = ["Cell", "Choice", "InputChoice", "LayerChoice", "NasBench201Cell"]
