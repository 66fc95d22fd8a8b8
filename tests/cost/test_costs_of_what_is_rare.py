"""What hardly any random network has costs what it costs."""

import pytest
import torch
from torch import nn

import supernet.nn as snn
from supernet import LayerChoice, ValueChoice, freeze, require
from supernet.cost import Macs, Parameters, Parts, WeightMemory


def nested(depth, prior=None):
    """A layer inside as many choices."""
    inner: nn.Module = nn.Linear(3, 3)
    for i in range(depth):
        inner = LayerChoice({"in": inner, "out": nn.Identity()}, label=f"choice{i}", prior=prior)
    return nn.Sequential(inner), {f"choice{i}": "in" for i in range(depth)}


def kept_by_few():
    a, b = (ValueChoice(list(range(1, 31)), label=label) for label in "ab")
    inner = nn.Sequential(snn.Linear(3, a), snn.Linear(a, b), snn.Linear(b, 3))
    model = nn.Sequential(LayerChoice({"wide": inner, "none": nn.Identity()}, label="op"))
    return require(model, a == b), {"op": "wide", "a": 5, "b": 5}


@pytest.mark.parametrize(
    ("model", "architecture"),
    [nested(12), nested(3, prior=[0.001, 0.999]), kept_by_few()],
    ids=["deep", "prior", "few"],
)
def test_it_is_that_of_the_frozen_network(model, architecture):
    network = freeze(model, architecture)
    parts = Parts(model, torch.ones(1, 3))
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    number = sum(p.numel() for p in network.parameters())
    assert Parameters(model).of(architecture) == Parameters(parts).of(architecture) == number
    assert WeightMemory(parts).of(architecture) == 4 * number
    assert Macs(parts).of(architecture) == sum(layer.in_features * layer.out_features for layer in linears)


def test_its_mean_is_its_share():
    model, architecture = nested(12)
    mean = Parameters(model).expected({label: torch.tensor([0.5, 0.5]) for label in architecture})
    assert mean.item() == pytest.approx(12 / 2**12)
