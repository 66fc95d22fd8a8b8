"""What a summary says of a space: against counting by hand, and against the frozen networks."""

import copy
import logging

import pytest
import torch
from torch import nn

import supernet
from supernet import InputChoice, LayerChoice, SearchSpace, ValueChoice, freeze
from supernet.errors import SpaceError


class Net(nn.Module):
    """Two widths, an operation, and tied weights."""

    def __init__(self):
        super().__init__()
        a, b = (ValueChoice([2, 4, 8], label=label) for label in "ab")
        self.first, self.second = supernet.nn.Linear(4, a), supernet.nn.Linear(a, b)
        self.op = LayerChoice({"linear": nn.Linear(3, 3), "bilinear": nn.Linear(3, 3, bias=False)}, label="op")
        self.third = supernet.nn.Linear(b, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.op["linear"].weight
        self.two = InputChoice(2, 1, label="in")

    def forward(self, x):
        x = self.third(self.second(self.first(x)))
        return self.two([self.op(x), self.tied(x)])


def by_hand(architecture):
    """Parameters and MACs for one sample: a Linear (i, o) has i o + o and i o. The tied weight counts once."""
    a, b, is_linear = architecture["a"], architecture["b"], architecture["op"] == "linear"
    layers = [(4, a), (a, b), (b, 3)]
    parameters = sum(i * o + o for i, o in layers) + 9 + 3 + (3 if is_linear else 9)
    return parameters, sum(i * o for i, o in layers) + 9 + 9


def test_all_networks_of_a_small_space_are_looked_at():
    model = Net()
    space = SearchSpace(model)
    summary = space.summary(model, torch.ones(1, 4))
    assert (summary.num_architectures, summary.is_exact) == (36, True)
    ranked = sorted(by_hand(architecture)[0] for architecture in space.enumerate())
    assert [row.parameters for row in (summary.smallest, summary.median, summary.largest)] == [
        ranked[0],
        ranked[17],
        ranked[-1],
    ]
    for row in (summary.smallest, summary.median, summary.largest):
        assert (row.parameters, row.macs) == by_hand(row.architecture)
        assert row.parameters == sum(p.numel() for p in freeze(model, row.architecture).parameters())
    assert str(summary).splitlines()[0] == "36 architectures"
    assert summary.largest.macs == by_hand({"a": 8, "b": 8, "op": "bilinear"})[1]


def test_the_smallest_and_the_largest_of_a_large_space_are_found_by_changing_one_decision_at_a_time():
    widths = [ValueChoice(range(1, 21), label=f"w{i}") for i in range(5)]
    layers = [supernet.nn.Linear(a, b) for a, b in zip([3, *widths], [*widths, 2], strict=True)]
    model = nn.Sequential(*layers)
    space = SearchSpace(model)
    summary = space.summary(model, torch.ones(1, 3), num_samples=10)
    assert not summary.is_exact and summary.num_architectures == 20**5
    assert summary.smallest.architecture == dict.fromkeys(space, 1)
    assert summary.largest.architecture == dict.fromkeys(space, 20)
    assert summary.smallest.macs == 3 + 4 + 2
    constrained = space.require(widths[0] >= 5, widths[1] <= widths[0])
    narrow = constrained.summary(model, torch.ones(1, 3), num_samples=10)
    assert narrow.smallest.architecture == {**dict.fromkeys(space, 1), "w0": 5}


def test_macs_of_convolutions_are_those_of_the_formula_and_scale_with_the_batch():
    model = nn.Sequential(LayerChoice({"conv": nn.Conv2d(3, 8, 3, padding=1), "one": nn.Conv2d(3, 8, 1)}, label="op"))
    summary = SearchSpace(model).summary(model, torch.ones(2, 3, 5, 5))
    assert summary.largest.macs == 2 * 5 * 5 * 8 * 3 * 9
    assert summary.smallest.macs == 2 * 5 * 5 * 8 * 3


class NeedsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Linear(2, 2), nn.Identity()], label="op")

    def forward(self, x, scale=1.0):
        return self.op(x) * scale if x.sum().item() > 0 else x


def test_a_model_that_needs_values_is_run_with_them_and_stays_as_it_was():
    model = NeedsValues().train()
    before = copy.deepcopy(model.state_dict())
    for example in (torch.ones(1, 2), (torch.ones(1, 2), 2.0), {"x": torch.ones(1, 2), "scale": 2.0}):
        assert SearchSpace(model).summary(model, example).largest.macs == 4
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_of_another_space_is_refused(caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(SpaceError, match="not the space of this NeedsValues"):
        SearchSpace(Net()).summary(NeedsValues(), torch.ones(1, 2))
