"""What a Repeat is made of, what can be decided at it, and what is refused."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import supernet
from supernet import LayerChoice, Repeat, SearchSpace, ValueChoice, fixed_architecture, freeze
from supernet.errors import ChoiceError, SpaceError
from supernet.testing import check_choice

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def operation(label=None):
    return LayerChoice({"linear": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "skip": nn.Identity()}, label=label)


class Elastic(nn.Module):
    """A block whose inner width is a choice."""

    def __init__(self, label):
        super().__init__()
        width = ValueChoice([2, 6], label=label)
        self.up, self.down = supernet.nn.Linear(4, width), supernet.nn.Linear(width, 4)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


REPEATS = {
    "a module": lambda: Repeat(nn.Linear(4, 4), (1, 3), label="depth"),
    "known by its path": lambda: Repeat(nn.Linear(4, 4), range(1, 4)),
    "none is possible": lambda: Repeat(nn.Linear(4, 4), (0, 2), label="depth"),
    "a value": lambda: Repeat(nn.Linear(4, 4), ValueChoice([3, 1], label="depth", prior=[0.9, 0.1])),
    "an expression": lambda: Repeat(nn.Linear(4, 4), 2 * ValueChoice([0, 1, 2], label="depth") - 0),
    "blocks that differ": lambda: Repeat([nn.Linear(4, 4), nn.Tanh, lambda i: nn.Softmax(dim=i - 1)], (1, 3)),
    "choices in its blocks": lambda: Repeat(lambda: operation(), (1, 3), label="depth"),
    "widths in its blocks": lambda: Repeat(lambda i: Elastic(f"width{i}"), (1, 3), label="depth"),
    "in place": lambda: Repeat(lambda: nn.ReLU(inplace=True), (1, 3), label="depth"),
    "one in another": lambda: Repeat(lambda: Repeat(nn.Linear(4, 4), (1, 2)), (1, 2), label="depth"),
}


@pytest.mark.parametrize("name", REPEATS)
def test_it_holds_what_a_kind_of_choice_promises(name):
    check_choice(REPEATS[name], X)


def test_a_number_gives_a_sequential():
    made = Repeat(nn.Linear(4, 4), 3)
    assert type(made) is nn.Sequential and len(made) == 3
    assert type(Repeat([nn.Tanh()], 0)) is nn.Sequential
    assert torch.equal(Repeat(nn.Linear(4, 4), 0)(X), X)


def test_a_module_is_copied_for_each_position():
    block = nn.Linear(4, 4)
    repeat = Repeat(block, (1, 3))
    assert len({id(one) for one in [block, *repeat.children()]}) == 4
    assert all(torch.equal(one.weight, block.weight) for one in repeat.children())


def test_functions_are_called_with_the_position_where_they_need_an_argument():
    met = []
    blocks = [lambda position: met.append(position) or nn.Tanh(), lambda rate=0.5: nn.Dropout(rate), nn.ReLU]
    first, second, third = Repeat(blocks, (1, 3)).children()
    assert met == [0]
    assert (type(first), second.p, third.inplace) == (nn.Tanh, 0.5, False)


def test_modules_in_a_list_stand_as_they_are():
    blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
    assert list(Repeat(blocks, (1, 2)).children()) == blocks
    assert list(Repeat(nn.ModuleList(blocks), (1, 2)).children()) == blocks


def test_a_decision_gives_a_sequential_whose_keys_are_those_of_the_model():
    model = nn.Sequential(Repeat(nn.Linear(4, 4), (1, 3), label="depth"))
    network = freeze(model, {"depth": 2})
    assert list(network.state_dict()) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.state_dict().items())
    model.load_state_dict(network.state_dict(), strict=False)
    pickle.loads(pickle.dumps(network))


def test_choices_in_blocks_that_are_not_reached_are_not_decided():
    model = nn.Sequential(Repeat(lambda: operation(), (0, 2), label="depth"))
    names = ["linear", "norm", "skip"]
    expected = [
        {"depth": depth, **{f"0.{i}": name for i, name in enumerate(chosen)}}
        for depth in (0, 1, 2)
        for chosen in itertools.product(names, repeat=depth)
    ]
    space = SearchSpace(model)
    assert list(space.enumerate()) == expected
    assert space.canonical({"depth": 1, "0.0": "skip", "0.1": "norm"}) == {"depth": 1, "0.0": "skip"}


def test_five_stages_of_two_to_four_blocks_of_nine_kinds_are_as_many_as_once_for_all_says():
    """Kernels and expansions of three values each: (9^2 + 9^3 + 9^4)^5, about 2 x 10^19 (arXiv 1908.09791)."""

    def block():
        return nn.Sequential(
            LayerChoice([nn.Tanh(), nn.ReLU(), nn.ELU()]), LayerChoice([nn.Tanh(), nn.ReLU(), nn.ELU()])
        )

    stages = [Repeat(block, (2, 4)) for _ in range(5)]
    assert SearchSpace(nn.Sequential(*stages)).size == (9**2 + 9**3 + 9**4) ** 5


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_as_many_architectures_are_counted_as_there_are(depths, labels):
    """Labels that blocks share with each other, and with what stands outside, are one decision."""
    blocks = [operation(f"label{k}") for k in labels]
    depth = ValueChoice(depths, label="depth")
    model = nn.Sequential(Repeat(blocks[: max(depths)], depth), Repeat(nn.Tanh(), depth), operation("label0"))
    expected = set()
    for value in depths:
        met = sorted({0, *labels[:value]})
        for chosen in itertools.product(["linear", "norm", "skip"], repeat=len(met)):
            expected.add((value, tuple(zip(met, chosen, strict=True))))
    space = SearchSpace(model)
    assert space.size == len(expected) == len(list(space.enumerate()))
    found = {(a["depth"], tuple((k, a[f"label{k}"]) for k in range(3) if f"label{k}" in a)) for a in space.enumerate()}
    assert found == expected


def test_one_value_decides_the_depth_of_several_and_widths():
    depth = ValueChoice([1, 2], label="d")
    model = nn.Sequential(
        Repeat(nn.Linear(4, 4), depth), Repeat(nn.Linear(4, 4), 2 * depth), supernet.nn.Linear(4, 8 * depth)
    )
    assert SearchSpace(model).size == 2
    network = freeze(model, {"d": 2})
    assert [len(network[0]), len(network[1]), network[2].out_features] == [2, 4, 16]


def test_a_label_given_twice_is_one_decision():
    model = nn.Sequential(Repeat(nn.Tanh(), (1, 2), label="d"), Repeat(nn.Tanh(), ValueChoice([1, 2], label="d")))
    assert list(SearchSpace(model).enumerate()) == [{"d": 1}, {"d": 2}]
    with pytest.raises(SpaceError, match="share the label 'd'"):
        SearchSpace(nn.Sequential(Repeat(nn.Tanh(), (1, 2), label="d"), Repeat(nn.Tanh(), (1, 3), label="d")))


def test_constructors_give_what_is_decided():
    def build():
        depth = ValueChoice([1, 2, 3], label="d")
        blocks = [operation(f"op{i}") for i in range(3)]
        return nn.Sequential(Repeat(blocks, depth), Repeat(nn.Tanh(), (1, 2), label="e"), nn.Linear(4, 2 * depth))

    with fixed_architecture({"d": 2, "e": 1, "op0": "skip", "op1": "norm"}):
        network = build()
    assert str(network) == str(
        nn.Sequential(nn.Sequential(nn.Identity(), nn.BatchNorm1d(4)), nn.Sequential(nn.Tanh()), nn.Linear(4, 4))
    )


def test_copies_are_choices_too():
    repeat = Repeat(nn.Linear(4, 4), 2 * ValueChoice([1, 2], label="d"))
    copied = copy.deepcopy(repeat)
    assert type(copied) is Repeat and copied.domain() == repeat.domain() and len(list(copied.children())) == 4


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Repeat(nn.Tanh(), (3, 1)), r"one of \(3, 1\), which has none; give \(low, high\) with low <= high"),
        (lambda: Repeat(nn.Tanh(), range(0)), r"one of range\(0, 0\), which has none"),
        (lambda: Repeat(nn.Tanh(), -1), "whole number from 0 on, .* but is -1"),
        (lambda: Repeat(nn.Tanh(), (-1, 2)), r"whole number from 0 on, .* but \(-1, 2\) may be -1"),
        (lambda: Repeat(nn.Tanh(), [1, 3]), r"but is \[1, 3\]"),
        (lambda: Repeat(nn.Tanh(), True), "but is True"),
        (lambda: Repeat(nn.Tanh(), 1.5), "but is 1.5"),
        (lambda: Repeat(nn.Tanh(), (1, 2, 3)), r"but is \(1, 2, 3\)"),
        (lambda: Repeat(nn.Tanh(), ValueChoice([1, "deep"], label="d")), "may be 'deep'"),
        (lambda: Repeat(nn.Tanh(), ValueChoice([1, 3], label="d") / 2), "d / 2 may be 0.5"),
        (lambda: Repeat([nn.Tanh()], (1, 2)), "has 1 blocks, but runs at most 2"),
        (lambda: Repeat([nn.Tanh(), nn.Tanh(), nn.Tanh()], (1, 2)), "has 3 blocks, but runs at most 2"),
        (lambda: Repeat([nn.Tanh()], 2), "has 1 blocks, but runs at most 2"),
        (lambda: Repeat(["conv"], (1, 1)), "a function that makes one, not 'conv'"),
        (lambda: Repeat(lambda: 3, (1, 2)), "gives no module but 3"),
        (
            lambda: Repeat(nn.Tanh(), ValueChoice([1, 2], label="d"), label="e"),
            "whose decision is 'd'; leave out label=",
        ),
        (
            lambda: Repeat(nn.Tanh(), ValueChoice([1, 2], label="a") + ValueChoice([1, 2], label="b")),
            r"follows from one ValueChoice, but a \+ b from 'a', 'b'",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(make, match):
    with pytest.raises(ChoiceError, match=match):
        make()
