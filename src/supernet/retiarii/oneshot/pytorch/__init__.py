"""`nni.retiarii.oneshot.pytorch`: the trainers with the signatures that they had there."""

from supernet.execution import replace_input_choice, replace_layer_choice
from supernet.retiarii.oneshot.pytorch.darts import DartsTrainer
from supernet.retiarii.oneshot.pytorch.enas import EnasTrainer
from supernet.retiarii.oneshot.pytorch.proxyless import ProxylessTrainer
from supernet.retiarii.oneshot.pytorch.random import RandomTrainer, SinglePathTrainer
from supernet.trainers import BaseOneShotTrainer

__all__ = [
    "BaseOneShotTrainer",
    "DartsTrainer",
    "EnasTrainer",
    "ProxylessTrainer",
    "RandomTrainer",
    "SinglePathTrainer",
    "replace_input_choice",
    "replace_layer_choice",
]
