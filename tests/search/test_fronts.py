"""A front against enumeration, as a file, and what is said of limits that nothing keeps."""

import io
import json
import math
from functools import partial
from itertools import pairwise

import pytest
import rich.console
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import supernet.nn as elastic
from supernet import LayerChoice, SearchSpace, ValueChoice
from supernet.cost import ArchitectureCost, Limits, Parameters
from supernet.errors import CostError, FileFormatError, NonFiniteError, TrainingError
from supernet.search import Entry, EvolutionSearcher, Front, RandomSearcher, search_front
from supernet.search.dominance import crowding_distances, nondominated, order_of_several

OBJECTIVES = {"accuracy": "max", "parameters": "min"}


def mlp(widths=(8, 16, 32), layers=3):
    sizes = [4, *(ValueChoice(list(widths), label=f"width{i}") for i in range(layers)), 2]
    return nn.Sequential(*(elastic.Linear(a, b) for a, b in pairwise(sizes)))


def accuracy_of(architecture):
    """A number that has little to do with size: 0 to 100."""
    return sum(ord(letter) * (i % 7 + 1) for i, letter in enumerate(json.dumps(architecture))) % 101


def evaluate(architectures):
    return [{"accuracy": accuracy_of(architecture)} for architecture in architectures]


MODEL = mlp()
SPACE = SearchSpace(MODEL)
PARAMETERS = Parameters(MODEL)

# --- dominance -----------------------------------------------------------------------------------------------

scores_of_some = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=12)


def beats(one, other):
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


@settings(max_examples=60)
@given(scores=scores_of_some)
def test_what_is_not_dominated_is_what_no_other_beats(scores):
    assert nondominated(scores) == [i for i, s in enumerate(scores) if not any(beats(other, s) for other in scores)]


@settings(max_examples=60)
@given(scores=scores_of_some)
def test_what_is_beaten_comes_after_what_beats_it(scores):
    order = order_of_several(scores)
    assert sorted(order) == list(range(len(scores)))
    assert not any(beats(scores[after], scores[before]) for i, before in enumerate(order) for after in order[i:])


def test_crowding_is_the_distance_between_neighbours_as_in_nsga_2():
    scores = [[0, 10], [1, 6], [5, 5], [10, 0]]
    assert crowding_distances(scores) == [math.inf, 5 / 10 + 5 / 10, 9 / 10 + 6 / 10, math.inf]
    assert order_of_several(scores) == [0, 3, 2, 1]


# --- searching for a front -----------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", [RandomSearcher, partial(EvolutionSearcher, population=6, num_parents=3)])
def test_a_search_of_the_whole_space_gives_the_front_that_enumeration_gives(searcher):
    front = search_front(evaluate, OBJECTIVES, 27, model=MODEL, searcher=searcher)
    scores = {json.dumps(a): (accuracy_of(a), -PARAMETERS.of(a)) for a in SPACE.enumerate()}
    expected = {name for name, score in scores.items() if not any(beats(other, score) for other in scores.values())}
    assert {json.dumps(entry.architecture) for entry in front.nondominated} == expected
    assert len(front.entries) == 27
    for limit in (300, 700, 1_500):
        allowed = [a for a in SPACE.enumerate() if PARAMETERS.of(a) <= limit]
        assert front.best({"parameters": limit}).metrics["accuracy"] == max(map(accuracy_of, allowed))


def test_under_several_budgets_each_keeps_its_limits_and_nothing_is_measured_twice():
    measured = []

    def noting(architectures):
        measured.extend(map(json.dumps, architectures))
        return evaluate(architectures)

    budgets = [{"parameters": 700}, {"parameters": (500, 1_500)}, Limits(MODEL, {"parameters": 400})]
    front = search_front(noting, {"accuracy": "max"}, 30, model=MODEL, limits=budgets)
    assert len(measured) == len(set(measured))
    assert set(measured) == {json.dumps(a) for a in SPACE.enumerate() if PARAMETERS.of(a) <= 1_500}
    assert front.budgets == [{"parameters": bounds} for bounds in ((-math.inf, 700), (500, 1_500), (-math.inf, 400))]
    assert all(entry.costs["parameters"] == PARAMETERS.of(entry.architecture) for entry in front.entries)


@pytest.mark.parametrize("shown", [True, False])
def test_where_there_is_a_terminal_a_bar_counts_what_is_measured_under_each_budget(monkeypatch, shown):
    console, written = rich.console.Console, io.StringIO()
    monkeypatch.setattr(
        rich.console, "Console", lambda **options: console(file=written, force_terminal=True, width=120)
    )
    limits = [{"parameters": 400}, {"parameters": 800}]
    search_front(evaluate, OBJECTIVES, 10, model=MODEL, limits=limits, searcher=RandomSearcher, progress=shown)
    assert [f"search {number}/2" in written.getvalue() for number in (1, 2)] == [shown, shown]
    assert ("10/10" in written.getvalue()) == shown


def test_a_space_and_costs_of_its_architectures_are_enough():
    space = SearchSpace(nn.Sequential(LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, label="op")))
    letters = ArchitectureCost(space, lambda architecture: ord(architecture["op"]))
    front = search_front(evaluate, {"letters": "min"}, 9, model=space, costs={"letters": letters})
    assert front.best().architecture == {"op": "a"}
    with pytest.raises(CostError, match="the cost 'parameters' is of networks, not of a space"):
        search_front(evaluate, OBJECTIVES, 9, model=space)


def test_nan_is_never_the_best_nor_on_the_front():
    def partly_nan(architectures):
        return [{"accuracy": math.nan if a["width0"] != 8 else accuracy_of(a)} for a in architectures]

    front = search_front(partly_nan, OBJECTIVES, 27, model=MODEL)
    assert len(front.entries) == 27
    assert {entry.architecture["width0"] for entry in front.nondominated} == {8}
    assert front.best().architecture["width0"] == 8
    with pytest.raises(NonFiniteError, match="accuracy of each of"):
        Front(SPACE, OBJECTIVES, [entry for entry in front.entries if entry.architecture["width0"] != 8]).best()
    with pytest.raises(NonFiniteError, match="NaN"):
        search_front(lambda some: [{"accuracy": math.nan}] * len(some), OBJECTIVES, 9, model=MODEL)


TEXTS = {"evaluate": lambda some: [{"accuracy": "good"}] * len(some)}


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (TrainingError, "the objective 'accuracy' is to be \"max\"", {"objectives": {"accuracy": "up"}}),
        (TrainingError, "'f1' is neither measured nor a cost; measured are acc", {"objectives": {"f1": "max"}}),
        (TrainingError, "num_evaluations", {"num_evaluations": 0}),
        (TrainingError, "give model=", {"model": None}),
        (TrainingError, "searcher makes a searcher", {"searcher": RandomSearcher(SPACE)}),
        (TrainingError, "Linear does not take: .* 'out_features'", {"searcher": nn.Linear}),
        (TrainingError, "generator is a torch.Generator.* not 5", {"generator": 5}),
        (TrainingError, "evaluate returns dicts name -> number", TEXTS),
        (TrainingError, "evaluate returns a list of a dict for each", {"evaluate": lambda some: []}),
        (CostError, "found that keeps the limits; the nearest has parameters", {"limits": {"parameters": 3}}),
        (CostError, "there is no cost 'joules'", {"limits": {"joules": 3}}),
    ],
)
def test_what_cannot_be_searched_for_is_refused_by_name(error, says, options):
    options = {"evaluate": evaluate, "objectives": OBJECTIVES, "num_evaluations": 27, "model": MODEL, **options}
    with pytest.raises(error, match=says):
        search_front(**options)


# --- the front -----------------------------------------------------------------------------------------------


def test_a_limit_that_nothing_measured_keeps_names_the_nearest():
    front = search_front(evaluate, OBJECTIVES, 27, model=MODEL)
    smallest = min(PARAMETERS.of(a) for a in SPACE.enumerate())
    with pytest.raises(CostError, match=f"the nearest has parameters {smallest:g} \\(at most 100\\)"):
        front.best({"parameters": 100})
    with pytest.raises(CostError, match="'latency_ms', which was not measured; the front knows: parameters, accuracy"):
        front.best({"latency_ms": 3})
    with pytest.raises(CostError, match=r"Limits\(model, \.\.\.\) knows"):
        front.best({"parameters": "60%"})
    assert front.best(Limits(MODEL, {"parameters": "60%"})) in front.entries
    assert front.best({"accuracy": (50, None)}, metric="parameters").metrics["accuracy"] >= 50


def test_a_front_in_a_file_comes_back_and_belongs_to_its_space(tmp_path):
    front = search_front(
        evaluate, OBJECTIVES, 20, model=MODEL, limits=[{"parameters": 700}, {"parameters": (500, None)}]
    )
    front.entries.append(Entry(SPACE.sample(torch.Generator()), {"accuracy": math.nan}, {"parameters": math.inf}))
    front.save(tmp_path / "front.json")
    again = Front.load(tmp_path / "front.json", SPACE)
    assert again.entries[:-1] == front.entries[:-1]
    assert math.isnan(again.entries[-1].metrics["accuracy"]) and again.entries[-1].costs == {"parameters": math.inf}
    assert (again.objectives, again.budgets, str(again)) == (front.objectives, front.budgets, str(front))
    with pytest.raises(FileFormatError, match="another space"):
        Front.load(tmp_path / "front.json", SearchSpace(mlp(layers=2)))
    (tmp_path / "front.json").write_text((tmp_path / "front.json").read_text().replace("8", "9", 1))
    with pytest.raises(FileFormatError):
        Front.load(tmp_path / "front.json", SPACE)


def test_a_front_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    front = search_front(evaluate, OBJECTIVES, 20, model=MODEL, limits={"parameters": 700})
    assert [path.name for path in front.plot(tmp_path / "front")] == ["front.png", "front.svg"]
    assert front.plot(str(tmp_path / "one.png")) == [tmp_path / "one.png"]
    assert all((tmp_path / name).stat().st_size > 1_000 for name in ("front.png", "front.svg", "one.png"))
    with pytest.raises(TrainingError, match=r"front.xyz ends in '.xyz', of which there are no pictures; .* png,"):
        front.plot(tmp_path / "front.xyz")
