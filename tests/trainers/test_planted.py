"""Each trainer finds an answer that is planted among rivals which are wrong by construction."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Swap(nn.Module):
    def forward(self, x):
        return 2 * x.flip(-1)


class Planted(nn.Module):
    """The target is the input: one path gives it, all rivals its negative, or something uncorrelated with it."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"backward": Times(-0.5), "right": Times(1.0), "negative": Times(-1.0)}, label="inner")
        candidates = {"wrong": Times(-1.0), "right": nn.Sequential(Times(1.0), inner), "swapped": Swap()}
        self.op = LayerChoice(candidates, label="op")
        self.input = InputChoice(3, 1, label="input")
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.input([-2 * x, self.op(x) * self.scale, 2 * x.flip(0)])


def negative_error(output, target):
    return -nn.functional.mse_loss(output, target)


@pytest.mark.parametrize(
    ("trainer_class", "its_own"),
    [
        (DartsTrainer, {"arc_learning_rate": 0.02}),
        (DartsTrainer, {"arc_learning_rate": 0.02, "unrolled": True}),
        (
            EnasTrainer,
            {
                "num_epochs": 8,
                "reward_function": negative_error,
                "ctrl_steps_aggregate": 4,
                "ctrl_lr": 0.02,
                "baseline_decay": 0.9,
                "ctrl_kwargs": {"lstm_size": 16, "tanh_constant": 2.5},
                "num_samples": 10,
            },
        ),
        (ProxylessTrainer, {"arc_learning_rate": 0.05}),
        (
            ProxylessTrainer,
            {"num_epochs": 16, "arc_learning_rate": 0.03, "estimator": "reinforce", "baseline_decay": 0.9},
        ),
        (SinglePathTrainer, {"num_evaluations": 15, "population": 4, "num_parents": 2}),
        (RandomTrainer, {"num_samples": 200, "num_finalists": 3}),
    ],
)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 10), marks=pytest.mark.slow)])
def test_every_trainer_finds_the_planted_architecture_for_each_of_10_seeds(trainer_class, its_own, seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        X = torch.randn(512, 4)
        model = Planted()
        trainer = trainer_class(
            model,
            loss=nn.functional.mse_loss,
            metrics=None,
            optimizer=SGD(model.parameters(), 1e-3),
            dataset=TensorDataset(X, X),
            batch_size=16,
            seed=seed,
            **{"num_epochs": 4, **its_own},
        )
        trainer.fit()
        found.append(trainer.export())
    assert found == [{"op": "right", "inner": "right", "input": [1]}] * len(seeds)
