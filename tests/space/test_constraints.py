"""Constrained spaces against brute force: what is counted, enumerated, sampled, bred, best, saved and frozen."""

import copy
import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import supernet
from supernet import InputChoice, LayerChoice, SearchSpace, Supernet, ValueChoice, freeze, load_architecture, require
from supernet import save_architecture as save
from supernet.errors import AlreadyReplacedError, ArchitectureError, FileFormatError, SpaceError
from supernet.search import evolve


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Values(nn.Module):
    """Two values that are always met; one inside a candidate, beside a choice of two; and two inputs of three."""

    def __init__(self):
        super().__init__()
        self.a = ValueChoice([1, 2, 3], label="a")
        self.b = ValueChoice([2, 3, 4, 5], label="b")
        self.c = ValueChoice([1, 4], label="c")
        inner = nn.Module()
        inner.c, inner.d = self.c, LayerChoice([nn.ReLU(), nn.Tanh()], label="d")
        del self.c  # it is met where "op" is "deep" alone
        self.c_itself = [inner.c]
        self.op = LayerChoice({"deep": inner, "flat": nn.Identity()}, label="op")
        self.two = InputChoice(3, 2, label="two")


def expressions(model):
    """Return constraints of all kinds by name: of what is met always, or sometimes; of arithmetic, of names."""
    a, b, c = model.a, model.b, model.c_itself[0]
    op, d = (SearchSpace(model).value(label) for label in ("op", "d"))
    return {
        "product": a * b <= 6,
        "sum": a + b >= 5,
        "inner": c > a,
        "three": a + b + c <= 8,
        "name": ValueChoice.condition(op == "flat", a <= 2, b % 2 == 0),
        "both inner": ValueChoice.condition(d == "0", c == 1, a == b),
        "unused": ValueChoice.compute(lambda x, y: x > 1, b, c),
        "true": a < 9,
    }


NAMES = list(expressions(Values()))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(NAMES), max_size=4))
def test_counting_with_constraints_equals_enumeration_and_brute_force(names):
    model = Values()
    space = SearchSpace(model)
    chosen = [expressions(model)[name] for name in sorted(names)]
    every = list(space.enumerate())
    assert len(every) == space.size == 3 * 4 * (2 * 2 + 1) * 3
    kept = []
    for architecture in every:
        applicable = [one for one in chosen if all(leaf.label in architecture for leaf in one.leaves())]
        if all(one.evaluate(architecture) for one in applicable):
            kept.append(architecture)
    if not kept:
        with pytest.raises(SpaceError, match=r"conflict|has no architecture"):
            space.require(*chosen)
        return
    constrained = space.require(*chosen)
    assert list(constrained.enumerate()) == kept
    assert constrained.size == len(kept)
    by_function = space.where(lambda architecture: architecture in kept)
    assert list(by_function.enumerate()) == kept
    assert by_function.size == len(kept)


def test_a_chain_of_sums_is_counted_by_its_diagram_without_enumeration():
    """The number of (v_1, ..., v_8) of 1 to 4 with sum at most 16, by the coefficients of (x + x^2 + x^3 + x^4)^8."""
    values = [ValueChoice([1, 2, 3, 4], label=f"v{i}") for i in range(8)]
    total = sum(values[1:], start=values[0])
    space = SearchSpace(nn.ModuleList([*values, *(ValueChoice(range(9), label=f"free{i}") for i in range(20))]))
    coefficients = Counter({0: 1})
    for _ in range(8):
        coefficients = Counter(
            {s: sum(coefficients[s - v] for v in (1, 2, 3, 4)) for s in range(max(coefficients) + 5)}
        )
    expected = sum(count for s, count in coefficients.items() if s <= 16)
    assert space.require(total <= 16).size == expected * 9**20


def test_what_cannot_be_counted_exactly_says_so():
    values = [ValueChoice(range(1, 11), label=f"v{i}") for i in range(6)]
    space = SearchSpace(nn.ModuleList(values))
    with pytest.raises(SpaceError, match=r"6 choices with more than 100,000 joint decisions"):
        _ = space.require(sum(values[1:], start=values[0]) <= 40).size
    with pytest.raises(SpaceError, match=r"a function is among the constraints, .*1,000,000 architectures"):
        _ = space.where(lambda a: a["v0"] > 1).size
    assert str(space.where(lambda a: a["v0"] > 1)).startswith("SearchSpace of at most 1,000,000 architectures")


def test_samples_are_distributed_as_all_are_on_condition_that_the_constraints_are_kept():
    """Priors of a and b make p(a) p(b) / Z over the pairs that are kept; chi-square with 4 degrees of freedom."""
    a = ValueChoice([1, 2, 3], label="a", prior=[0.5, 0.3, 0.2])
    b = ValueChoice([1, 2, 3], label="b", prior=[0.2, 0.2, 0.6])
    space, draws = SearchSpace(nn.ModuleList([a, b])).require(a + b <= 4), 2_000
    weights = {
        (x, y): p * q
        for (x, p), (y, q) in itertools.product(
            zip((1, 2, 3), a.prior, strict=True), zip((1, 2, 3), b.prior, strict=True)
        )
        if x + y <= 4
    }
    g = generator()
    seen = Counter(tuple(space.sample(g).values()) for _ in range(draws))
    assert seen.keys() <= weights.keys()
    expected = {pair: draws * w / sum(weights.values()) for pair, w in weights.items()}
    assert sum((seen[pair] - n) ** 2 / n for pair, n in expected.items()) < 20.515


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(["product", "sum", "inner", "name"]), min_size=1), st.integers(0, 1000))
def test_the_best_architecture_that_is_allowed_is_that_of_brute_force(names, seed):
    model = Values()
    space = SearchSpace(model).require(*(expressions(model)[name] for name in sorted(names)))
    numbers = torch.rand(100, generator=generator(seed)).tolist()
    scores = {label: [numbers.pop() for _ in range(domain.size)] for label, domain in space.items()}
    tables = {label: dict(zip(map(str, space[label]), of_label, strict=True)) for label, of_label in scores.items()}

    def first(label):
        return max(space[label], key=lambda decision: tables[label][str(decision)])

    def total(decisions):
        return sum(tables[label][str(decision)] for label, decision in decisions.items())

    every = [dict(zip(space, each, strict=True)) for each in itertools.product(*space.values())]
    allowed = [one for one in every if space.allows(space.follow(one.__getitem__))]
    best = max(allowed, key=total)
    assert space.best(first, scores.__getitem__) == space.follow(best.__getitem__)


def test_mutation_and_evolution_keep_the_constraints_and_find_the_best_that_does():
    values = [ValueChoice(range(1, 7), label=f"v{i}") for i in range(4)]
    space = SearchSpace(nn.ModuleList(values)).require(values[0] < values[1], values[2] * values[3] <= 12)
    g, architecture = generator(), space.sample(generator())
    for _ in range(100):
        child = space.mutate(architecture, g)
        assert space.allows(child) and sum(child[k] != architecture[k] for k in child) == 1
        architecture = child
    asked = []

    def scores(architectures):
        asked.extend(architectures)
        return [sum(architecture.values()) for architecture in architectures]

    found = evolve(space, scores, budget=300, population=20, generator=g)[0]
    assert all(map(space.allows, asked))
    assert found.score == max(sum(one.values()) for one in space.enumerate()) == 5 + 6 + 2 + 6


def test_a_mutation_that_cannot_keep_the_constraints_gives_the_architecture_back():
    a, b = (ValueChoice([1, 2], label=label) for label in "ab")
    space = SearchSpace(nn.ModuleList([a, b])).require(ValueChoice.compute(lambda x, y: x == y, a, b))
    assert space.mutate({"a": 1, "b": 1}, generator()) == {"a": 1, "b": 1}


def test_an_architecture_that_breaks_a_constraint_is_none_of_the_space(tmp_path):
    a, b = (ValueChoice([1, 2], label=label) for label in "ab")
    space = SearchSpace(nn.ModuleList([a, b]))
    constrained = space.require(a * b <= 2)
    broken = {"a": 2, "b": 2}
    with pytest.raises(ArchitectureError, match=r"breaks the constraint \(a \* b\) <= 2: a=2, b=2"):
        constrained.validate(broken)
    with pytest.raises(ArchitectureError, match="breaks the constraint"):
        save(broken, tmp_path / "one.json", constrained)
    save(broken, tmp_path / "one.json", space)
    with pytest.raises(FileFormatError, match="of another space"):
        load_architecture(tmp_path / "one.json", constrained)
    save({"a": 1, "b": 2}, tmp_path / "two.json", constrained)
    assert load_architecture(tmp_path / "two.json", space.require(a * b <= 2)) == {"a": 1, "b": 2}


def test_fingerprints_know_expressions_by_their_text_and_functions_by_their_name():
    def spaces():
        a, b = (ValueChoice([1, 2], label=label) for label in "ab")
        return SearchSpace(nn.ModuleList([a, b])), a, b

    def is_small(architecture):
        return architecture["a"] == 1

    space, a, b = spaces()
    other, c, d = spaces()
    assert space.require(a <= b, a < 2).fingerprint == other.require(c < 2).require(c <= d).fingerprint
    assert space.require(a <= b).require(a <= b) == space.require(a <= b)
    assert space.where(is_small).fingerprint == other.where(is_small).fingerprint
    fingerprints = [space, space.require(a <= b), space.require(b <= a), space.where(is_small)]
    assert len({one.fingerprint for one in fingerprints}) == 4
    assert "constraints" not in space.to_json()


def test_the_smallest_set_of_constraints_that_conflicts_is_named():
    a, b, c = (ValueChoice([1, 2, 3], label=label) for label in "abc")
    space = SearchSpace(nn.ModuleList([a, b, c]))
    with pytest.raises(SpaceError, match=r"^b < a and c < b and c >= 2 conflict: no architecture keeps them together"):
        space.require(a + b <= 6, b < a, c < b, a * c < 9, c >= 2)
    with pytest.raises(SpaceError, match=r"^a > 3 has no architecture; loosen it"):
        space.require(b < c, a > 3)
    with pytest.raises(SpaceError, match=r"^none of 10,000 architectures drawn keeps .*<lambda>; loosen"):
        space.where(lambda architecture: False)


def test_rare_architectures_that_no_draw_finds_are_counted_in_the_error():
    values = [ValueChoice(range(40), label=f"v{i}") for i in range(3)]
    space = SearchSpace(nn.ModuleList([*values, ValueChoice(range(40), label="other")]))
    with pytest.raises(SpaceError, match=r"none of 10,000 .*, which 40 of 2,560,000 do; .* priors that favour"):
        space.require(sum(values[1:], start=values[0]) <= 0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda space, a: space.require(True), r"an expression over choices .* not True"),
        (
            lambda space, a: space.require(lambda architecture: True),
            "a function of an architecture is what where takes",
        ),
        (lambda space, a: space.require(a + 1), r"is true or false, but a \+ 1 is \d; compare it"),
        (lambda space, a: space.require(ValueChoice([1, 2], label="x") > 1), r"has no choice 'x'; it has: a, two"),
        (lambda space, a: space.require(ValueChoice([1, 2], label="a") > 1), r"'a' as 1 \| 2, but .* 1 \| 2 \| 3"),
        (lambda space, a: space.where(a > 1), "an expression is what require takes"),
        (lambda space, a: space.value("x"), r"has no choice 'x'; it has: a, two"),
        (lambda space, a: space.value("two"), "chooses a set, of which no expression is known; use where"),
        (lambda space, a: require(nn.Linear(1, 1), a > 1), "has no choice 'a'"),
        (lambda space, a: require(space, a > 1), "are given to an nn.Module, not to SearchSpace"),
    ],
)
def test_what_is_no_constraint_is_refused_by_name(make, match):
    a = ValueChoice([1, 2, 3], label="a")
    with pytest.raises(SpaceError, match=match):
        make(SearchSpace(nn.ModuleList([a, InputChoice(3, 2, label="two")])), a)


# --- as a part of a model ----------------------------------------------------------------------------------


def network():
    widths = [ValueChoice([2, 4], label=f"width{i}") for i in range(2)]
    layers = supernet.nn.Linear(3, widths[0]), supernet.nn.Linear(*widths), supernet.nn.Linear(widths[1], 2)
    return nn.Sequential(*layers), widths


def test_what_is_made_of_a_model_or_of_its_copy_or_of_a_whole_around_it_keeps_its_constraints():
    model, (first, second) = network()
    assert require(model, first <= second, lambda architecture: architecture["width1"] > 2) is model
    for one in (model, copy.deepcopy(model), nn.Sequential(model, nn.Identity()), Supernet(copy.deepcopy(model))):
        assert SearchSpace(one).size == 2
        with pytest.raises(ArchitectureError, match=r"breaks the constraint width0 <= width1"):
            freeze(one, {"width0": 4, "width1": 2})
    frozen = freeze(model, {"width0": 2, "width1": 4})
    assert [type(layer) for layer in frozen] == [nn.Linear] * 3
    assert not any("constraints" in name for module in frozen.modules() for name in vars(module))


def test_a_model_whose_choices_are_replaced_or_that_nothing_is_left_of_takes_no_constraint():
    model, (first, second) = network()
    before = SearchSpace(model).fingerprint
    with pytest.raises(SpaceError, match="conflict"):
        require(model, first < second, second < 4)
    assert SearchSpace(model).fingerprint == before
    Supernet(model)
    with pytest.raises(AlreadyReplacedError, match="have been replaced already"):
        require(model, first <= second)


def test_json_of_a_constrained_space_is_the_same_whatever_the_order_of_its_constraints():
    model, (first, second) = network()
    space = SearchSpace(model)
    one, two = first <= second, first + second >= 6
    assert json.dumps(space.require(one, two).to_json()) == json.dumps(space.require(two, one).to_json())
