"""`nni.retiarii.nn.pytorch`: torch's layers and Retiarii's choices."""

from torch.nn import *  # noqa: F403

from supernet.retiarii.absent import names_absent_from, without_meaning
from supernet.retiarii.choices import Cell, ChosenInputs, InputChoice, LayerChoice, NasBench201Cell

__all__ = ["Cell", "ChosenInputs", "InputChoice", "LayerChoice", "NasBench201Cell"]  # beside torch's

_LAYERS = "write a LayerChoice between modules with these values"
ValueChoice = without_meaning("ValueChoice", _LAYERS)
Repeat = without_meaning("Repeat", "write each depth as a candidate of a LayerChoice, nn.Sequential(*blocks[:depth])")
NasBench101Cell = without_meaning("NasBench101Cell", "write its nodes by LayerChoice and InputChoice, or use Cell")
Placeholder = without_meaning("Placeholder", "write a LayerChoice where a mutator would have put one")
ModelParameterChoice = without_meaning("ModelParameterChoice", _LAYERS)

__getattr__ = names_absent_from(__name__, "nni.retiarii.nn.pytorch")
