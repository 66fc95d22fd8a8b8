"""`nni.retiarii.oneshot`."""

from supernet.trainers import BaseOneShotTrainer

__all__ = ["BaseOneShotTrainer"]
