"""What an architecture costs is what its frozen network costs, and its mean is the sum over all architectures."""

import itertools
import math

import pytest
import torch
from tests.cost.counting import costs_of_frozen
from torch import nn

import supernet.nn as elastic
from supernet import InputChoice, LayerChoice, Repeat, SearchSpace, Supernet, ValueChoice
from supernet.cost import ArchitectureCost, LayerCost, Macs, Parameters, Parts, TableCost, WeightMemory
from supernet.errors import ArchitectureError, CostError


class Everything(nn.Module):
    """Widths, kernels and strides that depend on each other, depth, candidates with choices inside, a set of inputs."""

    def __init__(self):
        super().__init__()
        width = ValueChoice([4, 8], label="width")
        self.stem = elastic.Conv2d(3, width, 3, stride=ValueChoice([1, 2], label="stride"), padding=1)
        inner = ValueChoice([2, 3], label="expansion") * width
        self.block = LayerChoice(
            {
                "deep": nn.Sequential(
                    elastic.Conv2d(width, inner, ValueChoice([1, 3], label="kernel"), padding="same"),
                    elastic.BatchNorm2d(inner),
                    elastic.Conv2d(inner, width, 1),
                ),
                "pool": nn.MaxPool2d(3, 1, 1),
            },
            label="block",
        )
        self.more = Repeat(lambda: elastic.Conv2d(width, width, 3, padding=1), (0, 2), label="depth")
        self.join = InputChoice(3, n_chosen=2, label="join")
        self.head = elastic.Linear(width, 5)
        self.aux = elastic.Linear(width, 5)
        self.aux.weight = self.head.weight

    def forward(self, x):
        x = self.stem(x)
        x = self.join([x, self.block(x), self.more(x)]).mean((2, 3))
        return self.head(x) + self.aux(x)


class Resolution(nn.Module):
    """A value that is called, on which the shapes of all that follows depend, and products outside of layers."""

    def __init__(self):
        super().__init__()
        self.size = ValueChoice([4, 8], label="size")
        self.conv = nn.Conv2d(3, 6, 3)
        self.mix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        x = self.conv(nn.functional.interpolate(x, size=(self.size(), self.size())))
        return torch.einsum("nchw,cd->ndhw", x, self.mix)


@pytest.mark.parametrize("make", [Everything, Resolution])
def test_costs_are_those_of_the_frozen_network(make):
    torch.manual_seed(0)
    model, example = make(), torch.randn(2, 3, 8, 8)
    parts = Parts(model, example)
    costs = Parameters(parts), Macs(parts), WeightMemory(parts)
    for architecture in itertools.islice(SearchSpace(model).enumerate(), 0, None, 5):
        assert tuple(cost.of(architecture) for cost in costs) == costs_of_frozen(model, architecture, example)


def test_the_model_stays_as_it_was_whether_its_choices_are_replaced_or_not():
    model = Everything()
    before = {name: id(t) for name, t in model.named_parameters()}
    architecture = SearchSpace(model).sample(torch.Generator().manual_seed(0))
    plain = Macs(model, torch.ones(1, 3, 8, 8)).of(architecture)
    assert model.training and isinstance(model.block, LayerChoice)
    supernet = Supernet(model)
    assert Macs(supernet, torch.ones(1, 3, 8, 8)).of(architecture) == plain
    assert {name: id(t) for name, t in model.named_parameters()} == before
    assert not any(module._forward_hooks for module in model.modules())


def all_decided(space):
    decisions = [list(space[label]) for label in space]
    for positions in itertools.product(*(range(len(each)) for each in decisions)):
        full = {label: decisions[k][i] for k, (label, i) in enumerate(zip(space, positions, strict=True))}
        yield positions, space.follow(full.__getitem__)


def test_the_mean_is_the_sum_over_all_that_can_be_decided_and_so_is_its_gradient():
    torch.manual_seed(0)
    model = Everything()
    space, cost = SearchSpace(model), Macs(model, torch.ones(1, 3, 8, 8))
    logits = {label: torch.randn(space[label].size, dtype=torch.float64, requires_grad=True) for label in space}
    p = {label: torch.softmax(logits_K, 0) for label, logits_K in logits.items()}
    want = sum(
        math.prod(p[label][i] for label, i in zip(space, positions, strict=True)) * cost.of(architecture)
        for positions, architecture in all_decided(space)
    )
    mean = cost.expected(p)
    assert mean.item() == pytest.approx(want.item(), rel=1e-12)
    for got, right in zip(
        torch.autograd.grad(mean, list(logits.values()), retain_graph=True, materialize_grads=True),
        torch.autograd.grad(want, list(logits.values()), materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-6)


def test_the_mean_of_a_table_counts_an_inner_choice_where_it_is_reached():
    inner = LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, label="inner")
    model = nn.Sequential(LayerChoice({"deep": inner, "flat": nn.Identity()}, label="outer"))
    cost = TableCost(
        SearchSpace(model), {"inner": {"a": 1.0, "b": 3.0}, "outer": {"deep": 10.0, "flat": 20.0}}, constant=5
    )
    p = {"outer": torch.tensor([0.25, 0.75]), "inner": torch.tensor([0.5, 0.5])}
    assert cost.expected(p).item() == pytest.approx(5 + 0.25 * (10 + 2) + 0.75 * 20)
    assert cost.of({"outer": "deep", "inner": "b"}) == 18


def test_a_cost_of_ones_own_sees_the_sizes_that_are_decided():
    model = Everything()
    seen = set()

    def of_conv(layer, shape):
        seen.add((layer.in_channels, layer.out_channels, layer.kernel_size[0], shape))
        return layer.kernel_size[0] ** 2

    cost = LayerCost(model, torch.ones(1, 3, 8, 8), {nn.Conv2d: of_conv}, name="squares")
    architecture = {
        "width": 4, "stride": 2, "block": "deep", "expansion": 2, "kernel": 3, "depth": 1, "join": [0, 1]
    }  # fmt: skip
    assert cost.of(architecture) == 9 + 9 + 1 + 9
    assert {(3, 4, 3, (1, 3, 8, 8)), (4, 8, 3, (1, 4, 4, 4)), (8, 4, 1, (1, 8, 4, 4)), (4, 4, 3, (1, 4, 4, 4))} <= seen


def test_what_is_no_architecture_or_no_number_is_refused():
    model = Everything()
    space = SearchSpace(model)
    with pytest.raises(ArchitectureError, match="leaves 'width' open"):
        Parameters(model).of({})
    with pytest.raises(CostError, match="'mine' is a number, but its function returned 'much'"):
        ArchitectureCost(space, lambda architecture: "much", name="mine").of(space.sample())
    with pytest.raises(
        CostError, match=r"choice 'width' has 2 decisions, so its probabilities are a tensor \(2,\), not None"
    ):
        Parameters(model).expected({})
    with pytest.raises(CostError, match="cost names 'with'"):
        TableCost(space, {"with": {"4": 1.0}})


def test_a_model_that_needs_values_to_run_is_counted_too():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice({"wide": nn.Linear(4, 4), "none": nn.Identity()}, label="layer")
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x)) * (1 if x.sum().item() > 0 else 2)

    cost = Macs(Needs(), torch.ones(3, 4))
    assert (cost.of({"layer": "wide"}), cost.of({"layer": "none"})) == (3 * 16 + 3 * 8, 3 * 8)
