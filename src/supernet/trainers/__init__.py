"""Trainers: what trains a supernet and names an architecture."""

from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.callbacks import Callback, CsvFile, TensorBoard
from supernet.trainers.darts import DartsTrainer
from supernet.trainers.health import DartsPlusStopping, StableStopping
from supernet.trainers.loop import LoopOptions, SupernetTrainer
from supernet.trainers.metrics import accuracy
from supernet.trainers.run_directory import Checkpointing

__all__ = [
    "BaseOneShotTrainer",
    "Callback",
    "Checkpointing",
    "CsvFile",
    "DartsPlusStopping",
    "DartsTrainer",
    "LoopOptions",
    "StableStopping",
    "SupernetTrainer",
    "TensorBoard",
    "accuracy",
]
