"""What keeps limits and what teaches, in searches that several processes share: the promises of every trainer hold."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet.nn
from supernet import (
    DartsTrainer,
    Distillation,
    EnasTrainer,
    LayerChoice,
    RandomTrainer,
    SinglePathTrainer,
    ValueChoice,
    accuracy,
)
from supernet.testing import check_trainer

LIMITS = {"parameters": 100}  # of at most 114


def reward(output, y):
    return (output.argmax(1) == y).float().mean().item()


def make(kind, own, is_taught, **options):
    torch.manual_seed(0)
    width = ValueChoice([4, 8, 16], label="width")
    activation = LayerChoice([nn.ReLU(), nn.Tanh()], label="activation")
    model = nn.Sequential(supernet.nn.Linear(4, width), activation, supernet.nn.Linear(width, 2))
    X = torch.randn(64, 4)
    if is_taught:
        own = {**own, "distillation": Distillation(nn.Linear(4, 2).requires_grad_(False))}
    return kind(
        model,
        loss=nn.CrossEntropyLoss(),
        metrics=accuracy,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        num_epochs=2,
        dataset=TensorDataset(X, (X.prod(1) > 0).long()),
        batch_size=8,
        device="cpu",
        progress=False,
        limits=LIMITS,
        **own,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "own", "is_taught"),
    [
        (
            SinglePathTrainer,
            {"sandwich": 2, "cost_bins": 3, "distillation": Distillation("largest"), "num_evaluations": 4},
            False,
        ),
        (RandomTrainer, {"num_samples": 4, "num_finalists": 2}, True),
        (DartsTrainer, {}, True),
        (EnasTrainer, {"reward_function": reward}, False),
    ],
    ids=["SinglePath", "Random", "Darts", "Enas"],
)
def test_two_processes_run_one_search_under_limits(kind, own, is_taught):
    check_trainer(partial(make, kind, own, is_taught), processes=2)
