"""Trainers: what trains a supernet and names an architecture."""

from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.darts import DartsTrainer
from supernet.trainers.loop import LoopOptions, SupernetTrainer
from supernet.trainers.metrics import accuracy

__all__ = ["BaseOneShotTrainer", "DartsTrainer", "LoopOptions", "SupernetTrainer", "accuracy"]
