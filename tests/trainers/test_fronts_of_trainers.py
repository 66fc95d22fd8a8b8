"""A trainer searches its supernet for a front, and its run directory keeps what was measured."""

import json

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet.nn as elastic
from supernet import LayerChoice, SearchSpace, SinglePathTrainer, ValueChoice, accuracy
from supernet.cost import Limits, TableCost
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


@pytest.mark.parametrize("made", [False, True])
def test_a_search_under_other_limits_knows_the_example_and_the_costs_of_the_trainer(made):
    model = nn.Sequential(elastic.Linear(4, width := ValueChoice([2, 4, 8], label="width")), elastic.Linear(width, 2))
    X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    # A board's: the latency of this machine would be another.
    board = TableCost(SearchSpace(model), {"width": {2: 1.0, 4: 2.0, 8: 4.0}}, name="latency_ms", unit="ms")
    limits, example = {"parameters": "100%"}, torch.zeros(1, 4)
    given = {"limits": limits, "costs": {"latency_ms": board}}
    trainer = SinglePathTrainer(
        model, nn.CrossEntropyLoss(), accuracy, SGD(model.parameters(), 0.1), 1, TensorDataset(X, (X[:, 0] > 0).long()),
        num_evaluations=2, **({"limits": Limits(model, **given, example=example)} if made else given),
    )  # fmt: skip
    front = trainer.search_front({"accuracy": "max", "macs": "min"}, 9, limits=[{"latency_ms": 2.0}, {"macs": 20}])
    macs_of = {entry.architecture["width"]: entry.costs["macs"] for entry in front.entries}
    assert macs_of == {2: 4 * 2 + 2 * 2, 4: 4 * 4 + 4 * 2}
    assert {entry.costs["latency_ms"] for entry in front.entries} == {1.0, 2.0}
    dearer = TableCost(trainer.space, {"width": {2: 2.0, 4: 4.0, 8: 8.0}}, name="latency_ms")
    other = Limits(trainer.space, {"latency_ms": 2.0}, costs={"latency_ms": dearer})
    (only,) = trainer.search_front({"accuracy": "max"}, 9, limits=other).entries
    assert (only.architecture, only.costs["latency_ms"]) == ({"width": 2}, 2.0)
