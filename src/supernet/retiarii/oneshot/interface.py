"""`nni.retiarii.oneshot.interface`."""

from supernet.retiarii.absent import names_absent_from
from supernet.trainers import BaseOneShotTrainer

__all__ = ["BaseOneShotTrainer"]

__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.interface")
