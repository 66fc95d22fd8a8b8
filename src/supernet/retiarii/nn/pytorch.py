"""`nni.retiarii.nn.pytorch`: torch's layers and Retiarii's choices."""

from torch.nn import *  # noqa: F403

from supernet.retiarii.absent import names_absent_from, without_meaning
from supernet.retiarii.choices import (
    Cell,
    ChosenInputs,
    InputChoice,
    LayerChoice,
    NasBench101Cell,
    NasBench201Cell,
)
from supernet.retiarii.layers import layers_that_take_values
from supernet.retiarii.values import Repeat, ValueChoice

__all__ = [
    "Cell",
    "ChosenInputs",
    "InputChoice",
    "LayerChoice",
    "NasBench101Cell",
    "NasBench201Cell",
    "Repeat",
    "ValueChoice",
]  # beside torch's

globals().update(layers_that_take_values(__name__))

Placeholder = without_meaning("Placeholder", "write a LayerChoice where a mutator would have put one")
ModelParameterChoice = without_meaning("ModelParameterChoice", "use a ValueChoice as an argument of a layer")

__getattr__ = names_absent_from(__name__, "nni.retiarii.nn.pytorch")
