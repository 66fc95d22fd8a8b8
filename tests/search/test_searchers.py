"""Searchers against enumeration, and what each promises to whoever asks it."""

import copy
import hashlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.errors import ArchitectureError, NonFiniteError, SpaceError, TrainingError
from supernet.search import (
    EvolutionSearcher,
    ExhaustiveSearcher,
    RandomSearcher,
    RegularizedEvolutionSearcher,
    evolve,
    search,
)

SEARCHERS = {
    "random": RandomSearcher,
    "exhaustive": ExhaustiveSearcher,
    "regularized evolution": lambda space, **options: RegularizedEvolutionSearcher(
        space, population=6, batch_size=4, **options
    ),
    "evolution": lambda space, **options: EvolutionSearcher(space, population=6, num_parents=3, **options),
}
every_searcher = pytest.mark.parametrize("kind", SEARCHERS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def space_of(counts, inputs=0, nested=False):
    layers = [LayerChoice([nn.ReLU() for _ in range(count)], label=f"l{i}") for i, count in enumerate(counts)]
    if inputs:
        layers.append(InputChoice(inputs, None, label="inputs"))
    if nested:
        inner = LayerChoice([nn.ReLU(), nn.Tanh(), nn.GELU()], label="inner")
        layers.append(LayerChoice({"flat": nn.ReLU(), "deep": nn.Sequential(inner)}, label="outer"))
    return SearchSpace(nn.ModuleList(layers))


spaces = st.builds(
    space_of, st.lists(st.integers(1, 3), min_size=1, max_size=2), st.integers(0, 2), st.booleans()
)  # of up to 144 architectures
SPACE = space_of([4, 4, 4], inputs=3, nested=True)


def table(space, seed):
    """A score of each architecture, which has nothing to do with that of its neighbours."""
    names = [json.dumps(architecture) for architecture in space.enumerate()]
    return dict(zip(names, torch.rand(len(names), generator=generator(seed)).tolist(), strict=True))


def few_inputs(architecture):
    return len(architecture.get("inputs", [])) < 2 and architecture["l0"] != "1"


# --- against enumeration -----------------------------------------------------------------------------------


@every_searcher
@settings(max_examples=15, deadline=None)
@given(space=spaces, seed=st.integers(0, 100), constrained=st.booleans())
def test_a_budget_of_the_whole_space_finds_the_best_of_any_scores_and_asks_for_each_once(
    kind, space, seed, constrained
):
    constraint = few_inputs if constrained else None
    allowed = [a for a in space.enumerate() if constraint is None or constraint(a)]
    scores, asked = table(space, seed), []

    def score(architectures):
        asked.extend(architectures)
        return [scores[json.dumps(a)] for a in architectures]

    found = search(SEARCHERS[kind](space, generator=generator(seed), constraint=constraint), score, space.size)
    assert sorted(map(json.dumps, asked)) == sorted(map(json.dumps, allowed))
    assert found[0].architecture == max(allowed, key=lambda a: scores[json.dumps(a)])
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_random_search_asks_for_what_as_many_draws_give():
    drawing = generator(3)
    drawn = [SPACE.sample(drawing) for _ in range(200)]
    distinct = list({json.dumps(architecture): architecture for architecture in drawn}.values())
    assert len(distinct) < 200
    assert RandomSearcher(SPACE, generator=generator(3)).ask(200) == distinct


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "0cc103a53c2409fb"),
        ({"population": 7, "num_parents": 3, "budget": 40, "mutation_probability": 0.5}, "5b4d20c32c82e86f"),
        ({"constraint": lambda a: a["deep"] == "flat" and a["l0"] != "0"}, "eae6b31236e74549"),
        ({"score": lambda a: math.nan if a["l0"] == "0" else distance(a)}, "2bc24fd70d9f2dcc"),
    ],
)
def test_evolution_draws_what_it_drew_before_there_were_searchers(options, digest):
    """Those digests are of what was asked for and found then, so that searches that were begun then go on."""
    space = SearchSpace(OfThen())
    options = {"score": distance, "budget": 230, "generator": generator(3), **options}
    score, asked = options.pop("score"), []

    def scores(generation):
        asked.append(generation)
        return [score(architecture) for architecture in generation]

    found = evolve(space, scores, **options)
    assert hashlib.sha256(json.dumps([asked, found]).encode()).hexdigest()[:16] == digest


class OfThen(nn.Module):
    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.ReLU(), nn.ReLU(), nn.ReLU()], label="inner")
        self.layers = nn.ModuleList(LayerChoice([nn.ReLU() for _ in range(4)], label=f"l{i}") for i in range(5))
        self.deep = LayerChoice({"flat": nn.ReLU(), "deep": nn.Sequential(inner)}, label="deep")
        self.inputs = InputChoice(4, 2, label="inputs")


def distance(architecture):
    planted = {f"l{i}": str(i % 4) for i in range(5)} | {"deep": "deep", "inner": "2", "inputs": [1, 3]}
    return -sum(architecture.get(label) != decision for label, decision in planted.items())


# --- what is asked for ---------------------------------------------------------------------------------------


def conversation(asking, counts, scores):
    """Ask and tell in turn, and return all that was asked for."""
    said = []
    for count in counts:
        asked = asking.ask(count)
        asking.tell(asked, [scores[json.dumps(architecture)] for architecture in asked])
        said.append(asked)
    return said


def scores_with_nan(seed):
    scores = table(SPACE, seed)
    return {name: math.nan if score < 0.3 else score for name, score in scores.items()}


counts = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@every_searcher
@settings(max_examples=15, deadline=None)
@given(counts=counts, seed=st.integers(0, 100), constrained=st.booleans())
def test_what_is_asked_for_is_canonical_keeps_the_constraint_and_is_new(kind, counts, seed, constrained):
    constraint = few_inputs if constrained else None
    asking = SEARCHERS[kind](SPACE, generator=generator(seed), constraint=constraint)
    said = conversation(asking, counts, scores_with_nan(seed))
    assert all(0 < len(asked) <= count for asked, count in zip(said, counts, strict=True))
    every = [architecture for asked in said for architecture in asked]
    assert all(SPACE.canonical(architecture) == architecture for architecture in every)
    assert not constrained or all(map(few_inputs, every))
    assert len(set(map(json.dumps, every))) == len(every)


@every_searcher
@settings(max_examples=15, deadline=None)
@given(before=counts, after=counts, seed=st.integers(0, 100))
def test_a_searcher_goes_on_from_its_state_as_if_it_had_never_stopped(kind, before, after, seed):
    scores = scores_with_nan(seed)
    asking, again, other = (SEARCHERS[kind](SPACE, generator=generator(g)) for g in (seed, seed, seed + 1))
    first = conversation(asking, before, scores)
    assert conversation(again, before, scores) == first  # the same seed
    other.load_state_dict(copy.deepcopy(asking.state_dict()))
    assert (
        conversation(other, after, scores) == conversation(asking, after, scores) == conversation(again, after, scores)
    )
    assert other.state_dict()["known"] == asking.state_dict()["known"]
    ours, theirs = json.dumps(asking.state_dict()["scored"]), json.dumps(other.state_dict()["scored"])
    assert ours == theirs


@pytest.mark.parametrize("kind", [kind for kind in SEARCHERS if kind != "exhaustive"])
def test_two_seeds_ask_for_different_architectures(kind):
    one, other = (SEARCHERS[kind](SPACE, generator=generator(seed)) for seed in (0, 1))
    assert one.ask(5) != other.ask(5)


@every_searcher
def test_what_was_asked_for_and_not_told_yet_is_not_asked_for_by_another_worker(kind):
    asking = SEARCHERS[kind](SPACE)
    every = [json.dumps(architecture) for _ in range(5) for architecture in asking.ask(4)]
    assert len(set(every)) == len(every) == 20


@every_searcher
def test_what_another_search_has_scored_counts_and_is_not_asked_for(kind):
    asking = SEARCHERS[kind](space_of([3, 2]))
    asking.tell([{"l0": 1, "l1": 1}], [0.5])  # positions, for names
    assert asking.best == ({"l0": "1", "l1": "1"}, 0.5)
    asked = [architecture for _ in range(9) for architecture in asking.ask(6)]
    assert len(asked) == 5
    assert {"l0": "1", "l1": "1"} not in asked


@every_searcher
def test_a_constraint_is_asked_once_for_each_architecture(kind):
    calls = []

    def constraint(architecture):
        calls.append(json.dumps(architecture))
        return architecture["l0"] == "0"

    search(SEARCHERS[kind](space_of([3, 3]), constraint=constraint), lambda many: [0.0] * len(many), 9)
    assert sorted(calls) == sorted(table(space_of([3, 3]), 0))


# --- what cannot be ------------------------------------------------------------------------------------------


@every_searcher
def test_what_cannot_be_told_is_refused_and_changes_nothing(kind):
    asking = SEARCHERS[kind](SPACE)
    asked = asking.ask(3)
    with pytest.raises(TrainingError, match=f"{len(asked)} architectures are told with 2 scores"):
        asking.tell(asked, [1.0, 2.0])
    with pytest.raises(TrainingError, match="a score is a number, higher is better, not 'good'"):
        asking.tell(asked[:2], [1.0, "good"])
    with pytest.raises(ArchitectureError, match="no choice 'l9'"):
        asking.tell([asked[0], {"l9": "0"}], [1.0, 2.0])
    assert asking.ranked() == []
    with pytest.raises(TrainingError, match="has not been told a score yet"):
        _ = asking.best
    with pytest.raises(ArchitectureError):
        asking.load_state_dict(SEARCHERS[kind](space_of([2])).state_dict() | {"known": [{"l7": "0"}]})


@every_searcher
def test_where_no_score_is_a_number_there_is_no_best(kind):
    with pytest.raises(NonFiniteError, match=r"each of \d+ architectures is NaN"):
        search(SEARCHERS[kind](space_of([3])), lambda many: [math.nan] * len(many), 3)


@every_searcher
def test_numbers_that_mean_nothing_and_constraints_that_nothing_keeps_are_refused(kind):
    for count in (0, 2.5, True):
        with pytest.raises(TrainingError, match="count is a whole number from 1 on"):
            SEARCHERS[kind](SPACE).ask(count)
    with pytest.raises(TrainingError, match="budget is a whole number from 1 on, not 0"):
        search(SEARCHERS[kind](SPACE), lambda many: [0.0] * len(many), 0)
    with pytest.raises(TrainingError, match="constraint is a function or None"):
        SEARCHERS[kind](SPACE, constraint=7)
    with pytest.raises(SpaceError, match=r"none of [\d,]+ architectures (drawn )?keeps the constraint"):
        SEARCHERS[kind](space_of([2, 2]), constraint=lambda architecture: False).ask(1)
    for options in ({"population": 0}, {"num_parents": 1.5}, {"mutation_probability": 1.1}):
        with pytest.raises(TrainingError, match=f"{next(iter(options))} is a"):
            EvolutionSearcher(SPACE, **options)
