"""The table of the docs is true: what works holds all that trainers promise, and what does not is refused."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from supernet import freeze
from supernet.nn import Choice
from supernet.relaxations import DecisionDistribution, EnasController, Gates, Softmax
from supernet.search import EvolutionSearcher, RandomSearcher
from supernet.space import SearchSpace
from supernet.testing import check_relaxation, check_searcher, check_trainer
from what_works_with_what import KINDS, TRAINERS, every_kind, make, read, refusal, table

SLOW = pytest.mark.slow


def shown():
    """Return kind -> trainer -> whether it works, as the docs say."""
    _, _, *rows = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in read().splitlines()]
    return {kind: {name: cell == "yes" for name, cell in zip(TRAINERS, cells, strict=True)} for kind, *cells in rows}


def test_the_docs_show_every_kind_with_every_trainer():
    assert list(shown()) == list(KINDS)
    assert table(shown()) == read()


# Those of one way to run choices refuse the same: one of each is made.
@pytest.mark.parametrize("trainer", ["DARTS", "ProxylessNAS", "single path"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_refuses_when_it_is_made_what_the_docs_say_and_names_what_can(kind, trainer):
    error = refusal(kind, trainer)
    assert (error is None) == shown()[kind][trainer], error
    if error is not None:
        assert "SinglePathTrainer" in error and re.search("'(inputs|value|own|nasbench)", error)


@SLOW
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_works_holds_all_that_trainers_promise(kind, trainer):
    if shown()[kind][trainer]:
        check_trainer(partial(make, kind, trainer))
    else:
        assert refusal(kind, trainer) is not None


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_search_of_all_kinds_at_once_exports_a_network_that_is_what_was_searched(trainer):
    search = make("all of these at once", trainer)
    search.fit()
    architecture, X = search.export(), torch.randn(5, 3)
    network = freeze(search.model, architecture, verify=X)
    assert not any(isinstance(module, Choice) for module in network.modules())
    measured = search.evaluate(architecture)["loss"]
    data = search.valid_part.unsharded(shuffle=False).loader.dataset.dataset
    inputs, targets = map(torch.stack, zip(*data, strict=True))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network.eval()(inputs), targets)
    assert measured == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("searcher", [RandomSearcher, EvolutionSearcher])
def test_searchers_hold_what_they_promise_on_a_space_of_all_kinds_at_once(searcher):
    check_searcher(searcher, SearchSpace(every_kind()))


OTHERS = [Softmax, DecisionDistribution, partial(EnasController, lstm_size=4)]


@pytest.mark.parametrize("relaxation", [Gates, *(pytest.param(kind, marks=SLOW) for kind in OTHERS)])
def test_relaxations_hold_what_they_promise_on_a_space_of_all_kinds_at_once(relaxation):
    model = every_kind()
    del model.__dict__["_supernet_constraints"]  # with which probabilities sum to less than 1
    check_relaxation(relaxation, SearchSpace(model))
