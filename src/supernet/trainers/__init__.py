"""Trainers: what trains a supernet and names an architecture."""

from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.callbacks import Callback, CsvFile, TensorBoard
from supernet.trainers.darts import DartsTrainer
from supernet.trainers.enas import EnasController, EnasTrainer
from supernet.trainers.health import DartsPlusStopping, StableStopping
from supernet.trainers.loop import LoopOptions, SupernetTrainer
from supernet.trainers.metrics import accuracy
from supernet.trainers.proxyless import ProxylessTrainer
from supernet.trainers.random_search import RandomTrainer
from supernet.trainers.run_directory import Checkpointing
from supernet.trainers.sampled import SampledOptions, SampledTrainer
from supernet.trainers.single_path import SinglePathTrainer
from supernet.trainers.weights import load_weights

__all__ = [
    "BaseOneShotTrainer",
    "Callback",
    "Checkpointing",
    "CsvFile",
    "DartsPlusStopping",
    "DartsTrainer",
    "EnasController",
    "EnasTrainer",
    "LoopOptions",
    "ProxylessTrainer",
    "RandomTrainer",
    "SampledOptions",
    "SampledTrainer",
    "SinglePathTrainer",
    "StableStopping",
    "SupernetTrainer",
    "TensorBoard",
    "accuracy",
    "load_weights",
]
