"""What an integer program finds is the best of all architectures, by enumeration."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import supernet.nn as elastic
from supernet import InputChoice, LayerChoice, Repeat, SearchSpace, ValueChoice, freeze, require
from supernet.cost import ArchitectureCost, Cost, Limits, Macs, Parameters, TableCost, Term
from supernet.errors import ArchitectureError, CostError, SpaceError, TrainingError
from supernet.relaxations import Softmax
from supernet.search import AdditiveScore, fit_scores, integer_program, maximize

# Label -> number of candidates, of choices that hold others, one label maybe in several places.
LABELS = {"a": 2, "b": 3, "c": 2}
LEAVES = {
    "x": lambda: InputChoice(3, 2, label="x"),
    "y": lambda: InputChoice(2, None, label="y"),
    "v": lambda: ValueChoice([1, 2, 4], label="v"),
    "w": lambda: ValueChoice([1, 2, 4], label="w"),
}


def models(depth):
    """Blueprints: names of leaves, or (label, what each candidate holds)."""
    leaves = st.lists(st.sampled_from(sorted(LEAVES)), max_size=2)
    if depth == 0:
        return leaves
    holding = st.sampled_from(sorted(LABELS)).flatmap(
        lambda label: st.tuples(
            st.just(label), st.lists(models(depth - 1), min_size=LABELS[label], max_size=LABELS[label])
        )
    )
    return st.lists(st.one_of(st.sampled_from(sorted(LEAVES)), holding), min_size=1, max_size=3)


def built(blueprint):
    modules = []
    for one in blueprint:
        if isinstance(one, str):
            modules.append(LEAVES[one]())
        else:
            label, inside = one
            modules.append(LayerChoice([nn.ModuleList(built(inner)) for inner in inside], label=label))
    return modules


def constrained(model, generator):
    """Require something of two values, and ask a function, some of the time."""
    v, w = LEAVES["v"](), LEAVES["w"]()
    space = SearchSpace(model)
    if {"v", "w"} <= set(space) and generator.random() < 0.5:
        require(model, v <= w, v * w != 4)
    if "a" in space and generator.random() < 0.3:
        require(model, allows_few)
    return model


def allows_few(architecture):
    return architecture.get("a", "0") == "0" or len(architecture) % 2 == 0


def table(space, generator):
    return {
        label: {outcome: generator.choice([0.0, 0.5, 1.0, 2.25]) for outcome in domain.outcomes}
        for label, domain in space.items()
        if not domain.is_set
    }


def random_score(space, generator):
    singles, pairs = {}, {}
    for label, domain in space.items():
        singles[label] = {outcome: generator.gauss(0, 1) for outcome in domain.outcomes}
        if generator.random() < 0.1:
            singles[label][next(iter(singles[label]))] = -math.inf
    for one, two in itertools.combinations(space, 2):
        if generator.random() < 0.3:
            decisions = itertools.product(space[one], space[two])
            pairs[one, two] = {
                (tuple(d) if isinstance(d, list) else d, tuple(e) if isinstance(e, list) else e): generator.gauss(0, 1)
                for d, e in decisions
                if generator.random() < 0.7
            }
    return AdditiveScore(space, singles, pairs, constant=generator.gauss(0, 1))


@settings(max_examples=30, deadline=None)
@given(models(2), st.integers(0, 2**32))
def test_the_best_architectures_under_limits_are_found(blueprint, seed):
    generator = random.Random(seed)
    try:
        model = constrained(nn.ModuleList(built(blueprint)), generator)
    except SpaceError:  # nothing keeps the constraints
        return
    space = SearchSpace(model)
    costs = {f"cost{i}": TableCost(space, table(space, generator), constant=i) for i in range(2)}
    every = list(space.enumerate())
    middle = {name: sorted(cost.of(one) for one in every)[len(every) // 2] for name, cost in costs.items()}
    limits = None
    if generator.random() < 0.8:
        try:
            limits = Limits(model, {"cost0": middle["cost0"], "cost1": (middle["cost1"], None)}, costs=costs)
        except CostError:
            return
    score = random_score(space, generator)
    scores = sorted((score(one) for one in every if limits is None or limits(one)), reverse=True)
    scores = [one for one in scores if one > -math.inf][:3]
    if not scores:
        with pytest.raises(SpaceError, match="minus infinity"):
            maximize(score, limits)
        return
    found = maximize(score, limits, count=3)
    assert [one.score for one in found] == pytest.approx(scores)
    assert all(limits is None or limits(one.architecture) for one in found)
    assert len({repr(one.architecture) for one in found}) == len(scores)
    assert [score(one.architecture) for one in found] == [one.score for one in found]


class Network(nn.Module):
    """Widths, depth and kernels whose layers depend on two or three of them together."""

    def __init__(self):
        super().__init__()
        width = ValueChoice([2, 4, 6], label="width")
        self.stem = elastic.Conv2d(3, width, ValueChoice([1, 3], label="stem"), padding="same")
        self.body = Repeat(
            lambda i: LayerChoice(
                {
                    "conv": elastic.Conv2d(width, width, ValueChoice([1, 3, 5], label=f"kernel{i}"), padding="same"),
                    "skip": nn.Identity(),
                },
                label=f"op{i}",
            ),
            (1, 3),
            label="depth",
        )
        self.head = elastic.Linear(width, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_parts_that_depend_on_several_choices_are_counted_exactly(seed):
    model, generator = Network(), random.Random(seed)
    example = torch.zeros(1, 3, 8, 8)
    costs = {"parameters": Parameters(model), "macs": Macs(model, example)}
    space = SearchSpace(model)
    score = random_score(space, generator)
    every = list(space.enumerate())
    limits = Limits(
        model, {"parameters": (150, 250 + 50 * seed), "macs": f"{30 + 10 * seed}%"}, example=example, costs=costs
    )
    for one in generator.sample(every, 5):
        assert costs["parameters"].of(one) == sum(p.numel() for p in freeze(model, one).parameters())
    kept = [one for one in every if limits(one)]
    assert 0 < len(kept) < len(every) / 2
    (found,) = maximize(score, limits)
    assert found.score == pytest.approx(max(score(one) for one in kept))
    assert limits(found.architecture)


def test_what_a_choice_adds_counts_only_where_it_is_reached():
    inner = LayerChoice({"good": nn.ReLU(), "bad": nn.Tanh()}, label="inner")
    space = SearchSpace(
        nn.Sequential(LayerChoice({"deep": nn.Sequential(inner), "flat": nn.Identity()}, label="outer"))
    )
    score = AdditiveScore(space, {"outer": {"deep": 0, "flat": 2}, "inner": {"good": 1, "bad": -5}})
    assert maximize(score, count=5) == [
        ({"outer": "flat"}, 2.0),
        ({"outer": "deep", "inner": "good"}, 1.0),
        ({"outer": "deep", "inner": "bad"}, -5.0),
    ]


def layers(count, candidates):
    return nn.Sequential(
        *(LayerChoice([nn.Identity() for _ in range(candidates)], label=f"layer{i}") for i in range(count))
    )


def test_a_limit_is_kept_exactly_where_a_solver_tells_no_difference():
    """Of costs around a billion, the best sum is above the limit by 1."""
    model = layers(2, 2)
    space = SearchSpace(model)
    cost = TableCost(space, {"layer0": {"0": 1e9, "1": 1e9 + 1}, "layer1": {"0": 0.0, "1": 5.0}})
    score = AdditiveScore(space, {"layer0": {"0": 1.0, "1": 2.0}, "layer1": {"0": 0.0, "1": 0.5}})
    limits = Limits(model, {"cost": 1e9}, costs={"cost": cost})
    assert maximize(score, limits, count=4) == [({"layer0": "0", "layer1": "0"}, 1.0)]


def test_limits_that_nothing_keeps_name_the_nearest_architecture():
    model = layers(3, 2)
    space = SearchSpace(model)
    costs = {
        name: TableCost(space, {f"layer{i}": values for i in range(3)})
        for name, values in {"time": {"0": 4.0, "1": 1.0}, "error": {"0": 1.0, "1": 4.0}}.items()
    }
    limits = Limits(model, {"time": 12, "error": 12}, costs=costs)
    limits.bounds = {"time": (-math.inf, 5.0), "error": (-math.inf, 9.0)}  # one is 6 at least where the other is 9
    with pytest.raises(CostError, match=r"the nearest has time 6 \(at most 5\), error 9 \(at most 9\), as \{'layer0'"):
        maximize(AdditiveScore(space, {}), limits)


def test_a_cost_that_is_no_sum_is_refused_by_name():
    model = layers(2, 2)
    space = SearchSpace(model)
    peak = ArchitectureCost(space, lambda one: max(map(int, one.values())), name="peak")
    with pytest.raises(CostError, match=r"'peak' \(ArchitectureCost\) is not known as a sum"):
        maximize(AdditiveScore(space, {}), Limits(model, {"peak": 1}, costs={"peak": peak}))


def test_terms_that_are_not_the_cost_are_refused():
    class Wrong(Cost):
        name = "wrong"

        def __init__(self, space):
            self.space = space

        def of(self, architecture):
            return float(architecture["layer0"])

        def terms(self):
            return [Term(("layer0",), {("0",): 0.5, ("1",): 0.5})]

    model = layers(1, 2)
    space = SearchSpace(model)
    limits = Limits(model, {"wrong": 1}, costs={"wrong": Wrong(space)})
    with pytest.raises(CostError, match=r"Wrong\.terms\(\) say what it is the sum of"):
        maximize(AdditiveScore(space, {}), limits)


def test_a_constraint_that_refuses_whatever_is_best_is_named(monkeypatch):
    monkeypatch.setattr(integer_program, "MAX_REFUSED", 10)

    def odd(architecture):
        return architecture["layer0"] == "0"

    space = SearchSpace(layers(12, 3)).where(odd)
    score = AdditiveScore(space, {"layer0": {"0": -100.0, "1": 100.0, "2": 100.0}})
    with pytest.raises(SpaceError, match="odd, which cannot stand in an integer program"):
        maximize(score)


def test_the_probability_of_a_relaxation_is_its_score():
    model = nn.ModuleList(
        [LayerChoice([nn.ReLU(), nn.Tanh(), nn.Identity()], label="act"), *(f() for f in LEAVES.values())]
    )
    space = SearchSpace(model)
    relaxation = Softmax(space, seed=3)
    with torch.no_grad():
        for logits in relaxation.logits.values():
            logits.mul_(1000)
    score = AdditiveScore.of(relaxation)
    probabilities = [math.exp(score(one)) for one in space.enumerate()]
    assert sum(probabilities) == pytest.approx(1)
    (best,) = maximize(score)
    assert best.architecture == relaxation.derive()
    assert math.exp(best.score) == pytest.approx(max(probabilities))


def test_a_fitted_score_is_that_which_made_the_scores():
    model = nn.ModuleList(
        [LayerChoice([nn.ReLU(), nn.Tanh(), nn.Identity()], label="act"), *(f() for f in LEAVES.values())]
    )
    space, generator = SearchSpace(model), random.Random(0)
    singles = {label: dict.fromkeys(d.outcomes, 0.0) for label, d in space.items()}
    singles = {label: {one: generator.gauss(0, 1) for one in of} for label, of in singles.items()}
    pairs = {("v", "w"): {(v, w): generator.gauss(0, 1) for v in (1, 2, 4) for w in (1, 2, 4)}}
    truth = AdditiveScore(space, singles, pairs)
    every = list(space.enumerate())
    known = generator.sample(every, 60)
    fitted = fit_scores(space, known, map(truth, known), pairs=[("v", "w")])
    assert [fitted(one) for one in every] == pytest.approx(list(map(truth, every)))
    assert fitted.error == pytest.approx(0, abs=1e-9)
    assert fitted.tau == pytest.approx(1)
    single = fit_scores(space, known, map(truth, known))
    assert 0.1 < single.error < single.deviation
    assert 0.3 < single.tau < 1


def test_noise_fits_nothing_and_the_error_says_so():
    space, generator = SearchSpace(layers(8, 4)), random.Random(0)
    drawn = torch.Generator().manual_seed(0)
    known = [space.sample(drawn) for _ in range(60)]
    fitted = fit_scores(space, known, [*(generator.gauss(0, 1) for _ in known[1:]), math.nan])
    assert fitted.error > fitted.deviation
    assert abs(fitted.tau) < 0.3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda s: AdditiveScore(s, {"layer9": {"0": 1}}), "no choice 'layer9'"),
        (lambda s: AdditiveScore(s, {"layer0": {"0": 1}}), "give a number for each of '0', '1'"),
        (lambda s: AdditiveScore(s, {"layer0": [1.0]}), "2 decisions, but 1 scores"),
        (lambda s: AdditiveScore(s, {"layer0": {"0": math.nan, "1": 1}}), "not nan"),
        (lambda s: AdditiveScore(s, {"layer0": {"0": math.inf, "1": 1}}), "not inf"),
        (lambda s: AdditiveScore(s, {}, {("layer0", "layer0"): {}}), "a pair is two labels"),
        (lambda s: AdditiveScore(s, {}, {("layer0", "layer1"): {("0", "7"): 1.0}}), "no candidate '7'"),
        (lambda s: AdditiveScore.of(nn.Linear(1, 1)), "by a Linear is not known"),
        (lambda s: fit_scores(s, list(s.enumerate()), [1.0]), "4 architectures have 1 scores"),
        (lambda s: fit_scores(s, list(s.enumerate()), [1.0] * 4), "at least 10"),
        (lambda s: maximize(AdditiveScore(s, {}), Limits(layers(3, 2), {"parameters": 5})), "another space"),
    ],
)
def test_what_cannot_be_is_refused(make, match):
    with pytest.raises((ArchitectureError, TrainingError, SpaceError), match=match):
        make(SearchSpace(layers(2, 2)))
