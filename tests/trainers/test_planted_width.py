"""Each trainer finds a planted width and a planted value: right by construction, among rivals that are wrong."""

import pytest
import torch
from test_planted import negative_error
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet
from supernet import DartsTrainer, EnasTrainer, ProxylessTrainer, RandomTrainer, SinglePathTrainer, ValueChoice


class Planted(nn.Module):
    """The target is the sum of the first two features: a narrower layer misses one, a wider one adds noise.

    The right width is so for each factor, the right factor for each width, and neither is a mean of rivals.
    """

    def __init__(self):
        super().__init__()
        width = ValueChoice([1, 2, 3, 4], label="width")
        self.first = supernet.nn.Linear(4, width, bias=False)
        self.first.weight = nn.Parameter(torch.eye(4), requires_grad=False)
        self.sum = supernet.nn.Linear(width, 1, bias=False)
        self.sum.weight = nn.Parameter(torch.ones(1, 4), requires_grad=False)
        self.factor = ValueChoice([0.25, 1.0, 0.5], label="factor")
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.sum(self.first(x)) * self.factor() * self.scale


CASES = {
    "darts": (DartsTrainer, {"arc_learning_rate": 0.02}),
    "darts, second order": (DartsTrainer, {"arc_learning_rate": 0.02, "unrolled": True}),
    "enas": (
        EnasTrainer,
        {
            "num_epochs": 12,
            "reward_function": negative_error,
            "ctrl_steps_aggregate": 4,
            "ctrl_lr": 0.02,
            "baseline_decay": 0.9,
            "ctrl_kwargs": {"lstm_size": 16, "tanh_constant": 2.5},
            "num_samples": 20,
        },
    ),
    "proxyless": (ProxylessTrainer, {"num_epochs": 12, "arc_learning_rate": 0.05}),
    "reinforce": (
        ProxylessTrainer,
        {"num_epochs": 16, "arc_learning_rate": 0.03, "estimator": "reinforce", "baseline_decay": 0.9},
    ),
    "single path": (SinglePathTrainer, {"num_epochs": 1, "num_evaluations": 12, "population": 4, "num_parents": 2}),
    "random": (RandomTrainer, {"num_epochs": 1, "num_samples": 100, "num_finalists": 3}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 10), marks=pytest.mark.slow)], ids=["1", "9 others"])
def test_every_trainer_finds_the_planted_width_for_each_of_10_seeds(case, seeds):
    trainer_class, its_own = CASES[case]
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        X, model = torch.randn(512, 4), Planted()
        trainer = trainer_class(
            model,
            loss=nn.functional.mse_loss,
            metrics=None,
            optimizer=SGD([model.scale], 1e-3),
            dataset=TensorDataset(X, X[:, :2].sum(1, keepdim=True)),
            batch_size=16,
            seed=seed,
            **{"num_epochs": 4, **its_own},
        )
        trainer.fit()
        found.append(trainer.export())
    assert found == [{"width": 2, "factor": 1.0}] * len(seeds)
