"""`nni.retiarii.oneshot`."""

from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.oneshot import interface
from supernet.retiarii.oneshot.interface import BaseOneShotTrainer

__all__ = ["BaseOneShotTrainer", "interface"]

__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot")
