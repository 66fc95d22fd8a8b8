"""Costs and limits that are copied, or sent to another process, which know what they knew and find out what is new."""

import copy
import pickle

import pytest
import torch
from torch import nn

from supernet import LayerChoice, Repeat, SearchSpace, ValueChoice
from supernet.cost import Latency, Limits, Macs, Parameters, PeakMemory, WeightMemory
from supernet.nn import Conv2d

IMAGE = torch.ones(1, 1, 8, 8)


class Network(nn.Sequential):
    """A choice of each kind, one inside another."""

    def __init__(self):
        width = ValueChoice([2, 4, 6], label="width")
        op = LayerChoice({"conv": Conv2d(width, width, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1)}, label="op")
        blocks = Repeat([op, Conv2d(width, width, 1)], (0, 2), label="depth")
        super().__init__(Conv2d(1, width, 1), blocks, Conv2d(width, 2, 1))


def board(layer, args, kwargs):
    """Stand for what measures a layer."""
    return 1.0 + sum(p.numel() for p in layer.parameters())


MADE = {
    "Parameters": lambda model: Parameters(model),
    "Macs": lambda model: Macs(model, IMAGE),
    "PeakMemory": lambda model: PeakMemory(model, IMAGE),
    "WeightMemory": lambda model: WeightMemory(model),
    "Latency": lambda model: Latency(model, IMAGE, measure=board),
}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cost: pickle.loads(pickle.dumps(cost))])
@pytest.mark.parametrize("name", MADE)
def test_a_copy_of_a_cost_gives_what_the_cost_gives(name, copied):
    space, generator = SearchSpace(Network()), torch.Generator().manual_seed(0)
    first, *others = [space.sample(generator) for _ in range(6)]
    cost, untouched = MADE[name](Network()), MADE[name](Network())
    cost.of(first)
    again = copied(cost)
    assert [again.of(one) for one in (first, *others)] == [untouched.of(one) for one in (first, *others)]
    assert [cost.of(one) for one in others] == [untouched.of(one) for one in others]


def test_limits_sent_to_another_process_draw_what_they_would_have_drawn():
    limits = Limits(Network(), {"parameters": 200, "macs": "50%"}, example=IMAGE)
    sent = pickle.loads(pickle.dumps(limits))
    drawn = [one.sample(torch.Generator().manual_seed(3)) for one in (limits, sent)]
    assert drawn[0] == drawn[1]
    assert sent.costs_of(drawn[0]) == limits.costs_of(drawn[0])


class Repeated(nn.Module):
    """A layer that runs as often as the module around it has said: by no choice of its own."""

    def __init__(self):
        super().__init__()
        self.linear, self.times = nn.Linear(4, 4), 1

    def forward(self, x):
        for _ in range(self.times):
            x = self.linear(x)
        return x


class Telling(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Repeated()
        self.rounds, self.times = (ValueChoice(range(1, 30), label=label) for label in ("rounds", "times"))

    def forward(self, x):
        self.inner.times = self.rounds() * self.times()
        return self.inner(x)


def test_a_copy_knows_that_a_module_does_not_tell_by_its_own_choices_what_it_does():
    again = pickle.loads(pickle.dumps(Macs(Telling(), torch.ones(1, 4))))
    drawn = [again.space.sample(torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert [again.of(one) for one in drawn] == [16 * one["rounds"] * one["times"] for one in drawn]
