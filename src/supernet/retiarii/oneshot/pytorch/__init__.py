"""`nni.retiarii.oneshot.pytorch`: the trainers with the signatures that they had there."""

from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.oneshot.pytorch.darts import DartsTrainer
from supernet.retiarii.oneshot.pytorch.enas import EnasTrainer
from supernet.retiarii.oneshot.pytorch.proxyless import ProxylessTrainer
from supernet.retiarii.oneshot.pytorch.random import RandomTrainer, SinglePathTrainer
from supernet.retiarii.oneshot.pytorch.utils import replace_input_choice, replace_layer_choice
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

__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch")
