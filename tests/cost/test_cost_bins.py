"""Drawing architectures by bins of cost: against the enumeration of spaces, for each bin and within it."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from supernet import LayerChoice, SearchSpace, ValueChoice, require
from supernet.cost import ArchitectureCost, CostBins
from supernet.cost.extremes import extremes
from supernet.errors import CostError, TrainingError


class Space(nn.Module):
    """Widths whose cost is their product, one of them only where it is reached, and one of another prior."""

    def __init__(self):
        super().__init__()
        self.a = ValueChoice([1, 2, 4], label="a", prior=[0.2, 0.3, 0.5])
        inside = nn.ModuleList([ValueChoice([1, 2, 8], label="b")])
        self.op = LayerChoice({"with": inside, "without": nn.Identity()}, label="op")
        self.c = ValueChoice([1, 2, 3], label="c")


def product(architecture):
    return architecture["a"] * architecture.get("b", 1) * architecture["c"]


def space_and_cost(constraint=None):
    model = Space()
    if constraint is not None:
        require(model, constraint(model))
    space = SearchSpace(model)
    return space, ArchitectureCost(space, product)


def probability(architecture):
    of_a = {1: 0.2, 2: 0.3, 4: 0.5}[architecture["a"]]
    return of_a / 2 / (3 if "b" in architecture else 1) / 3


def drawn(bins, count=3_000):
    generator = torch.Generator().manual_seed(1)
    return Counter(tuple(sorted(bins.sample(generator).items())) for _ in range(count))


def check_distribution(bins, space, cost, allows=lambda architecture: True, count=3_000):
    """Each bin is as likely as each other, and within it each architecture as the space has it, of those allowed."""
    counts = drawn(bins, count)
    architectures = [one for one in space.enumerate() if allows(one)]
    for low, high in bins.edges:
        is_last = (low, high) == bins.edges[-1]
        inside = [one for one in architectures if low <= cost.of(one) < high or (is_last and cost.of(one) == high)]
        total = sum(map(probability, inside))
        for one in inside:
            expected = probability(one) / total / len(bins.edges)
            seen = counts.pop(tuple(sorted(one.items())), 0) / count
            # Draws of a bin resemble each other, so four deviations are of a quarter as many as independent ones.
            assert abs(seen - expected) < 4 * math.sqrt(4 * expected / count), one
    assert not counts


@pytest.mark.parametrize("bins", [1, 3, [1, 1.5, 5, 97]])
def test_each_bin_is_equally_likely_and_within_it_the_space_decides(bins):
    space, cost = space_and_cost()
    check_distribution(CostBins(cost, bins), space, cost)


def test_what_constraints_rule_out_is_never_drawn():
    space, cost = space_and_cost(lambda model: model.a * model.c <= 8)
    assert all(one["a"] * one["c"] <= 8 for one in space.enumerate())
    check_distribution(CostBins(cost, 3), space, cost)


def test_what_may_not_be_drawn_never_is():
    space, cost = space_and_cost()

    def allows(architecture):
        return architecture["a"] != 4 and product(architecture) <= 12

    bins = CostBins(
        cost, 2, allows=allows, sample=lambda g: next(a for a in iter(lambda: space.sample(g), 0) if allows(a))
    )
    assert bins.edges[-1][1] == 12
    check_distribution(bins, space, cost, allows)


def test_bins_that_hold_next_to_nothing_are_drawn_from_as_often_as_others():
    """Of 20 widths, all of the first value but one or none: two architectures in a million, one bin in four."""
    space = SearchSpace(nn.ModuleList(ValueChoice([1, 2], label=f"w{i}") for i in range(20)))
    cost = ArchitectureCost(space, lambda architecture: sum(architecture.values()))
    bins = CostBins(cost, [20, 22, 30, 35, 40])
    generator = torch.Generator().manual_seed(0)
    rare = sum(cost.of(bins.sample(generator)) < 22 for _ in range(2000))
    assert abs(rare - 500) < 4 * math.sqrt(2000 / 4)


def test_draws_are_reproducible_and_go_on_exactly():
    _, cost = space_and_cost()
    first, again, rest = (CostBins(cost, 3) for _ in range(3))
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = [first.sample(generators[0]) for _ in range(40)]
    assert [again.sample(generators[1]) for _ in range(20)] == expected[:20]
    rest.load_state_dict(again.state_dict())
    generators[2].set_state(generators[1].get_state())
    assert [rest.sample(generators[2]) for _ in range(20)] == expected[20:]


def test_the_smallest_and_the_largest_are_those_of_an_enumeration():
    space, cost = space_and_cost()
    found = extremes(space, cost.of)
    costs = [cost.of(one) for one in space.enumerate()]
    assert (cost.of(found.smallest), cost.of(found.largest)) == (min(costs), max(costs))


def test_empty_bins_are_left_out(caplog):
    caplog.set_level("INFO", "supernet")
    _, cost = space_and_cost()
    bins = CostBins(cost, [1, 2, 2.5, 2.75, 100])
    assert bins.edges == [(1, 2), (2, 2.5), (2.75, 100)]
    assert "3 of 4 bins of" in caplog.text


@pytest.mark.parametrize(
    ("bins", "error", "message"),
    [
        (0, TrainingError, "bins is a whole number from 1 on"),
        ([3], CostError, "two ascending numbers or more"),
        (["small", 3], CostError, "two ascending numbers or more"),
        (torch.tensor([1.0, 3.0]), CostError, "a list of their edges"),
        ([3, 2], CostError, "two ascending numbers or more"),
        (
            [200, 300],
            CostError,
            "is from 200 to 300; the smallest has 1, the largest 96",
        ),
    ],
)
def test_bins_that_cannot_be_are_refused(bins, error, message):
    with pytest.raises(error, match=message):
        CostBins(space_and_cost()[1], bins)


def test_a_number_of_bins_from_nothing_on_is_refused():
    space, _ = space_and_cost()
    with pytest.raises(CostError, match=r"the smallest architecture has 0 .*; give the bins' edges"):
        CostBins(ArchitectureCost(space, lambda a: product(a) - 1), 3)
