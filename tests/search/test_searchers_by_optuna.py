"""Searchers that propose by Optuna: limits are kept, studies go on in their storage, choices of any kind are said."""

import builtins
import json
import math
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import supernet.nn as elastic
from supernet import InputChoice, LayerChoice, SearchSpace, ValueChoice
from supernet.cost import Limits
from supernet.errors import MissingExtraError, TrainingError
from supernet.search import NsgaSearcher, RandomSearcher, TpeSearcher, search

optuna = pytest.importorskip("optuna")
KINDS = {"TPE": partial(TpeSearcher, num_first=5), "NSGA-II": partial(NsgaSearcher, population=6)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Planted(nn.Module):
    """Choices of each kind, two of them inside a candidate; 5 * 3 * 3 * 7 * 2 ** 7 * (3 * 3 + 2) architectures."""

    def __init__(self):
        super().__init__()
        inner = [LayerChoice([nn.ReLU() for _ in range(3)], label=f"inner{i}") for i in range(2)]
        self.layers = nn.ModuleList([LayerChoice([nn.ReLU() for _ in range(3)], label=f"l{i}") for i in range(2)])
        self.outer = LayerChoice(
            {"flat": nn.ReLU(), "none": nn.Identity(), "deep": nn.Sequential(*inner)}, label="outer"
        )
        width, rate = ValueChoice([8, 16, 32, 64, 128], label="width"), ValueChoice([0.5, 0.0, 0.1], label="rate")
        self.linear, self.drop = elastic.Linear(4, width), nn.ModuleList([elastic.Dropout(rate)])
        self.some, self.many = InputChoice(4, 2, label="some"), InputChoice(7, None, label="many")


PLANTED = {"l0": "2", "l1": "1", "outer": "deep", "inner0": "2", "inner1": "1", "width": 32, "rate": 0.0}
PLANTED |= {"some": [1, 3], "many": [0, 3, 4]}


def likeness(architecture):
    """Number of decisions that are the planted ones; of sets and widths the nearer the better."""
    labels = ("l0", "l1", "outer", "inner0", "inner1", "rate")
    score = sum(architecture.get(label) == PLANTED[label] for label in labels)
    score -= abs(math.log2(architecture["width"] / PLANTED["width"])) / 4
    return score - sum(len({*architecture[label]} ^ {*PLANTED[label]}) / 4 for label in ("some", "many"))


def scores(architectures):
    return [likeness(architecture) for architecture in architectures]


@every_kind
def test_on_a_planted_answer_it_is_nearer_than_random_search_of_as_many(kind):
    space = SearchSpace(Planted())
    found = [search(KINDS[kind](space, generator=generator(seed)), scores, 60)[0].score for seed in range(3)]
    random = [search(RandomSearcher(space, generator=generator(seed)), scores, 60)[0].score for seed in range(3)]
    assert min(found) >= max(random) and sum(found) > sum(random) + 2


@every_kind
def test_limits_are_kept_and_what_keeps_them_is_found(kind):
    sizes = [4, *(ValueChoice([8, 16, 24, 32], label=f"width{i}") for i in range(3)), 2]
    model = nn.Sequential(*(elastic.Linear(a, b) for a, b in pairwise(sizes)))
    limits = Limits(model, {"parameters": (300, 700)})
    allowed = [a for a in limits.space.enumerate() if limits(a)]
    found = search(
        KINDS[kind](limits.space, constraint=limits), lambda some: [sum(a.values()) for a in some], len(allowed) + 10
    )
    assert sorted(json.dumps(one.architecture) for one in found) == sorted(map(json.dumps, allowed))


@every_kind
def test_of_several_objectives_those_on_the_front_are_ranked_first(kind):
    space = SearchSpace(Planted())

    def both(architectures):
        return [(likeness(a), -float(a["width"])) for a in architectures]

    searcher = KINDS[kind](space)
    found = search(searcher, both, 30)
    best = found[0].score
    assert len(found) == 30 and not any(a >= best[0] and b > best[1] for a, b in (one.score for one in found))
    with pytest.raises(TrainingError, match="as many objectives"):
        searcher.tell([space.sample(generator(9))], [1.0])


@every_kind
def test_a_search_goes_on_in_its_storage_and_asks_for_nothing_again(kind, tmp_path):
    space, storage = (
        SearchSpace(Planted()),
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))),
    )
    first = search(KINDS[kind](space, storage=storage), scores, 12)
    searcher = KINDS[kind](space, storage=storage, generator=generator(1))
    again = search(searcher, scores, 8)
    assert len(again) == 20
    assert {json.dumps(one.architecture) for one in first} < {json.dumps(one.architecture) for one in again}
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.study_name == f"{type(searcher).__name__} {space.fingerprint[:12]}"


def test_limits_have_a_study_of_their_own_and_what_breaks_them_is_infeasible_there():
    model = nn.Sequential(elastic.Linear(4, width := ValueChoice([8, 16, 32], label="width")), elastic.Linear(width, 2))
    storage = optuna.storages.InMemoryStorage()
    limits = Limits(model, {"parameters": 130})
    searcher = TpeSearcher(limits.space, num_first=1, constraint=limits, storage=storage, study_name="mlp")
    search(searcher, lambda some: [a["width"] for a in some], 3)
    (name,) = optuna.get_all_study_names(storage)
    assert name == "mlp, parameters at most 130"
    for trial in optuna.load_study(study_name=name, storage=storage).trials:
        width = json.loads(trial.user_attrs["architecture"])["width"]
        assert (trial.constraints["parameters"] > 0) == (width == 32)
        assert (trial.state == optuna.trial.TrialState.COMPLETE) <= (width < 32)


def test_importing_the_library_does_not_import_optuna():
    code = "import sys, supernet, supernet.search; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_without_optuna_the_extra_is_named(monkeypatch):
    space = SearchSpace(Planted())
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"TpeSearcher needs Optuna: pip install 'supernet\[optuna\]'"):
        TpeSearcher(space)
