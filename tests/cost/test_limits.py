"""Limits: as they are given, what keeps them, and what is said where nothing does."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import supernet.nn as elastic
from supernet import SearchSpace, ValueChoice
from supernet.cost import ArchitectureCost, Limits, Parameters
from supernet.errors import CostError
from supernet.search import EvolutionSearcher, search


def mlp(widths=(8, 16, 32), layers=3):
    values = [ValueChoice(list(widths), label=f"width{i}") for i in range(layers)]
    sizes = [4, *values, 2]
    return nn.Sequential(*(elastic.Linear(a, b) for a, b in pairwise(sizes)))


def test_limits_say_which_architectures_keep_them_and_by_how_much_others_do_not():
    model = mlp()
    limits, cost = Limits(model, {"parameters": (400, 1_000)}), Parameters(model)
    for architecture in SearchSpace(model).enumerate():
        number = cost.of(architecture)
        assert limits(architecture) == (400 <= number <= 1_000)
        beyond = max((400 - number) / 400, (number - 1_000) / 1_000)
        assert limits.excess(architecture) == ({"parameters": pytest.approx(beyond)} if beyond > 0 else {})


def test_a_share_is_of_what_the_largest_network_costs():
    model = mlp()
    largest = Parameters(model).of({f"width{i}": 32 for i in range(3)})
    limits = Limits(model, {"parameters": "50%", "macs": ("10%", None)}, example=torch.ones(1, 4))
    assert limits.bounds["parameters"] == (-math.inf, pytest.approx(largest / 2))
    assert limits.bounds["macs"] == (pytest.approx(0.1 * (4 * 32 + 32 * 32 * 2 + 32 * 2)), math.inf)


@pytest.mark.parametrize("limit", [2_000, (200, None), (200, 2_000)])
def test_limits_can_be_made_of_the_bounds_of_others(limit):
    model = mlp()
    limits = Limits(model, {"parameters": limit})
    assert Limits(model, limits.bounds).bounds == limits.bounds


def test_what_rarely_keeps_a_limit_is_found_all_the_same():
    model = mlp(widths=range(8, 72, 8), layers=6)  # 8 of 262,144 networks are that small
    limits = Limits(model, {"parameters": 440})
    sampled = [limits.sample(torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert all(limits.costs_of(one)["parameters"] <= 440 for one in sampled)


def test_a_searcher_keeps_limits():
    model = mlp()
    limits = Limits(model, {"parameters": 700})
    found = search(
        EvolutionSearcher(limits.space, population=8, constraint=limits),
        lambda architectures: [sum(one.values()) for one in architectures],
        budget=40,
    )
    allowed = [one for one in limits.space.enumerate() if limits(one)]
    assert len(found) == len(allowed)
    assert found[0].score == max(sum(one.values()) for one in allowed)


def test_a_limit_that_nothing_meets_names_the_nearest_and_its_cost():
    with pytest.raises(
        CostError, match=r"the nearest has parameters 202 \(at most 100\), as \{'width0': 8, 'width1': 8"
    ):
        Limits(mlp(), {"parameters": 100})


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        ({"flops": 3}, {}, "there is no cost 'flops'; known are parameters, macs"),
        ({"macs": 3}, {}, "give example=, what the model is called with"),
        ({"parameters": "lots"}, {}, "is a number, a share such as '60%', or \\(least, most\\), not 'lots'"),
        ({"parameters": (None, None)}, {}, "not \\(None, None\\)"),
        ({"parameters": (9, 3)}, {}, "9 is more than 3"),
        ({"parameters": float("nan")}, {}, "not nan"),
        ({"parameters": math.inf}, {}, "not inf"),
        ({"parameters": (math.inf, 9)}, {}, "not \\(inf, 9\\)"),
        ({"mine": 3}, {"costs": {"mine": len}}, "the cost 'mine' is a Cost, not <built-in function len>"),
    ],
)
def test_what_is_no_limit_is_refused(limits, options, message):
    with pytest.raises(CostError, match=message):
        Limits(mlp(), limits, **options)


def test_a_share_of_a_cost_without_bound_and_a_cost_of_another_model_are_refused():
    model, other = mlp(), mlp(layers=2)
    endless = ArchitectureCost(SearchSpace(model), lambda architecture: math.inf)
    with pytest.raises(CostError, match="the limit of 'mine' is 50%, but the largest network costs inf"):
        Limits(model, {"mine": "50%"}, costs={"mine": endless})
    with pytest.raises(CostError, match="the cost 'mine' is of another space than the model's"):
        Limits(model, {"mine": 3}, costs={"mine": Parameters(other)})
