"""SearchSpace against brute force, formulas and chi-square."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace, freeze
from supernet.errors import ArchitectureError, SpaceError

# Upper 0.1 % points of chi-square, by degrees of freedom (any table of it has them).
CHI_SQUARE_999 = {1: 10.828, 2: 13.816, 3: 16.266, 5: 20.515, 7: 24.322}


class Marker(nn.Module):
    """A candidate that differs from every other."""

    def __init__(self, name, inner=()):
        super().__init__()
        self.name = name
        self.inner = nn.ModuleList(inner)


# --- random spaces, and what they hold by brute force ------------------------------------------------------

# A blueprint: ("layer", label, [blueprints inside each candidate]) or ("input", label, n_candidates, n_chosen). A label
# has the same kind and number of candidates wherever it stands.
LABELS = {"a": 2, "b": 3, "c": 2, "d": 1}
INPUTS = {"x": (2, 1), "y": (3, 2), "z": (2, None)}


def blueprints(depth):
    inputs = st.sampled_from(sorted(INPUTS)).map(lambda label: ("input", label))
    if depth == 0:
        return st.lists(inputs, max_size=2)

    def layer(label):
        return st.lists(blueprints(depth - 1), min_size=LABELS[label], max_size=LABELS[label]).map(
            lambda inside: ("layer", label, inside)
        )

    return st.lists(st.one_of(inputs, st.sampled_from(sorted(LABELS)).flatmap(layer)), max_size=3)


def build(blueprint, path="root"):
    modules = []
    for position, (kind, label, *inside) in enumerate(blueprint):
        if kind == "input":
            n_candidates, n_chosen = INPUTS[label]
            modules.append(InputChoice(n_candidates, n_chosen, label=label))
        else:
            candidates = [
                Marker(f"{path}/{position}={k}", build(inner, f"{path}/{position}={k}"))
                for k, inner in enumerate(inside[0])
            ]
            modules.append(LayerChoice(candidates, label=label))
    return modules


def reached(blueprint, decisions):
    """The labels that an assignment of all labels reaches, by walking the blueprint."""
    found = {}
    for kind, label, *inside in blueprint:
        found[label] = decisions[label]
        if kind == "layer":
            found |= reached(inside[0][int(decisions[label])], decisions)
    return found


def brute_force(blueprint):
    """All architectures: every assignment of all labels there are, cut down to what it reaches."""
    options = {label: [str(k) for k in range(count)] for label, count in LABELS.items()}
    for label, (n, n_chosen) in INPUTS.items():
        sizes = range(n + 1) if n_chosen is None else [n_chosen]
        options[label] = [list(c) for size in sizes for c in itertools.combinations(range(n), size)]
    assignments = itertools.product(*options.values())
    architectures = (reached(blueprint, dict(zip(options, values, strict=True))) for values in assignments)
    return {json.dumps(architecture, sort_keys=True) for architecture in architectures}


def key(architecture):
    return json.dumps(architecture, sort_keys=True)


SPACES = settings(max_examples=60, derandomize=True, deadline=None)


@SPACES
@given(blueprints(2))
def test_size_and_enumeration_are_those_of_brute_force(blueprint):
    space = SearchSpace(nn.ModuleList(build(blueprint)))
    expected = brute_force(blueprint)
    enumerated = [key(architecture) for architecture in space.enumerate()]
    assert space.size == len(expected)
    assert sorted(enumerated) == sorted(expected)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(blueprints(1))
def test_size_is_the_number_of_distinct_frozen_structures(blueprint):
    """Inputs aside, whose modules differ by their code."""
    model = nn.ModuleList(build(blueprint))

    def structure(network):
        names = [m.name for m in network.modules() if isinstance(m, Marker)]
        return (*names, *(m.code for m in network.modules() if isinstance(m, torch.fx.GraphModule)))

    frozen = {structure(freeze(model, architecture)) for architecture in SearchSpace(model).enumerate()}
    assert len(frozen) == SearchSpace(model).size


@SPACES
@given(blueprints(2), st.integers(0, 2**31))
def test_a_sample_and_its_mutation_are_canonical_and_one_decision_apart(blueprint, seed):
    space = SearchSpace(nn.ModuleList(build(blueprint)))
    generator = torch.Generator().manual_seed(seed)
    parent = space.sample(generator)
    child = space.mutate(parent, generator)
    assert {key(parent), key(child)} <= brute_force(blueprint)
    for architecture in (parent, child):
        assert space.canonical(architecture) == architecture == json.loads(json.dumps(architecture))
    differing = [label for label in parent if label in child and parent[label] != child[label]]
    assert len(differing) == (1 if any(space[label].size > 1 for label in parent) else 0)


# --- counting ----------------------------------------------------------------------------------------------


def test_a_space_far_beyond_enumeration_is_counted_exactly():
    """40 times: one of 6 plain candidates, or a seventh with 4 of 9 inputs inside."""
    layers = [LayerChoice([*(Marker(str(k)) for k in range(6)), Marker("7", [InputChoice(9, 4)])]) for _ in range(40)]
    space = SearchSpace(nn.Sequential(*layers))
    assert space.size == (6 + math.comb(9, 4)) ** 40
    assert f"{space.size:.3e}"[:5] in repr(space)


def test_cells_that_share_their_labels_count_once():
    cells = [LayerChoice([Marker("a"), Marker("b")], label=f"op{i % 5}") for i in range(100)]
    assert SearchSpace(nn.Sequential(*cells)).size == 2**5


def test_a_label_that_stands_in_many_branches_is_counted_exactly():
    """Nine choices, each with a branch that holds a label which all share and one that every third shares."""

    def go(i):
        return Marker("go", [InputChoice(3, 2, label="y"), LayerChoice([Marker("l"), Marker("r")], label=f"s{i % 3}")])

    model = nn.ModuleList(LayerChoice([Marker("stop"), go(i)], label=f"c{i}") for i in range(9))
    by_hand = 0
    for going in itertools.product([False, True], repeat=9):
        classes = {i % 3 for i in range(9) if going[i]}
        by_hand += (3 if any(going) else 1) * 2 ** len(classes)
    assert SearchSpace(model).size == by_hand


def test_a_space_that_is_too_entangled_says_so_rather_than_a_wrong_number():
    generator = torch.Generator().manual_seed(0)

    def inside():
        picked = torch.randperm(60, generator=generator)[:5].tolist()
        return [LayerChoice([Marker("l"), Marker("r")], label=f"s{i}") for i in picked]

    model = nn.ModuleList(LayerChoice([Marker("x", inside()), Marker("y", inside())], label=f"c{i}") for i in range(60))
    space = SearchSpace(model)
    with pytest.raises(SpaceError, match=r"too entangled to be counted exactly: label .* labels of their own"):
        space.size  # noqa: B018
    assert "too entangled" in repr(space)
    space.validate(space.sample())


def test_a_model_without_choices_has_one_architecture():
    space = SearchSpace(nn.Linear(1, 1))
    assert (space.size, list(space.enumerate()), space.sample(), len(space)) == (1, [{}], {}, 0)


def test_enumeration_is_lazy():
    space = SearchSpace(nn.Sequential(*(InputChoice(60, None) for _ in range(50))))
    assert len(list(itertools.islice(space.enumerate(), 5))) == 5


def test_domains_come_in_the_order_in_which_choices_stand():
    model = nn.Sequential(InputChoice(2, label="z"), LayerChoice([Marker("m")], label="a"))
    space = SearchSpace(model)
    assert list(space) == ["z", "a"]
    assert list(space["z"]) == [[0], [1]]
    assert list(space["a"]) == ["0"]


def test_fingerprints_agree_where_the_architectures_do():
    def space(names=("a", "b"), n=3, **options):
        return SearchSpace(nn.Sequential(LayerChoice({k: Marker(k) for k in names}, **options), InputChoice(n)))

    assert space().fingerprint == space(prior=[0.1, 0.9]).fingerprint
    others = [space(("b", "a")), space(("a", "c")), space(n=4), space(label="x")]
    assert len({space().fingerprint, *(other.fingerprint for other in others)}) == 5
    assert space() == space()
    assert space() != others[0]


# --- sampling ----------------------------------------------------------------------------------------------


def chi_square(choice, expected, draws=4000):
    """Pearson's statistic of sampled decisions against their probabilities."""
    space = SearchSpace(nn.Sequential(choice))
    generator = torch.Generator().manual_seed(0)
    counts = Counter(key(space.sample(generator)["0"]) for _ in range(draws))
    assert set(counts) <= {key(decision) for decision, p in expected if p}
    return sum((counts[key(d)] - draws * p) ** 2 / (draws * p) for d, p in expected if p)


def without_replacement(weights, chosen):
    """The probability of a set of inputs drawn one after another, by enumeration of the orders."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, p = 1.0, 1.0
        for i in order:
            p *= weights[i] / left
            left -= weights[i]
        total += p
    return total


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LayerChoice([Marker(c) for c in "abcd"]), [(str(k), 0.25) for k in range(4)]),
        (
            lambda: LayerChoice([Marker(c) for c in "abc"], prior=[0.7, 0.0, 0.3]),
            [("0", 0.7), ("1", 0.0), ("2", 0.3)],
        ),
        (lambda: InputChoice(4, 2), [(list(c), 1 / 6) for c in itertools.combinations(range(4), 2)]),
        (lambda: InputChoice(3, 1, prior=[0.1, 0.3, 0.6]), [([0], 0.1), ([1], 0.3), ([2], 0.6)]),
        (
            lambda: InputChoice(4, 2, prior=[0.1, 0.2, 0.3, 0.4]),
            [(list(c), without_replacement([0.1, 0.2, 0.3, 0.4], c)) for c in itertools.combinations(range(4), 2)],
        ),
        (
            lambda: InputChoice(3, None),
            [(list(c), 1 / 8) for n in range(4) for c in itertools.combinations(range(3), n)],
        ),
        (
            lambda: InputChoice(2, None, prior=[0.9, 0.2]),
            [([], 0.1 * 0.8), ([0], 0.9 * 0.8), ([1], 0.1 * 0.2), ([0, 1], 0.9 * 0.2)],
        ),
    ],
    ids=["uniform layer", "layer prior", "uniform 2 of 4", "1 of 3 prior", "2 of 4 prior", "any uniform", "any prior"],
)
def test_samples_follow_the_prior(make, expected):
    freedom = sum(p > 0 for _, p in expected) - 1
    assert chi_square(make(), expected) < CHI_SQUARE_999[freedom]


def test_the_generator_decides_the_sample():
    space = SearchSpace(nn.Sequential(*(InputChoice(5, 2) for _ in range(5))))
    samples = [space.sample(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert samples[0] == samples[1] != samples[2]


# --- architectures -----------------------------------------------------------------------------------------


def nested():
    inner = Marker("deep", [LayerChoice({"relu": Marker("r"), "gelu": Marker("g")}, label="act")])
    return nn.Sequential(
        LayerChoice({"plain": Marker("p"), "deep": inner}, label="op"),
        InputChoice(choose_from=["left", "right"], n_chosen=None, label="join"),
        InputChoice(3, 2, label="two"),
    )


@pytest.mark.parametrize(
    ("given_as", "canonical"),
    [
        ({"op": 0, "join": "left", "two": (2, 0)}, {"op": "plain", "join": [0], "two": [0, 2]}),
        ({"op": "plain", "join": [], "two": [1, 2], "act": "relu"}, {"op": "plain", "join": [], "two": [1, 2]}),
        (
            {"act": 1, "two": [1, 0], "join": ["right", 0], "op": 1},
            {"op": "deep", "act": "gelu", "join": [0, 1], "two": [0, 1]},
        ),
    ],
)
def test_what_is_understood_going_in_comes_out_as_names_and_lists(given_as, canonical):
    result = SearchSpace(nested()).canonical(given_as)
    assert result == canonical
    assert list(result) == [label for label in ("op", "act", "join", "two") if label in canonical]


GOOD = {"op": "plain", "join": [0], "two": [0, 1]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"oops": 1}, "no choice 'oops'; it has: op, act, join, two"),
        ({"op": None}, "'op' has no candidate None; it has: plain, deep"),
        ({"op": "deap"}, "'op' has no candidate 'deap'; it has: plain, deep"),
        ({"op": 2}, "'op' has no candidate 2"),
        ({"op": -1}, "'op' has no candidate -1"),
        ({"op": True}, "'op' has no candidate True"),
        ({"op": ["plain"]}, r"'op' has no candidate \['plain'\]"),
        ({"op": "deep"}, r"leaves 'act' open; decide it: relu \| gelu"),
        ({"act": "tanh"}, "'act' has no candidate 'tanh'"),  # though it is not reached
        ({"join": ["up"]}, "'join' has no input 'up'; it takes positions from 0 to 1 or names: left, right"),
        ({"join": 2}, "'join' has no input 2"),
        ({"join": {"left": 1}}, "'join' takes positions of inputs"),
        ({"two": [0]}, r"'two' takes 2 inputs, not 1: \[0\]"),
        ({"two": [0, 3]}, "'two' has no input 3; it takes positions from 0 to 2"),
        ({"two": [1, 1]}, r"'two' names an input twice: \[1, 1\]"),
        ({"two": [0.0, 1.0]}, "'two' has no input 0.0"),
    ],
)
def test_what_is_no_architecture_of_the_space_is_refused(change, match):
    space = SearchSpace(nested())
    space.validate(GOOD)
    with pytest.raises(ArchitectureError, match=match):
        space.validate({**GOOD, **change})


def test_a_missing_label_is_named():
    with pytest.raises(ArchitectureError, match="leaves 'join' open; decide it: any of 2 inputs"):
        SearchSpace(nested()).validate({"op": "plain", "two": [0, 1]})
    with pytest.raises(ArchitectureError, match="an architecture is a dict"):
        SearchSpace(nested()).validate(["plain"])
