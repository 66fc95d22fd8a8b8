"""Each constraint holds, is told apart from others, and says what is wrong; values count inside tables too."""

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
import supernet.hub
from supernet import (
    LayerChoice,
    ProxylessTrainer,
    SearchSpace,
    Supernet,
    ValueChoice,
    fixed_architecture,
    require,
)
from supernet.errors import ArchitectureError, ChoiceError, SpaceError, TrainingError
from supernet.nn import Linear, Repeat

V = ValueChoice


def model_of(*values):
    return nn.ModuleList(values)


def allowed(space):
    return list(space.enumerate())


# --- what is different is told apart -----------------------------------------------------------------------


def lambdas():
    w = V([1, 2, 3, 4], label="w")
    return w, V.compute(lambda a: a < 4, w), V.compute(lambda a: a > 1, w)


def partials():
    w = V([1, 2, 3, 4], label="w")

    def between(low, high, a):
        return low < a < high

    return w, V.compute(functools.partial(between, 0, 4), w), V.compute(functools.partial(between, 1, 9), w)


def closures():
    w = V([1, 2, 3, 4], label="w")

    def other_than(value):
        return lambda a: a != value

    return w, V.compute(other_than(4), w), V.compute(other_than(1), w)


def methods_of_objects():
    w = V([1, 2, 3, 4], label="w")

    class OtherThan:
        def __init__(self, value):
            self.value = value

        def __call__(self, a):
            return a != self.value

    return w, V.compute(OtherThan(4), w), V.compute(OtherThan(1), w)


KINDS = [lambdas, partials, closures, methods_of_objects]


@pytest.mark.parametrize("make", KINDS)
def test_each_constraint_holds_though_their_texts_are_the_same(make):
    w, one, other = make()
    expected = [{"w": 2}, {"w": 3}]
    assert allowed(SearchSpace(model_of(w)).require(one, other)) == expected
    assert allowed(SearchSpace(require(model_of(w), one, other))) == expected
    assert allowed(SearchSpace(require(require(model_of(w), one), other))) == expected


@pytest.mark.parametrize("make", KINDS[:3])
def test_fingerprints_tell_them_apart_and_are_the_same_for_the_same(make):
    (w, one, other), (v, again, _) = make(), make()
    one, other = (SearchSpace(model_of(w)).require(each).fingerprint for each in (one, other))
    assert one != other
    assert one == SearchSpace(model_of(v)).require(again).fingerprint


def test_the_same_constraint_given_twice_is_one():
    w, v = V([1, 2, 3], label="w"), V([1, 2, 3], label="w")
    space = SearchSpace(require(model_of(w), w < 3, v < 3, *(V.compute(lambda a: a > 1, x) for x in (w, v))))
    assert space.constraints == ["w < 3", "<lambda>(w)"]


def test_functions_of_architectures_are_told_apart():
    w = V([1, 2, 3], label="w")
    space = SearchSpace(model_of(w))
    one, other, again = (
        space.where(lambda a: a["w"] < 3),
        space.where(lambda a: a["w"] > 1),
        space.where(lambda a: a["w"] < 3),
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_text_and_a_label_are_told_apart():
    p, q = V(["q", "r"], label="p"), V(["q", "r"], label="q")
    space = SearchSpace(model_of(p, q)).require(p == "q", p == q)
    assert allowed(space) == [{"p": "q", "q": "q"}]
    assert space.constraints == ["p == 'q'", "p == q"]


def test_plain_expressions_have_the_fingerprint_of_their_text():
    w = V([1, 2, 3], label="w")
    assert SearchSpace(model_of(w)).require(V.min(w, 2) < 3).to_json()["constraints"] == [{"require": "min(w, 2) < 3"}]


PROGRAM = """
import functools
from torch import nn
from supernet import SearchSpace, ValueChoice
LIMITS = {"x", "y", "z"}
def helper(a): return a < len(LIMITS)
w = ValueChoice([1, 2, 3], label="w")
made = [lambda a, names=frozenset("abc"): a in LIMITS or helper(a), functools.partial(lambda n, a: a < n, 3)]
space = SearchSpace(nn.ModuleList([w])).require(*(ValueChoice.compute(each, w) for each in made))
print(space.where(lambda a: a["w"] in {1, 2, 3} and "a" not in {"b", "c"}).fingerprint)
"""


def test_fingerprints_of_functions_are_the_same_in_each_process(capsys):
    exec(PROGRAM, {"__name__": "__main__"})
    program = [sys.executable, "-c", PROGRAM]
    assert subprocess.run(program, capture_output=True, text=True, check=True).stdout == capsys.readouterr().out


# --- what is not reached -----------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        inner = nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="act1"))
        self.op = LayerChoice({"deep": inner, "flat": nn.Identity()}, label="op")


def test_a_function_that_asks_for_what_is_not_reached_is_told_so():
    match = r"^constraint .*<lambda> asks for 'act1', which this architecture does not reach; use a\.get\('act1'\)$"
    with pytest.raises(SpaceError, match=match):
        allowed(SearchSpace(Nested()).where(lambda a: a["act1"] == "0"))
    with pytest.raises(SpaceError, match=match):
        SearchSpace(require(Nested(), lambda a: a["act1"] == "0")).validate({"op": "flat"})
    assert allowed(SearchSpace(require(Nested(), lambda a: a.get("act1") == "0"))) == [{"op": "deep", "act1": "0"}]


def test_a_misspelt_label_is_told_with_those_that_are_there():
    with pytest.raises(SpaceError, match="asks for 'opp', but the space has no choice of that label; it has: op, act1"):
        require(Nested(), lambda a: a["opp"] == "flat")


def test_a_function_may_catch_it_itself():
    def is_zero(a):
        try:
            return a["act1"] == "0"
        except KeyError:
            return True

    assert SearchSpace(Nested()).where(is_zero).size == 2


# --- inside fixed_architecture -----------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, constraint=lambda a, b: a * b < 4):
        super().__init__()
        a, b = V([1, 2], label="a"), V([1, 2], label="b")
        self.layers = nn.Sequential(Linear(4, a), Linear(a, b))
        require(self, constraint(a, b))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("constraint", [lambda a, b: a * b < 4, lambda a, b: lambda path: path["a"] * path["b"] < 4])
def test_a_constructor_that_requires_is_checked_inside_fixed_architecture(constraint):
    assert SearchSpace(Small(constraint)).size == 3
    with fixed_architecture({"a": 1, "b": 2}):
        assert Small(constraint).layers[1].out_features == 2
    with (
        pytest.raises(ArchitectureError, match=r"the architecture breaks the constraint .*: a=2, b=2$"),
        fixed_architecture({"a": 2, "b": 2}),
    ):
        Small(constraint)


def test_outside_it_a_truth_is_no_constraint():
    with pytest.raises(SpaceError, match="not True"):
        require(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="a")), 1 < 2)


def test_functions_of_decided_values_are_values():
    assert (V.min(3, 2), V.max([3, 2]), V.to_int(2.5), V.to_float(2)) == (2, 3, 2, 2.0)
    assert (V.compute(lambda a: a + 1, 2), V.lookup({1: "one"}, 1), V.condition(1 < 2, "yes", "no")) == (
        3,
        "one",
        "yes",
    )
    with fixed_architecture({"depth": 1}):
        d = V([1, 2], label="depth")
        assert len(Repeat(lambda: nn.Linear(2, 2), V.max(d, 1))) == 1
    with pytest.raises(ChoiceError, match="cannot be computed"):
        V.lookup([1, 2], 5)


def test_darts_is_built_inside_fixed_architecture():
    space = SearchSpace(supernet.hub.Darts(channels=4, layers=3, in_channels=1))
    with fixed_architecture(space.sample(torch.Generator().manual_seed(0))):
        network = supernet.hub.Darts(channels=4, layers=3, in_channels=1)
    assert network(torch.ones(2, 1, 8, 8)).shape == (2, 10)


# --- values inside lists, tuples and dicts -----------------------------------------------------------------


def test_values_inside_tables_are_decided_too():
    w, h = V([7, 8], label="w"), V([1, 3], label="h")
    looked_up = V.lookup({1: w, 3: 5}, h)
    assert [leaf.label for leaf in looked_up.leaves()] == ["w", "h"]
    assert looked_up.values() == [7, 5, 8]
    assert V.compute(sum, [w, h]).values() == [8, 10, 9, 11]
    assert V.compute(lambda pair: pair[0] * pair[1], (w, 2 * h)).evaluate({"w": 7, "h": 3}) == 42
    assert V.compute(lambda nested: nested["a"][0], {"a": [w]}).values() == [7, 8]
    assert str(V.lookup({1: w, 3: "w"}, h)) == "{1: w, 3: 'w'}[h]"


def test_containers_in_which_no_value_is_looked_for_are_refused():
    w = V([7, 8], label="w")
    with pytest.raises(ChoiceError, match="is a key of a table"):
        V.lookup({w: 1}, 7)
    with pytest.raises(ChoiceError, match="stands in a set"):
        V.compute(max, {w, 1})


# --- what runs, and what it costs --------------------------------------------------------------------------


def test_a_supernet_refuses_an_architecture_that_breaks_a_constraint():
    running, X = Supernet(Small()), torch.ones(1, 4)
    assert running(X, {"a": 1, "b": 2}).shape == (1, 2)
    with pytest.raises(ArchitectureError, match=r"breaks the constraint \(a \* b\) < 4: a=2, b=2"):
        running(X, {"a": 2, "b": 2})
    running(X, {"a": torch.ones(2) / 2, "b": torch.ones(2) / 2})


def proxyless(cost):
    width = V([8, 16], label="width")
    blocks = Repeat(lambda: nn.Linear(2, 2), (1, 2), label="depth")
    model = nn.Sequential(Linear(2, width), Linear(width, 2), blocks)
    data, optimizer = TensorDataset(torch.ones(4, 2), torch.zeros(4).long()), torch.optim.SGD(model.parameters(), 0.1)
    task = model, nn.CrossEntropyLoss(), None, optimizer, 1, data
    return ProxylessTrainer(*task, batch_size=2, cost=cost, progress=False, device="cpu")


def test_costs_are_given_for_values_as_they_are_or_as_texts():
    for cost in (
        {"width": {8: 1.0, 16: 2.0}, "depth": {1: 4.0, 2: 8.0}},
        {"width": {"8": 1, "16": 2}, "depth": {"1": 4, 2: 8}},
    ):
        trainer = proxyless(cost)
        assert trainer.cost_of({"width": 16, "depth": 1}) == 6.0
    trainer.fit()
    with pytest.raises(TrainingError, match=r"'width' is given for 8, 9; give a number for each of 8, 16$"):
        proxyless({"width": {8: 1.0, 9: 2.0}})
    with pytest.raises(TrainingError, match="cost names 'widht', which is no choice of one option in this space"):
        proxyless({"widht": {8: 1.0}})
