"""Each trainer finds a planted depth: right by construction, among rivals that are wrong."""

import pytest
import torch
from test_planted_width import CASES
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import Repeat


class Turned(nn.Module):
    """Moves each feature to the next place: another number of times gives what has nothing to do with the target."""

    def forward(self, x):
        return torch.roll(x, 1, 1)


class Planted(nn.Module):
    def __init__(self):
        super().__init__()
        self.turns, self.scale = Repeat(Turned, (1, 4), label="depth"), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.turns(x) * self.scale


QUICK = ("darts, second order", "single path", "random")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 10), marks=pytest.mark.slow)], ids=["1", "9 others"])
def test_every_trainer_finds_the_planted_depth_for_each_of_10_seeds(case, seeds):
    trainer_class, its_own = CASES[case]
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        X, model = torch.randn(512, 5), Planted()
        trainer = trainer_class(
            model,
            loss=nn.functional.mse_loss,
            metrics=None,
            optimizer=SGD([model.scale], 1e-3),
            dataset=TensorDataset(X, torch.roll(X, 2, 1)),
            batch_size=16,
            seed=seed,
            **{"num_epochs": 4, **its_own},
        )
        trainer.fit()
        found.append(trainer.export())
    assert found == [{"depth": 2}] * len(seeds)
