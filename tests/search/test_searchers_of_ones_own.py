"""Searchers that users write: `ask` and `tell` are enough, and what cannot be is refused before anything is scored."""

import math
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from supernet import LayerChoice, SearchSpace, Supernet, load_architecture, save_architecture
from supernet.errors import ArchitectureError, NonFiniteError, SpaceError, TrainingError
from supernet.search import EvolutionSearcher, RandomSearcher, Scored, Searcher, search
from supernet.testing import check_searcher

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text()


def model():
    return nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh(), nn.GELU()], label=f"l{i}") for i in range(4)))


SPACE = SearchSpace(model())


def score(architectures):
    return [float(sum(map(int, a.values()))) for a in architectures]


class Enumerates:
    """Asks for all architectures in turn."""

    def __init__(self, space):
        self.space, self.left, self.told = space, space.enumerate(), []

    def ask(self, count):
        return list(islice(self.left, min(count, 7)))

    def tell(self, architectures, scores):
        self.told += zip(architectures, scores, strict=True)


def test_a_searcher_that_only_asks_and_is_told_is_ranked_by_search():
    searcher = Enumerates(SPACE)
    found = search(searcher, score, 100)
    assert found == [Scored(*one) for one in sorted(searcher.told, key=lambda one: -one[1])]
    assert found[0] == ({f"l{i}": "2" for i in range(4)}, 8.0)
    with pytest.raises(NonFiniteError, match="each of 81 architectures is NaN"):
        search(Enumerates(SPACE), lambda many: [math.nan] * len(many), 100)


def test_a_searcher_that_inherits_the_protocol_need_not_rank_either():
    inheriting = type("Inheriting", (Enumerates, Searcher), {})
    assert search(inheriting(SPACE), score, 100) == search(Enumerates(SPACE), score, 100)


def test_the_searcher_of_the_docs_finds_the_best_of_a_smooth_score():
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "class " in b]
    namespace = {"torch": torch, "supernet": Supernet(model()), "score": score, "search": search, "__name__": "page"}
    exec(block, namespace)
    (own,) = [kind for kind in namespace.values() if isinstance(kind, type)]
    assert search(own(SPACE), score, 200)[0].score == 8.0
    with pytest.raises(AssertionError, match="lacks ranked, state_dict, load_state_dict"):
        check_searcher(own)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (None, TrainingError, "Own.ask(5) returned None; let it return a list of architectures, an empty one where"),
        ({"l0": "0"}, TrainingError, "Own.ask(5) returned {'l0': '0'}; let it return a list of architectures"),
        (["l0"], TrainingError, "Own.ask(5) returned ['l0']; let it return a list"),
        (list(SPACE.enumerate())[:6], TrainingError, "Own.ask(5) returned 6 architectures; let it return 5 at most"),
        ([{"other": "0"}], ArchitectureError, "Own.ask(5) returned what is no architecture of its space: "),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused_before_it_is_scored(asked, error, message):
    class Own(Enumerates):
        def ask(self, count):
            return asked

    searcher, scored = Own(SPACE), []
    with pytest.raises(error, match=re.escape(message)):
        search(searcher, lambda many: scored.extend(many) or score(many), 5)
    assert scored == searcher.told == []


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        (RandomSearcher, "searcher is the class RandomSearcher; give one that is made, RandomSearcher(...)"),
        (SPACE, "searcher has ask(count) and tell(architectures, scores), and SearchSpace lacks ask and tell"),
    ],
)
def test_what_is_no_searcher_is_refused_by_what_it_lacks(searcher, message):
    with pytest.raises(TrainingError, match=re.escape(message)):
        search(searcher, score, 5)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (0.5, "the scores of 2 architectures are a list with a number for each, not 0.5"),
        (torch.tensor(0.5), "the scores of 2 architectures are a list with a number for each, not tensor(0.5000)"),
        (None, "the scores of 2 architectures are a list with a number for each, not None"),
        ([1.0], "2 architectures are told with 1 scores; give one score for each"),
        (["1", "2"], "a score is a number, higher is better, not '1'"),
        (torch.zeros(2, 3), "a score is a number, higher is better, not tensor([0., 0., 0.])"),
    ],
)
def test_scores_that_are_none_are_refused_by_name(scores, message):
    for searcher in (Enumerates(SPACE), EvolutionSearcher(SPACE)):
        with pytest.raises(TrainingError, match=re.escape(message)):
            search(searcher, lambda many: scores, 2)


@pytest.mark.parametrize("of", [torch.tensor, np.array, tuple])
def test_scores_may_stand_in_a_tensor_an_array_or_a_tuple(of):
    assert search(Enumerates(SPACE), lambda many: of(score(many)), 81) == search(Enumerates(SPACE), score, 81)
    with pytest.raises(TrainingError, match="score is a function that returns the score of each"):
        search(Enumerates(SPACE), of([1.0]), 81)


def test_a_model_or_supernet_in_the_place_of_its_space_is_refused_at_once(tmp_path):
    supernet, path = Supernet(model()), tmp_path / "architecture.json"
    architecture = supernet.space.sample()
    save_architecture(architecture, path, supernet.space)
    wrong = {"Sequential; give SearchSpace(model)": model(), "Supernet; give its .space": supernet, "str; give one": ""}
    for message, space in wrong.items():
        for use in (
            RandomSearcher,
            EvolutionSearcher,
            lambda space: load_architecture(path, space),
            lambda space: save_architecture(architecture, tmp_path / "other.json", space),
        ):
            with pytest.raises(SpaceError, match=re.escape(f"space is a SearchSpace, not {message}")):
                use(space)
    assert not (tmp_path / "other.json").exists()


def test_check_searcher_says_what_is_promised_of_whatever_is_no_searcher():
    class AsksForNothing(RandomSearcher):
        def ask(self, count):
            return None

    class RanksNothing(RandomSearcher):
        def ranked(self):
            return None

    class RanksArchitectures(RandomSearcher):
        def ranked(self):
            return [one.architecture for one in super().ranked()]

    promises = {
        Enumerates: "a searcher has the methods ask, tell, ranked, state_dict, load_state_dict; but Enumerates lacks "
        "ranked, state_dict, load_state_dict",
        AsksForNothing: "ask(6) returns a list of architectures; but it returned None",
        RanksNothing: "ranked() returns a list of Scored; but it returned None",
        RanksArchitectures: "ranked() returns a list of Scored; but it returned [{",
    }
    for make, promise in promises.items():
        with pytest.raises(AssertionError, match=re.escape(promise)):
            check_searcher(make)
    with pytest.raises(AssertionError, match=re.escape("make(space) returns a searcher; but it returned <class")):
        check_searcher(lambda space: RandomSearcher)
