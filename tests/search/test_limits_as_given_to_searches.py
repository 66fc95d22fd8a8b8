"""Limits and costs that a search is given wrongly are refused by name."""

import math

import pytest
import torch
from torch import nn

import supernet.nn as elastic
from supernet import SearchSpace, ValueChoice
from supernet.cost import ArchitectureCost, Limits, Parameters
from supernet.errors import CostError, TrainingError
from supernet.search import search_front


def model(values=(8, 16, 32)):
    width = ValueChoice(list(values), label="width")
    return nn.Sequential(elastic.Linear(4, width), elastic.Linear(width, 2))


def measured(architectures):
    return [{"accuracy": 1 / one["width"]} for one in architectures]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limits": []}, TrainingError, "the list is empty; give None for none"),
        ({"limits": 60_000}, TrainingError, "limits are a dict such as .*, or Limits, not 60000"),
        ({"limits": "60%"}, TrainingError, "or Limits, not '60%'"),
        ({"limits": [{"parameters": 100}, 5]}, TrainingError, "or Limits, not 5"),
        ({"costs": {"mine": len}}, CostError, "the cost 'mine' is a Cost, not <built-in function len>"),
        ({"costs": {"mine": Parameters(model((4, 8)))}}, CostError, "the cost 'mine' is of another space"),
    ],
)
def test_a_search_refuses_limits_and_costs_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        search_front(measured, {"accuracy": "max"}, 5, model=model(), **options)


@pytest.mark.parametrize("limits", [None, 5, [("parameters", 5)]])
def test_limits_are_a_dict(limits):
    with pytest.raises(CostError, match="limits are a dict such as"):
        Limits(model(), limits)


def test_a_limit_is_one_number():
    with pytest.raises(CostError, match="the limit of 'parameters' is a number"):
        Limits(model(), {"parameters": torch.tensor([500, 600])})


def test_a_share_of_a_cost_that_is_nan_somewhere_is_refused_and_ends():
    cost = ArchitectureCost(SearchSpace(model()), lambda one: math.nan if one["width"] == 16 else 1.0)
    with pytest.raises(CostError, match=r"the cost 'mine' is NaN for \{'width': 16\}"):
        Limits(model(), {"mine": "50%"}, costs={"mine": cost})
