"""Random architectures of every space of the hub, and of models made elastic, cost what their frozen networks do."""

import pytest
import torch
from tests.cost.counting import costs_of_frozen
from tests.cost.models_with_choices import MODELS
from torch import nn

from supernet import LayerChoice, SearchSpace
from supernet.cost import Macs, Parameters, Parts, WeightMemory

SLOW = {"Darts", "ShuffleNetV2", "elastic ResNet-50", "elastic MobileNet", "elastic DenseNet", "elastic windows"}
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]


@pytest.mark.parametrize("name", EVERY)
def test_parameters_macs_and_bytes_are_those_of_frozen_networks(name):
    torch.manual_seed(0)
    model, example = MODELS[name]()
    parts, space = Parts(model, example), SearchSpace(model)
    costs, generator = (Parameters(parts), Macs(parts), WeightMemory(parts)), torch.Generator().manual_seed(2)
    for _ in range(4):
        architecture = space.sample(generator)
        assert tuple(cost.of(architecture) for cost in costs) == costs_of_frozen(model, architecture, example)


class Counts(nn.Module):
    """What goes on inside depends on what the model has counted, not on arguments and choices alone."""

    def __init__(self, outer):
        super().__init__()
        self.outer, self.linear = outer, nn.Linear(4, 4)

    def forward(self, x):
        self.outer[0] += 1
        return self.linear(x) if self.outer[0] == 2 else x


def test_a_module_that_does_other_things_when_it_is_called_again_is_not_counted_from_memory():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.times = [0]
            self.counts = Counts(self.times)
            self.layer = LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="layer")

        def forward(self, x):
            self.times[0] = 0
            return self.layer(self.counts(self.counts(x)))

    cost = Macs(Model(), torch.ones(1, 4))
    assert (cost.of({"layer": "linear"}), cost.of({"layer": "skip"})) == (32, 16)


def test_many_architectures_of_a_published_space_are_looked_up_in_little_time():
    """Less than what freezing one takes, each; the figure itself is a benchmark's."""
    model, example = MODELS["MobileNetV3"]()
    cost, space = Macs(model, example), SearchSpace(model)
    generator = torch.Generator().manual_seed(0)
    sampled = [space.sample(generator) for _ in range(300)]
    first = [cost.of(one) for one in sampled]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(cost.parts), "part", None)  # nothing is recorded, or added up, again
        assert [cost.of(one) for one in sampled] == first
