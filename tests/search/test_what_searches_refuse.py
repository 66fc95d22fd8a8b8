"""What is given to searches and cannot be is refused by an error of one line that names it."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet.nn as elastic
from supernet import SearchSpace, Supernet, ValueChoice, accuracy
from supernet.cost import Limits
from supernet.errors import CostError, TrainingError
from supernet.search import NsgaSearcher, SupernetEvaluator, TpeSearcher, search_front
from supernet.search.workers import Answerer

OBJECTIVES = {"accuracy": "max", "parameters": "min"}


def new_model(label="width"):
    width = ValueChoice([2, 4, 8], label=label)
    return nn.Sequential(elastic.Linear(4, width), nn.ReLU(), elastic.Linear(width, 2))


def new_evaluator(seed=0):
    torch.manual_seed(seed)
    X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(X, (X.sum(1) > 0).long())
    return SupernetEvaluator(Supernet(new_model()), (data, data), metrics=accuracy)


def constant(architectures):
    return [{"accuracy": 0.5} for _ in architectures]


@pytest.mark.parametrize("given", [None, 5, new_model()], ids=["None", "a number", "a model"])
def test_what_cannot_evaluate_is_named_though_a_model_is_given(given):
    with pytest.raises(TrainingError, match=rf"evaluate is an evaluator, .* not of type {type(given).__name__}"):
        search_front(given, OBJECTIVES, 2, model=new_model())


def test_limits_of_another_model_are_named_and_not_the_searcher():
    limits = Limits(new_model(label="other"), {"parameters": 100})
    with pytest.raises(CostError, match=r"parameters at most 100.* of another space than the model's"):
        search_front(constant, OBJECTIVES, 2, model=new_model(), limits=limits)


def test_costs_that_are_no_dict_are_named():
    with pytest.raises(CostError, match=r"costs are a dict name -> Cost, not \[1\]"):
        search_front(constant, OBJECTIVES, 2, model=new_model(), costs=[1])


def test_limits_of_the_best_that_are_no_dict_are_named():
    front = search_front(constant, OBJECTIVES, 2, model=new_model())
    with pytest.raises(CostError, match=r"limits are a dict such as .*, not 'parameters'"):
        front.best("parameters")


def test_an_example_on_which_nothing_runs_is_an_error_of_one_line():
    model = nn.Sequential(elastic.Conv2d(1, ValueChoice([2, 4], label="width"), 3))  # of which torch says six lines
    with pytest.raises(CostError, match=r"does not run on the example .*; give what it is called with") as caught:
        search_front(constant, OBJECTIVES, 2, model=model, example="text", limits={"macs": "50%"})
    assert len(str(caught.value).splitlines()) == 1


def test_a_make_that_returns_nothing_says_so_to_whoever_asks():
    metrics, failure = Answerer(lambda worker: None, 0).answer({"width": 2})
    assert metrics is None
    assert "make returns what evaluates an architecture, a function, not None" in failure


@pytest.mark.parametrize("storage", [5, "no url", "sqlite:////there/is/no/such.db"])
def test_a_storage_that_cannot_be_opened_is_named_in_one_line(storage):
    pytest.importorskip("optuna")
    with pytest.raises(TrainingError, match=rf"the storage {storage!r} cannot be opened: .*; give a URL") as caught:
        TpeSearcher(SearchSpace(new_model()), storage=storage)
    assert len(str(caught.value).splitlines()) == 1


def test_a_storage_that_cannot_be_opened_is_named_without_its_password():
    pytest.importorskip("optuna")
    with pytest.raises(TrainingError, match=r"the storage 'nope://\.\.\.@host/db' cannot be opened") as caught:
        TpeSearcher(SearchSpace(new_model()), storage="nope://me:secret@host/db")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [TpeSearcher, NsgaSearcher])
def test_a_study_of_other_weights_is_refused_and_of_the_same_gone_on_with(kind, tmp_path):
    pytest.importorskip("optuna")
    searcher = partial(kind, storage=f"sqlite:///{tmp_path / 'search.db'}")
    search_front(new_evaluator(), OBJECTIVES, 1, searcher=searcher)
    assert len(search_front(new_evaluator(), OBJECTIVES, 1, searcher=searcher).entries) == 2
    with pytest.raises(TrainingError, match=r"of evaluations of other weights or data .*; give another study_name"):
        search_front(new_evaluator(seed=1), OBJECTIVES, 1, searcher=searcher)
    other = partial(searcher, study_name="other weights")
    assert len(search_front(new_evaluator(seed=1), OBJECTIVES, 1, searcher=other).entries) == 1


def test_a_study_of_another_identity_is_refused(tmp_path):
    pytest.importorskip("optuna")
    searcher = partial(TpeSearcher, storage=f"sqlite:///{tmp_path / 'search.db'}")
    search_front(constant, OBJECTIVES, 1, model=new_model(), searcher=searcher, identity="monday")
    with pytest.raises(TrainingError, match="monday, and these are of tuesday"):
        search_front(constant, OBJECTIVES, 1, model=new_model(), searcher=searcher, identity="tuesday")
    assert math.isfinite(
        search_front(constant, OBJECTIVES, 1, model=new_model(), searcher=searcher).entries[0].metrics["accuracy"]
    )
