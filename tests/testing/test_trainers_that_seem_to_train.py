"""Trainers that would pass for trained are refused by the promise that they break."""

import re
from functools import partial

import pytest
import torch
from searches import KINDS, search

from supernet import DartsTrainer, EnasTrainer
from supernet.errors import TrainingError
from supernet.testing import check_trainer

SMALL = {"num_epochs": 2, "batch_size": 12}


class MovesNoAlpha(DartsTrainer):
    """a search moves what trains the architecture; but stateful().relaxation.logits.stem"""

    def train_architecture(self, val_X, val_y, *training):
        with torch.no_grad(), self.frozen_weights():
            self.compute_loss("valid", self.forward(val_X, self.plan()), val_y)


class AlphaStepMovesWeights(DartsTrainer):
    """train_architecture moves no weight; but it moves"""

    def train_architecture(self, val_X, val_y, *training):
        super().train_architecture(val_X, val_y, *training)
        loss = self.compute_loss("valid", self.forward(val_X, self.weights_plan()), val_y)
        self.optimizer_step(loss, self.optimizer, clip=self.grad_clip)


class LeavesEvalForm(DartsTrainer):
    """training form and requires_grad are after a search as before; but these differ: module ''"""

    def fit(self, resume=None):
        super().fit(resume)
        self.model.eval().requires_grad_(False)


class HasACounterThatIsScanned(DartsTrainer):
    """stateful() names all that a checkpoint holds of the algorithm; but not counter"""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.counter = 0

    def train_step(self, *batches):
        self.counter += 1
        super().train_step(*batches)


class NeverStepsItsController(EnasTrainer):
    """a search moves what trains the architecture; but stateful().controller"""

    def train_controller(self):
        self.pending = []


class DoesNothing(DartsTrainer):
    """no step of epoch 1 has computed a loss on the training part; let a step take it from compute_loss("train","""

    def train_step(self, *batches):
        pass


OPTIONS = {NeverStepsItsController: KINDS["enas"][1]}
FAULTY = [kind for kind in globals().values() if isinstance(kind, type) and kind.__module__ == __name__]


@pytest.mark.parametrize("kind", FAULTY)
def test_a_trainer_that_only_seems_to_train_is_refused_by_name(kind, monkeypatch):
    monkeypatch.setitem(KINDS, "faulty", (kind, OPTIONS.get(kind, {"arc_learning_rate": 0.05})))
    with pytest.raises((AssertionError, TrainingError), match=re.escape(kind.__doc__)):
        check_trainer(partial(search, "faulty", **SMALL))
