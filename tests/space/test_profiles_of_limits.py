"""Profiles say how many architectures keep limits, as an enumeration counts, and what those cost."""

from itertools import pairwise

import pytest
from torch import nn

import supernet.nn as elastic
from supernet import SearchSpace, ValueChoice
from supernet.cost import Limits, Parameters
from supernet.errors import SpaceError


def mlp(widths=(8, 16, 32), layers=3):
    values = [ValueChoice(list(widths), label=f"width{i}") for i in range(layers)]
    return nn.Sequential(*(elastic.Linear(a, b) for a, b in pairwise([4, *values, 2])))


def test_shares_are_those_of_all_architectures_up_to_chance():
    model = mlp()
    space, cost = SearchSpace(model), Parameters(model)
    limits = Limits(model, {"parameters": (400, 1_000), "weight_memory": 2_800})
    every = [cost.of(one) for one in space.enumerate()]
    profile = space.profile(limits, num_samples=2_000)
    both = sum(400 <= number <= 700 for number in every) / len(every)
    assert profile.share == pytest.approx(both, abs=0.04)
    of_range = sum(400 <= number <= 1_000 for number in every) / len(every)
    assert profile.shares["parameters"] == pytest.approx(of_range, abs=0.04)
    quantiles = profile.quantiles["parameters"]
    assert (quantiles["least"], quantiles["most"]) == (min(every), max(every))
    assert quantiles["median"] == sorted(every)[len(every) // 2]
    assert limits(profile.example)
    assert profile.costs == limits.costs_of(profile.example)


def test_limits_that_no_random_architecture_keeps_are_kept_by_one_that_was_searched():
    model = mlp(widths=range(8, 72, 8), layers=6)  # 8 of 262,144 networks are that small
    limits = Limits(model, {"parameters": 440})
    profile = SearchSpace(model).profile(limits, num_samples=100)
    assert profile.share == 0
    assert limits(profile.example)
    title = str(profile).splitlines()[0]
    assert title == "0.0% of 100 random architectures keep all limits; one that does was found by changing decisions"


def test_limits_of_another_space_are_refused():
    with pytest.raises(SpaceError, match="limits of another space"):
        SearchSpace(mlp()).profile(Limits(mlp(layers=2), {"parameters": "50%"}))
    model = mlp()
    constrained = SearchSpace(model).where(lambda one: one["width0"] < 32)
    assert constrained.profile(Limits(model, {"parameters": "50%"}), num_samples=50).num_samples == 50
