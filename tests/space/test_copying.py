"""Freezing modules that hold more than a network is: tensors of the last pass, locks, files, iterators, generators."""

import copy
import os
import queue
import threading
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from supernet import LayerChoice, freeze


class Keeps(nn.Module):
    """Keeps what its last pass computed, in whatever form `keep` gives it."""

    def __init__(self, keep):
        super().__init__()
        self.linear, self.keep, self.last = nn.Linear(3, 3), keep, None

    def forward(self, x):
        y = self.linear(x)
        self.last = self.keep(y)
        return y * 2


Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    hidden: torch.Tensor


KEPT = {
    "a tensor": (lambda y: y, lambda kept: kept),
    "a list": (lambda y: [None, y], lambda kept: kept[1]),
    "a dict of tuples": (lambda y: {"y": (y,)}, lambda kept: kept["y"][0]),
    "a named tuple": (lambda y: Pair(y, 2), lambda kept: kept.first),
    "a dataclass": (Output, lambda kept: kept.hidden),
}


@pytest.mark.parametrize("what", KEPT)
def test_tensors_of_the_last_pass_are_copied_without_its_graph(what):
    keep, take = KEPT[what]
    torch.manual_seed(0)
    model = nn.Sequential(Keeps(keep), LayerChoice({"op": Keeps(keep), "other": nn.Tanh()}, label="op"))
    x = torch.randn(2, 3)
    model[0](x), model[1]["op"](x)
    network = freeze(model, {"op": "op"})
    for frozen, original in ((network[0], model[0]), (network[1], model[1]["op"])):
        kept, before = take(frozen.last), take(original.last)
        assert torch.equal(kept, before) and kept.grad_fn is None and kept.data_ptr() != before.data_ptr()
        assert before.grad_fn is not None
    assert torch.equal(network(x), model[1]["op"](model[0](x)))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:DeprecationWarning")
def test_norms_of_weights_that_are_computed_in_each_pass_are_copied(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(3, 3)), LayerChoice([nn.Tanh(), nn.ReLU()], label="op"))
    x = torch.randn(2, 3)
    model[0](x).sum().backward()
    network = freeze(model, {"op": 0}).eval()
    assert torch.equal(network(x), model[0].eval()(x).tanh())
    before = copy.deepcopy(model[0].state_dict())
    torch.optim.SGD(network.parameters(), 0.1).zero_grad()
    network(x).sum().backward()
    with torch.no_grad():
        for p in network.parameters():
            p.sub_(p.grad)
    assert not torch.equal(network(x), model[0](x).tanh())
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())


class Holds(nn.Module):
    def __init__(self, thing):
        super().__init__()
        self.linear, self.thing = nn.Linear(3, 3), thing

    def forward(self, x):
        return self.linear(x)


class Uncopyable:
    def __deepcopy__(self, memo):
        raise ValueError("not me")


THINGS = {
    "a lock": threading.Lock,
    "a queue with locks in it": queue.Queue,
    "an open file": lambda: open(os.devnull),  # noqa: SIM115, PTH123
    "a generator": lambda: (i for i in range(3)),
    "an iterator over a loader": lambda: iter(DataLoader([1, 2])),
    "what refuses": Uncopyable,
}


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("inside", [False, True])
def test_what_cannot_be_copied_is_shared_with_a_warning_that_names_it_and_all_else_is_copied(what, inside, caplog):
    thing = THINGS[what]()
    model = nn.Sequential(
        Holds({"deep": [torch.zeros(1), thing]} if inside else thing),
        LayerChoice([Holds(thing), nn.Tanh()], label="op"),
    )
    network = freeze(model, {"op": 0})
    held = network[0].thing["deep"][1] if inside else network[0].thing
    assert held is thing and network[1].thing is thing
    assert f"Holds.thing is a {type(thing).__name__}, which cannot be copied" in caplog.text
    assert len(caplog.records) == 1
    if inside:
        assert network[0].thing["deep"][0] is not model[0].thing["deep"][0]
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in network.parameters()}
    if hasattr(thing, "close"):
        thing.close()


def test_a_generator_of_random_numbers_is_copied_in_its_state(caplog):
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(Holds(generator), LayerChoice([nn.ReLU(), nn.Tanh()], label="op"))
    copied = freeze(model, {"op": 0})[0].thing
    assert copied is not generator
    assert torch.equal(torch.rand(4, generator=copied), torch.rand(4, generator=generator))
    assert not caplog.records


class Refuses(nn.Module):
    def __deepcopy__(self, memo):
        raise ValueError("this module is not to be copied")


def test_what_a_modules_own_copying_raises_is_passed_on():
    model = nn.Sequential(Refuses(), LayerChoice([nn.ReLU(), nn.Tanh()], label="op"))
    with pytest.raises(ValueError, match="this module is not to be copied"):
        freeze(model, {"op": 0})
