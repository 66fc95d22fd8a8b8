"""Trainable distributions over the architectures of a space, one a file, and what logits say of decisions."""

from supernet.relaxations.decisions import DecisionDistribution
from supernet.relaxations.gates import Gates, binary_gates
from supernet.relaxations.logits import most_probable, new_logits, probabilities
from supernet.relaxations.lstm_policy import EnasController
from supernet.relaxations.relaxation import Relaxation
from supernet.relaxations.softmax import Softmax

__all__ = [
    "DecisionDistribution",
    "EnasController",
    "Gates",
    "Relaxation",
    "Softmax",
    "binary_gates",
    "most_probable",
    "new_logits",
    "probabilities",
]
