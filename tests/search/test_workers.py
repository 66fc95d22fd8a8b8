"""Evaluating in workers: each architecture counts once, though workers are killed."""

import itertools
import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from evaluations_of_workers import Unfound, cannot_make, evaluated, failing, hanging, killing, loading, make
from tests.programs import forks
from torch import nn

from supernet import LayerChoice, SearchSpace
from supernet.errors import MissingExtraError, TrainingError
from supernet.search import ProcessWorkers, RayWorkers, process_workers, search_front
from supernet.search.kept_evaluations import KeptEvaluations

LAYERS = 3
EVERY = [{f"layer{i}": name for i, name in enumerate(names)} for names in itertools.product("01", repeat=LAYERS)]
LOSSES = [{"loss": sum(map(int, architecture.values())) / 2} for architecture in EVERY]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Processes that need not import all anew."""
    monkeypatch.setattr(process_workers, "CONTEXT", forks)


def noted(directory):
    """Return the architectures that were evaluated, and (worker, process) of each time."""
    return {path.name: [line.split() for line in path.read_text().splitlines()] for path in directory.iterdir()}


def test_each_architecture_is_evaluated_once_and_given_back_in_order(tmp_path):
    with ProcessWorkers(partial(make, evaluated, tmp_path), 2) as workers:
        assert workers([*EVERY, EVERY[0]]) == [*LOSSES, LOSSES[0]]
        assert workers(EVERY[:3]) == LOSSES[:3]
    times = noted(tmp_path)
    assert len(times) == len(EVERY)
    assert all(len(of_one) == 1 for of_one in times.values())
    assert {worker for of_one in times.values() for worker, _ in of_one} == {"0", "1"}


def test_what_a_killed_worker_had_is_evaluated_again_and_counts_once(tmp_path):
    deadly = [EVERY[1], EVERY[4]]
    with ProcessWorkers(partial(make, partial(killing, deadly, 1), tmp_path), 2) as workers:
        assert workers(EVERY) == LOSSES
        assert len(workers.evaluations) == len(EVERY)
    assert {name: len(times) for name, times in noted(tmp_path).items() if len(times) > 1} == {"001": 2, "100": 2}


def test_workers_that_are_killed_from_outside_are_started_again(tmp_path):
    with ProcessWorkers(partial(make, evaluated, tmp_path), 2) as workers:
        assert workers(EVERY[:4]) == LOSSES[:4]
        for process in {int(process) for times in noted(tmp_path).values() for _, process in times}:
            os.kill(process, signal.SIGKILL)
        assert workers(EVERY) == LOSSES
    assert all(len(times) == 1 for times in noted(tmp_path).values())


def test_an_architecture_that_kills_every_worker_is_named_and_all_else_is_remembered(tmp_path):
    workers = ProcessWorkers(partial(make, partial(killing, [EVERY[2]], 9), tmp_path), 1, retries=1)
    with pytest.raises(
        TrainingError, match=r"each of 2 workers .* \{'layer0': '0', 'layer1': '1', 'layer2': '0'\}.*SIGKILL"
    ):
        workers(EVERY)
    assert list(workers.evaluations.values()) == LOSSES[:2]
    with workers:
        assert workers([*EVERY[:2], *EVERY[3:]]) == [*LOSSES[:2], *LOSSES[3:]]
    assert {name: len(times) for name, times in noted(tmp_path).items() if len(times) > 1} == {"010": 2}


def test_the_processes_end_with_the_workers(tmp_path):
    with ProcessWorkers(partial(make, evaluated, tmp_path), 2) as workers:
        workers(EVERY)
        processes = [worker.process.pid for worker in workers._workers.values()]
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_what_an_evaluation_raises_is_told(tmp_path):
    with ProcessWorkers(partial(make, failing, tmp_path), 1) as workers:
        with pytest.raises(TrainingError, match=r"evaluation of \{'layer0': '1'.*(?s:.*)ValueError: no such thing"):
            workers([EVERY[0], EVERY[4]])
        with pytest.raises(TrainingError, match="returns a dict name -> number, not 'no metrics'"):
            workers([EVERY[2]])
        assert workers(EVERY[:1]) == [{"loss": 0.0}]
    with ProcessWorkers(cannot_make, 1) as workers, pytest.raises(TrainingError, match="there is no model"):
        workers(EVERY)


def test_an_evaluation_may_load_its_data_by_processes_of_its_own(tmp_path):
    with ProcessWorkers(partial(make, loading, tmp_path), 1) as workers:
        assert workers(EVERY[:1]) == [{"loss": 4.0}]


def test_what_is_not_found_in_a_worker_is_told(tmp_path):
    with ProcessWorkers(Unfound(), 1) as workers, pytest.raises(TrainingError, match="Can't get attribute 'make'"):
        workers(EVERY[:1])


def test_an_error_of_one_does_not_lose_what_was_evaluated_at_the_same_time(tmp_path, monkeypatch):
    workers = ProcessWorkers(partial(make, failing, tmp_path), 2)
    receive = workers._receive

    def both(under_way, seconds):
        answers = receive(under_way, seconds)
        while len(answers) < len(under_way):
            answers += receive({n: worker for n, worker in under_way.items() if n not in dict(answers)}, seconds)
        return sorted(answers, key=lambda one: one[1].error is None)  # the error first

    monkeypatch.setattr(workers, "_receive", both)
    with pytest.raises(TrainingError, match="no such thing"):
        workers([EVERY[4], EVERY[0]])
    assert list(workers.evaluations.values()) == [{"loss": 0.0}]


def test_what_workers_have_evaluated_is_kept_before_the_others_are_done(tmp_path):
    (tmp_path / "noted").mkdir()
    made = partial(make, partial(killing, [EVERY[2]], 9), tmp_path / "noted")

    def searched(workers):
        space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"layer{i}") for i in range(3))))
        return KeptEvaluations(workers, tmp_path, space, "of the test")(EVERY)

    with pytest.raises(TrainingError, match=r"each of 1 workers"):
        searched(ProcessWorkers(made, 1, retries=0))
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 2
    with ProcessWorkers(partial(make, evaluated, tmp_path / "noted"), 1) as workers:
        assert searched(workers) == LOSSES
    assert {name: len(times) for name, times in noted(tmp_path / "noted").items() if len(times) > 1} == {"010": 2}


def test_a_function_that_no_other_process_can_have_is_refused():
    with pytest.raises(TrainingError, match="give a function at the top of a module"):
        ProcessWorkers(lambda worker: None, 2)


def test_a_search_evaluates_by_workers(tmp_path):
    space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"layer{i}") for i in range(LAYERS))))
    with ProcessWorkers(partial(make, partial(killing, [EVERY[0]], 1), tmp_path), 2) as workers:
        front = search_front(workers, {"loss": "min"}, len(EVERY), model=space)
    assert front.best().architecture == EVERY[0]
    assert sorted(entry.metrics["loss"] for entry in front.entries) == sorted(one["loss"] for one in LOSSES)


@pytest.mark.slow  # Python begins anew in each
def test_new_pythons_evaluate_too(tmp_path, monkeypatch):
    monkeypatch.undo()
    with ProcessWorkers(partial(make, partial(killing, [EVERY[0]], 1), tmp_path), 1) as workers:
        assert workers(EVERY) == LOSSES


# --- Ray ---------------------------------------------------------------------------------------------------


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class FakeRay:
    """As much of Ray as workers use; its actors die where an evaluation would kill their process."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self):
        self.alive, self.options_given = [], []

    def remote(self, kind):
        ray = self

        class Method:
            def __init__(self, actor, function):
                self.actor, self.function = actor, function

            def remote(self, *arguments):
                return self.actor, self.function, arguments

        class Actor:
            def __init__(self, *arguments):
                self.made = kind(*arguments)
                self.answer = Method(self, self.made.answer)
                ray.alive.append(self)

        def options(**options):
            ray.options_given.append(options)
            return SimpleNamespace(remote=Actor)

        return SimpleNamespace(options=options)

    def wait(self, references, num_returns, timeout):
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference):
        actor, function, arguments = reference
        try:
            if actor not in self.alive:
                raise ActorDiedError("it is gone")
            return function(*arguments)
        except KeyboardInterrupt:  # stands for a SIGKILL
            self.alive.remove(actor)
            raise ActorDiedError("The actor died unexpectedly") from None

    def kill(self, actor):
        if actor in self.alive:
            self.alive.remove(actor)


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)

    def kill(process, number):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluations_of_workers.os.kill", kill)
    return fake


def test_an_actor_that_dies_is_started_again_and_nothing_counts_twice(tmp_path, ray):
    workers = RayWorkers(partial(make, partial(killing, [EVERY[3]], 2), tmp_path), 2, options={"num_gpus": 1})
    with workers:
        assert workers(EVERY) == LOSSES
    assert {name: len(times) for name, times in noted(tmp_path).items() if len(times) > 1} == {"011": 3}
    assert ray.options_given == [{"max_restarts": 0, "num_gpus": 1}] * 4
    assert ray.alive == []


def test_an_architecture_that_kills_every_actor_is_named(tmp_path, ray):
    workers = RayWorkers(partial(make, partial(killing, [EVERY[3]], 9), tmp_path), 2)
    with pytest.raises(TrainingError, match=r"each of 3 workers .*'layer0': '0'.* by ActorDiedError: The actor died"):
        workers(EVERY)
    assert ray.alive == []


def test_without_ray_it_is_said_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"supernet\[ray\]"):
        RayWorkers(cannot_make, 2)


@pytest.mark.slow
def test_actors_of_ray_itself_are_started_again(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
    try:
        with RayWorkers(partial(make, partial(killing, [EVERY[3]], 1), tmp_path), 2) as workers:
            assert workers(EVERY) == LOSSES
        workers = RayWorkers(partial(make, partial(killing, [EVERY[3]], 9), tmp_path), 1, retries=1)
        with pytest.raises(TrainingError, match=r"each of 2 workers .*'layer0': '0'.*ActorDiedError"):
            workers([EVERY[3]])
        hangs = tmp_path / "hangs"
        hangs.mkdir()
        with RayWorkers(partial(make, partial(hanging, [EVERY[5]], 1), hangs), 2, timeout=20) as workers:
            assert workers(EVERY) == LOSSES
        stuck, other = (process for _, process in noted(hangs)["101"])
        assert stuck != other
    finally:
        ray.shutdown()
