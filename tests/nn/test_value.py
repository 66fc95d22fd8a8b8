"""Values that are decided later, and arithmetic on them, against Python's own on what has been decided."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from supernet import ValueChoice, fixed_architecture
from supernet.errors import ArchitectureError, ChoiceError, UnresolvedChoiceError
from supernet.nn import Expression

A = {"a": [1, 2, 5], "b": [3, 4], "c": [0.5, -2.0]}


def choices():
    return {label: ValueChoice(values, label=label) for label, values in A.items()}


OPERATORS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "//": lambda x, y: x // y,
    "%": lambda x, y: x % y,
    "**": lambda x, y: x**y,
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
}


@pytest.mark.parametrize("symbol", OPERATORS)
def test_an_operator_gives_what_python_gives_of_the_decided_values_on_both_sides(symbol):
    operator, a = OPERATORS[symbol], choices()["a"]
    assert [operator(a, 3).evaluate({"a": value}) for value in A["a"]] == [operator(value, 3) for value in A["a"]]
    assert [operator(3, a).evaluate({"a": value}) for value in A["a"]] == [operator(3, value) for value in A["a"]]


@pytest.mark.parametrize("function", [lambda x: -x, abs, round, math.floor, math.ceil, lambda x: round(x, 1)])
def test_a_function_of_one_value_gives_what_python_gives(function):
    c = choices()["c"]
    assert [function(c * 1.26).evaluate({"c": value}) for value in A["c"]] == [function(v * 1.26) for v in A["c"]]


def test_functions_that_python_does_not_let_a_class_overload_have_names():
    a, b, _ = choices().values()
    assert ValueChoice.min(a, b).values() == [1, 2, 3, 4]
    assert ValueChoice.max([a, 2]).values() == [2, 5]
    assert ValueChoice.to_int(a / 2).values() == [0, 1, 2]
    assert [type(value) for value in ValueChoice.to_float(a).values()] == [float] * 3
    assert ValueChoice.condition(a > 1, b, -1).values() == [-1, 3, 4]
    assert ValueChoice.lookup([7, 8, 9, 10, 11, 12], a).values() == [8, 9, 12]
    assert ValueChoice.lookup({3: "x", 4: "y"}, b).values() == ["x", "y"]
    assert ValueChoice.compute(lambda x, y, z: x + y + z, a, b, 100).values() == [104, 105, 106, 108, 109]


LEAVES = st.sampled_from(sorted(A)) | st.integers(-3, 3)
TREES = st.recursive(LEAVES, lambda inner: st.tuples(st.sampled_from("+-*"), inner, inner), max_leaves=8)


def build(tree, values):
    if isinstance(tree, tuple):
        symbol, left, right = tree
        return OPERATORS[symbol](build(left, values), build(right, values))
    return values[tree] if isinstance(tree, str) else tree


@given(TREES, st.tuples(*(st.sampled_from(values) for values in A.values())))
def test_arithmetic_of_any_depth_is_that_of_the_decided_values_and_its_text_says_it(tree, decided):
    architecture = dict(zip(A, decided, strict=True))
    expression = build(tree, choices())
    if isinstance(expression, Expression):
        assert expression.evaluate(architecture) == build(tree, architecture)
        assert eval(str(expression), {}, architecture) == build(tree, architecture)


@given(TREES, st.lists(st.integers(1, 9), min_size=7, max_size=7))
def test_an_expectation_is_the_mean_over_all_decisions(tree, weights):
    expression = build(tree, choices())
    if not isinstance(expression, Expression):
        return
    w = torch.tensor(weights, dtype=torch.float64)
    p = {"a": w[:3] / w[:3].sum(), "b": w[3:5] / w[3:5].sum(), "c": w[5:] / w[5:].sum()}
    mean = sum(
        float(p["a"][i] * p["b"][j] * p["c"][k]) * build(tree, {"a": A["a"][i], "b": A["b"][j], "c": A["c"][k]})
        for i in range(3)
        for j in range(2)
        for k in range(2)
    )
    torch.testing.assert_close(expression.expectation(p).double(), torch.tensor(mean, dtype=torch.float64))


def test_an_expectation_has_gradients_in_the_probabilities():
    a, b, _ = choices().values()
    p = {"a": torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True), "b": torch.tensor([0.5, 0.5])}
    (a * b).expectation(p).backward()
    torch.testing.assert_close(p["a"].grad, 3.5 * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))


def test_the_values_that_an_expression_may_have_come_once_each():
    a, b, _ = choices().values()
    assert (a // 2 + 0 * b).values() == [0, 1, 2]
    assert a.values() == [1, 2, 5]


def test_what_depends_on_too_many_choices_is_not_listed():
    total = sum((ValueChoice([0, 1], label=str(i)) for i in range(20)), start=0)
    with pytest.raises(ChoiceError, match="20 choices"):
        total.values()


@pytest.mark.parametrize(
    ("use", "mend"),
    [
        (lambda a: 1 if a > 1 else 0, "condition"),
        (lambda a: 1 if a == 1 else 0, "condition"),
        (lambda a: max(a, 2), "ValueChoice.min or max"),
        (int, "ValueChoice.to_int"),
        (float, "ValueChoice.to_float"),
        (lambda a: [10, 20, 30][a], "ValueChoice.lookup"),
        (range, "has no value before it is decided"),
        (lambda a: nn.Dropout(a), "condition"),
        (lambda a: a(), "has not been decided"),
    ],
)
def test_python_that_must_know_a_value_says_what_to_use(use, mend):
    with pytest.raises(UnresolvedChoiceError, match=mend):
        use(choices()["a"])


def test_choices_stay_objects_that_lists_and_dicts_tell_apart():
    a, b, c = choices().values()
    assert a in [b, a]
    assert c not in [a, b]
    assert {a: 1, b: 2}[a] == 1
    assert [b, a].index(a) == 1
    assert a != None  # noqa: E711


def test_arithmetic_that_cannot_be_done_names_the_values():
    a = choices()["a"]
    with pytest.raises(ChoiceError, match=r"3 // \(a - 1\).*'a': 1.*ZeroDivisionError"):
        (3 // (a - 1)).evaluate({"a": 1})


@pytest.mark.parametrize(
    ("candidates", "why"),
    [
        ([], "at least one"),
        ([1, 1], "no two the same"),
        ([1, 1.0], "no two the same"),
        ([float("nan")], "nan"),
        ([(1, 2)], r"\(1, 2\)"),
        ("abc", "list of values"),
        ({1: 2}, "list of values"),
        (3, "list of values"),
    ],
)
def test_candidates_that_are_none_are_refused(candidates, why):
    with pytest.raises(ChoiceError, match=why):
        ValueChoice(candidates, label="x")


def test_a_label_is_required():
    with pytest.raises(TypeError, match="label"):
        ValueChoice([1, 2])
    with pytest.raises(ChoiceError, match="label"):
        ValueChoice([1, 2], label=None)


def test_numbers_of_torch_are_plain_numbers_in_an_architecture():
    choice = ValueChoice(torch.tensor([2, 3]), label="x")
    assert [type(value) for value in choice.candidates] == [int, int]


def test_a_copy_and_a_pickle_have_the_same_values():
    a, b, _ = choices().values()
    expression = ValueChoice.condition(a + b > 5, a * b, 0)
    assert copy.deepcopy(expression).values() == pickle.loads(pickle.dumps(expression)).values() == expression.values()


def test_a_constructor_that_follows_an_architecture_gives_the_value_itself():
    with fixed_architecture({"a": 2}):
        a = ValueChoice([1, 2, 5], label="a")
        assert nn.Linear(3, 2 * a).out_features == 4
    with pytest.raises(ArchitectureError, match="no value 3"), fixed_architecture({"a": 3}):
        ValueChoice([1, 2, 5], label="a")
