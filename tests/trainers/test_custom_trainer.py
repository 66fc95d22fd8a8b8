"""The trainer that `examples/custom_trainer.py` shows to users who write their own."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import BaseOneShotTrainer, InputChoice, LayerChoice, SearchSpace, freeze, restore

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_trainer.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn", reason="the example's data comes with scikit-learn")
    spec = importlib.util.spec_from_file_location("custom_trainer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Planted(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"wrong": Times(-1.0), "right": Times(1.0)}, label="op")
        self.skip = InputChoice(2, 1, label="skip")
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.skip([-x, self.op(x) * self.scale])


def test_it_finds_the_planted_architecture_for_10_of_10_seeds(example):
    for seed in range(10):
        torch.manual_seed(seed)
        X = torch.randn(512, 4)
        metrics = nn.functional.l1_loss
        trainer = example.DartsTrainer(Planted(), nn.MSELoss(), metrics, TensorDataset(X, X), 5, batch_size=16)
        trainer.fit()
        assert trainer.export() == {"op": "right", "skip": [1]}


def test_its_result_on_real_data_is_frozen_and_retrained_like_any_other(example):
    architecture, result = example.main(num_epochs=3)
    SearchSpace(example.Net()).validate(architecture)
    assert result["accuracy"] > 0.8  # ten classes


def test_the_trained_weights_come_along_into_the_frozen_network_and_back(example):
    torch.manual_seed(0)
    X = torch.randn(64, 1, 8, 8)
    model = example.Net()
    trainer = example.DartsTrainer(
        model, nn.CrossEntropyLoss(), example.accuracy, TensorDataset(X, X[:, 0, 0, 0].long().clamp(0, 9)), 1, 16
    )
    trainer.fit()
    architecture = trainer.export()
    network = freeze(model, architecture)
    stem = dict(trainer.nas_modules)["stem"].op_choices[architecture["stem"]]
    assert torch.equal(network.stem.weight, stem.weight)
    assert torch.equal(freeze(restore(model), architecture).stem.weight, stem.weight)


def test_a_trainer_is_asked_for_fit_and_export_only():
    class Nothing(BaseOneShotTrainer):
        def fit(self):
            return None

        def export(self):
            return {}

    assert Nothing().export() == {}
    assert BaseOneShotTrainer.__abstractmethods__ == {"fit", "export"}
