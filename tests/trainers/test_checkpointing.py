"""Cells under `torch.utils.checkpoint`, in both of its forms, train as they do without it."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, InputChoice, LayerChoice, ProxylessTrainer, SinglePathTrainer
from supernet.errors import TrainingError

DATA = TensorDataset(
    torch.randn(16, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
)


class Cell(nn.Module):
    def __init__(self, label):
        super().__init__()
        conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.op = LayerChoice({"conv": conv, "skip": nn.Identity()}, label=label)
        self.join = InputChoice(2, label=f"{label}_join")

    def forward(self, x):
        return self.join([self.op(x).tanh(), x])


class Net(nn.Module):
    def __init__(self, use_reentrant, labels, checkpointed):
        super().__init__()
        torch.manual_seed(1)
        self.use_reentrant, self.checkpointed = use_reentrant, checkpointed
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.cells = nn.ModuleList(map(Cell, labels))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for cell, is_checkpointed in zip(self.cells, self.checkpointed, strict=True):
            if is_checkpointed and self.use_reentrant is not None:
                x = checkpoint(cell, x, use_reentrant=self.use_reentrant)
            else:
                x = cell(x)
        return self.fc(x.mean((2, 3)))


def trained(trainer, use_reentrant, labels, checkpointed, **options):
    """Return all that a search has trained, but the statistics of norms: a checkpoint moves these twice."""
    model = Net(use_reentrant, labels, checkpointed).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # in passes without gradients
        search = trainer(model, loss, None, optimizer, 2, DATA, batch_size=4, seed=0, **options)
        search.fit()
    return [*model.parameters(), *getattr(search, "alphas", {}).values()]


DIFFERENT, SHARED = ("one", "other"), ("cell", "cell")
COST = {"one": {"conv": 1.0, "skip": 0.1}, "other": {"conv": 1.0, "skip": 0.1}}
WAYS = [
    (DartsTrainer, DIFFERENT, (True, True), {"arc_learning_rate": 0.1}),
    (DartsTrainer, DIFFERENT, (True, False), {"arc_learning_rate": 0.1, "accumulate": 2}),
    (DartsTrainer, SHARED, (True, True), {"arc_learning_rate": 0.1, "memory": "lean"}),
    (DartsTrainer, SHARED, (False, True), {"arc_learning_rate": 0.1, "unrolled": True}),
    (ProxylessTrainer, DIFFERENT, (True, True), {"arc_learning_rate": 0.1, "cost": COST}),
    (ProxylessTrainer, SHARED, (True, True), {"arc_learning_rate": 0.1}),
    (SinglePathTrainer, SHARED, (True, True), {"num_evaluations": 2}),
]


@pytest.mark.parametrize(("way", "use_reentrant"), list(itertools.product(range(len(WAYS)), [False, True])))
def test_a_search_under_checkpoint_trains_as_without(way, use_reentrant):
    trainer, labels, checkpointed, options = WAYS[way]
    expected = trained(trainer, None, labels, checkpointed, **options)
    found = trained(trainer, use_reentrant, labels, checkpointed, **options)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


class OnlyWithGradients(Net):
    def forward(self, x):
        used, self.use_reentrant = self.use_reentrant, self.use_reentrant if torch.is_grad_enabled() else None
        try:
            return super().forward(x)
        finally:
            self.use_reentrant = used


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("trainer", [DartsTrainer, ProxylessTrainer])
def test_a_reentrant_checkpoint_that_the_trial_does_not_meet_is_refused_before_a_gradient_is_lost(trainer):
    model = OnlyWithGradients(True, DIFFERENT, (True, True)).double()
    before = [p.clone() for p in model.parameters()]
    search = trainer(model, nn.CrossEntropyLoss(), None, torch.optim.SGD(model.parameters(), 0.1), 1, DATA)
    with pytest.raises(TrainingError, match=r"choice 'one' runs under .*pass use_reentrant=False"):
        search.fit()
    assert all(map(torch.equal, model.parameters(), before))
