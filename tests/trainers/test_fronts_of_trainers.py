"""A trainer searches its supernet for a front, and its run directory keeps what was measured."""

import json

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import LayerChoice, SinglePathTrainer, accuracy
from supernet.search import Front


def test_a_second_search_under_another_budget_measures_only_what_is_new(tmp_path, monkeypatch):
    torch.manual_seed(0)
    candidates = [{"linear": nn.Linear(3, 3), "tanh": nn.Tanh(), "none": nn.Identity()} for _ in range(2)]
    layers = [LayerChoice(some, label=f"l{i}") for i, some in enumerate(candidates)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(3), nn.Linear(3, 2))
    X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(X, (X.prod(1) > 0).long())
    trainer = SinglePathTrainer(
        model, nn.CrossEntropyLoss(), accuracy, SGD(model.parameters(), 0.1), 1, data, num_evaluations=2, batch_size=8,
        run_dir=tmp_path / "run", limits={"parameters": 30},
    )  # fmt: skip
    trainer.fit()
    measured = []
    measure = type(trainer.evaluator).measure
    monkeypatch.setattr(
        type(trainer.evaluator), "measure", lambda self, *args: measured.append(args[0]) or measure(self, *args)
    )
    front = trainer.search_front({"accuracy": "max", "parameters": "min"}, 9)
    assert len(front.entries) == 8  # of 9 architectures one has more than 30 parameters
    assert front.budgets == [{"parameters": (float("-inf"), 30.0)}]
    trainer.evaluator.evaluations.clear()
    before = len(measured)
    everything = trainer.search_front({"accuracy": "max"}, 9, limits={"parameters": 40})
    assert len(everything.entries) == 9
    assert [json.dumps(one) for one in measured[before:]] == ['{"l0": "linear", "l1": "linear"}']
    assert Front.load(tmp_path / "run" / "front.json", trainer.space).to_json() == everything.to_json()
