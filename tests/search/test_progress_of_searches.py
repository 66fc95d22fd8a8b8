"""The bar of a search moves with each evaluation where whoever evaluates tells of each."""

from contextlib import contextmanager

import pytest
from torch import nn

from supernet import LayerChoice, SearchSpace
from supernet.search import ExhaustiveSearcher, search_front, searching
from supernet.search.workers import Answer, Answerer, Workers

SPACE = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"layer{i}") for i in range(3))))


class Here(Workers):
    """Workers in this process, of which one answers at a time."""

    def _start(self, number):
        return [Answerer(self.make, number), None]

    def _send(self, worker, architecture):
        worker[1] = architecture

    def _receive(self, workers, seconds):
        number = min(workers)
        answerer, architecture = workers[number]
        return [(number, Answer(*answerer.answer(architecture)))]

    def _end(self, worker):
        return "nothing"


@pytest.fixture
def events(monkeypatch):
    """What happens: "evaluated", and by how much a bar moves."""
    found = []

    @contextmanager
    def counting(title, total, *, shown):
        yield found.append

    monkeypatch.setattr(searching, "counting", counting)
    return found


def workers(events):
    def make(worker):
        return lambda architecture: events.append("evaluated") or {"loss": float(architecture["layer0"])}

    return Here(make, 2)


@pytest.mark.parametrize("kept", [False, True])
def test_the_bar_of_workers_moves_with_each_evaluation(events, tmp_path, kept):
    options = {"directory": tmp_path, "identity": "of the test"} if kept else {}
    some = workers(events)
    search_front(some, {"loss": "min"}, 8, model=SPACE, searcher=ExhaustiveSearcher, **options)
    assert [one for one in events if one != 0] == ["evaluated", 1] * 8
    events.clear()
    search_front(some, {"loss": "min"}, 8, model=SPACE, searcher=ExhaustiveSearcher, **options)
    assert "evaluated" not in events
    assert sum(events) == 8  # of what is known too


def test_what_is_asked_for_twice_moves_the_bar_twice(events):
    some, told = workers(events), []
    one, other = list(SPACE.enumerate())[:2]
    some([one, other, one], progress=told.append)
    assert sorted(told) == [1, 2]
    assert events == ["evaluated"] * 2
