"""A worker that does not answer in time is killed, and its architecture evaluated again."""

import itertools
import logging
import os
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from evaluations_of_workers import evaluated, hanging, make
from tests.programs import forks

from supernet.errors import TrainingError
from supernet.search import ProcessWorkers, RayWorkers, process_workers, workers
from supernet.search.workers import Answer, Workers

EVERY = [{"layer0": a, "layer1": b} for a, b in itertools.product("01", repeat=2)]
LOSSES = [{"loss": sum(map(int, architecture.values())) / 2} for architecture in EVERY]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Processes that need not import all anew, as their server, which is to be there, has."""
    server = forks.Process(target=int)
    server.start()
    server.join()
    monkeypatch.setattr(process_workers, "CONTEXT", forks)


def processes_of(directory, name):
    return [int(line.split()[1]) for line in (directory / name).read_text().splitlines()]


def test_what_hung_is_evaluated_again_by_another_process_and_the_first_one_is_gone(tmp_path, caplog):
    made = partial(make, partial(hanging, [EVERY[1]], 1), tmp_path)
    with caplog.at_level(logging.WARNING, "supernet"), ProcessWorkers(made, 2, retries=99, timeout=2) as some:
        assert some(EVERY) == LOSSES
        assert len(some.evaluations) == len(EVERY)
    stuck, *others = processes_of(tmp_path, "01")
    assert others
    assert stuck not in others
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    assert "has not answered within timeout=2 seconds; what it had is evaluated again" in caplog.text


def test_an_architecture_at_which_every_process_hangs_is_named(tmp_path):
    made = partial(make, partial(hanging, [EVERY[2]], 9), tmp_path)
    message = (
        r"each of 2 workers that were to evaluate \{'layer0': '1', 'layer1': '0'\} was lost, the last one has not "
        r"answered within timeout=1\.5 seconds; .* or raise timeout, or raise retries"
    )
    with ProcessWorkers(made, 1, retries=1, timeout=1.5) as some, pytest.raises(TrainingError, match=message):
        some([EVERY[2]])
    for process in processes_of(tmp_path, "10"):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize("timeout", [None, 1e9])
def test_whoever_answers_in_time_is_left_alone(tmp_path, timeout):
    with ProcessWorkers(partial(make, evaluated, tmp_path), 1, timeout=timeout) as some:
        assert some(EVERY) == LOSSES
    assert {len(processes_of(tmp_path, path.name)) for path in tmp_path.iterdir()} == {1}


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(TrainingError, match="timeout is a number"):
        ProcessWorkers(len, 1, timeout=timeout)


class Ray:
    """As much of Ray as workers use, whose actors have answered when somebody asks."""

    exceptions = SimpleNamespace(RayError=OSError)

    def __init__(self):
        self.killed = []

    def remote(self, kind):
        def actor(*arguments):
            made = kind(*arguments)
            return SimpleNamespace(answer=SimpleNamespace(remote=lambda one: (made, one)))

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=actor))

    def wait(self, references, num_returns, timeout):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        made, architecture = reference
        return made.answer(architecture)

    def kill(self, actor):
        self.killed.append(actor)


def test_what_actors_have_answered_counts_however_late_it_is_looked_at(tmp_path, monkeypatch):
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=itertools.count(step=100).__next__))
    some = RayWorkers(partial(make, evaluated, tmp_path), 4, retries=0, timeout=5)
    assert some(EVERY) == LOSSES
    assert ray.killed == []


class Silent(Workers):
    """Workers in this process, of which those of some numbers never answer; notes how long it is waited for them."""

    def __init__(self, deaf, **options):
        super().__init__(lambda number: None, 2, **options)
        self.deaf, self.waits, self.given = deaf, [], {}

    def _start(self, number):
        return number

    def _send(self, worker, architecture):
        self.given[worker] = architecture

    def _receive(self, under_way, seconds):
        self.waits.append(seconds)
        return [(n, Answer({"loss": 0.0})) for n in under_way if n not in self.deaf]

    def _end(self, worker):
        return "nothing"


def test_it_is_waited_until_the_first_deadline(monkeypatch):
    clock = itertools.count()  # each look at it takes a second
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=clock.__next__))
    some = Silent({1}, retries=0, timeout=6)
    with pytest.raises(TrainingError, match=r"each of 1 workers .*'layer1': '1'"):
        some([EVERY[0], EVERY[3]])
    # Handed out at 0 and 1; looked at 2 and 3, when one has answered; then the other has until 7, and it is 4, 6, 8.
    assert some.waits == [6 - 2, 7 - 4, 7 - 6]
    some = Silent(set())
    some(EVERY)
    assert some.waits == [None, None]
