"""Mean costs leave out what constraints rule out, and nothing else, however rarely a draw keeps the constraints."""

from itertools import product

import torch
from torch import nn

import supernet.nn as snn
from supernet import LayerChoice, SearchSpace, ValueChoice, require
from supernet.cost import Limits, Parameters, TableCost

N = 12


def drawn(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(size, generator=generator, dtype=torch.float64).softmax(0) for size in sizes]


def two_widths():
    a, b = (ValueChoice(list(range(1, N + 1)), label=label) for label in "ab")
    return nn.ModuleList([snn.Linear(4, a, bias=False), snn.Linear(5, b, bias=False)]), a, b


def test_each_decision_that_some_architecture_has_counts():
    """Parameters are 4 a + 5 b; a == b rules out no width, but a draw keeps it for one width in 12."""
    model, a, b = two_widths()
    require(model, a == b)
    of_a, of_b = drawn(N, N)
    width_N = torch.arange(1, N + 1, dtype=torch.float64)
    expected = 4 * (of_a @ width_N) + 5 * (of_b @ width_N)
    torch.testing.assert_close(Parameters(model).expected({"a": of_a, "b": of_b}), expected)

    table = {width: float(width**2) for width in range(1, N + 1)}
    mean = TableCost(SearchSpace(model), {"a": table}).expected({"a": of_a, "b": of_b})
    torch.testing.assert_close(mean, of_a @ width_N**2)


def test_a_chain_of_constraints_leaves_out_what_it_rules_out():
    """Of a < b < c < d of 5 widths, a is 1 or 2, b 2 or 3, and so on."""
    a, b, c, d = (ValueChoice([1, 2, 3, 4, 5], label=label) for label in "abcd")
    model = nn.ModuleList([snn.Linear(1, width, bias=False) for width in (a, b, c, d)])
    require(model, a < b, b < c, c < d)
    probabilities = dict(zip("abcd", drawn(5, 5, 5, 5), strict=True))
    expected = 0.0
    for first, p_K in enumerate(probabilities.values()):
        kept = p_K[first : first + 2]
        expected += (kept * torch.tensor([first + 1, first + 2])).sum() / kept.sum()
    torch.testing.assert_close(Parameters(model).expected(probabilities), expected)


def test_what_depends_on_several_choices_is_a_mean_over_what_they_may_be_together():
    a, b, c = (ValueChoice([1, 2, 3, 4, 5, 6], label=label) for label in "abc")
    model = nn.ModuleList([snn.Linear(a, b, bias=False), snn.Linear(1, c, bias=False)])
    require(model, a + b == 7, c == a)
    p_a, p_b, p_c = drawn(6, 6, 6)
    shares = {(i, j): p_a[i - 1] * p_b[j - 1] for i, j in product(range(1, 7), repeat=2) if i + j == 7}
    expected = sum(i * j * share for (i, j), share in shares.items()) / sum(shares.values())
    expected += p_c @ torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(Parameters(model).expected({"a": p_a, "b": p_b, "c": p_c}), expected)


def test_constraints_inside_a_choice_hold_where_it_is_reached():
    a, b = (ValueChoice(list(range(1, N + 1)), label=label) for label in "ab")
    inner = nn.Sequential(snn.Linear(1, a, bias=False), snn.Linear(a, b, bias=False))
    model = nn.Sequential(LayerChoice({"wide": inner, "none": nn.Identity()}, label="op"))
    require(model, a == b)
    p_a, p_b = drawn(N, N)
    probabilities = {"op": torch.tensor([0.25, 0.75], dtype=torch.float64), "a": p_a, "b": p_b}
    width_N = torch.arange(1, N + 1, dtype=torch.float64)
    both_N = p_a * p_b
    # Where they are not reached, no constraint is about them, and all joint decisions have a share.
    expected = 0.25 * (both_N @ (width_N + width_N**2)) / (0.25 * both_N.sum() + 0.75)
    torch.testing.assert_close(Parameters(model).expected(probabilities), expected)


def test_a_function_that_few_architectures_keep_rules_out_nothing_that_one_has():
    model, *_ = two_widths()
    space_model = require(model, lambda architecture: abs(architecture["a"] - architecture["b"]) <= 1)
    of_a, of_b = drawn(N, N)
    width_N = torch.arange(1, N + 1, dtype=torch.float64)
    found = Parameters(space_model).expected({"a": of_a, "b": of_b})
    torch.testing.assert_close(found, 4 * (of_a @ width_N) + 5 * (of_b @ width_N))
    assert Limits(model, {"parameters": "50%"}).sample()["a"] <= N
