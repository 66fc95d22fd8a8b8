"""Trainers: what trains a supernet and names an architecture."""

from supernet.files.weights import load_weights
from supernet.relaxations import EnasController
from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.bilevel import BilevelTrainer
from supernet.trainers.darts import DartsTrainer
from supernet.trainers.enas import EnasTrainer
from supernet.trainers.proxyless import ProxylessTrainer
from supernet.trainers.random_search import RandomTrainer
from supernet.trainers.sampled import SampledTrainer
from supernet.trainers.single_path import SinglePathTrainer
from supernet.trainers.subnet_search import SampledOptions, SubnetSearchTrainer
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.callbacks import Callback, CsvFile, TensorBoard
from supernet.training.config import FabricConfig, LoopOptions, TrainerArguments, TrainingConfig
from supernet.training.distillation import Distillation, Taught, kl_divergence
from supernet.training.health import DartsPlusStopping, StableStopping
from supernet.training.metrics import accuracy
from supernet.training.run_directory import Checkpointing
from supernet.training.stored_logits import WithLogits, store_logits

__all__ = [
    "BaseOneShotTrainer",
    "BilevelTrainer",
    "Callback",
    "Checkpointing",
    "CsvFile",
    "DartsPlusStopping",
    "DartsTrainer",
    "Distillation",
    "EnasController",
    "EnasTrainer",
    "FabricConfig",
    "LoopOptions",
    "ProxylessTrainer",
    "RandomTrainer",
    "SampledOptions",
    "SampledTrainer",
    "SinglePathTrainer",
    "StableStopping",
    "SubnetSearchTrainer",
    "SupernetTrainer",
    "Taught",
    "TensorBoard",
    "TrainerArguments",
    "TrainingConfig",
    "WithLogits",
    "accuracy",
    "kl_divergence",
    "load_weights",
    "store_logits",
]
