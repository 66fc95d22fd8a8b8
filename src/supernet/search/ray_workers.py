"""Workers that are actors of Ray, on as many machines as its cluster has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supernet.errors import MissingExtraError
from supernet.search.workers import Answer, Answerer, MakeEvaluation, Workers
from supernet.space import Architecture

__all__ = ["RayWorkers"]


@dataclass
class _Actor:
    handle: Any
    reference: Any = None  # to the answer that is under way
    death: str = "this process"


class RayWorkers(Workers[_Actor]):
    """Evaluates architectures by actors of Ray, on many machines; called with some, it returns metrics of each.

    So it is what `search_front` takes as `evaluate`. An actor that dies, or whose machine does, is started again, where
    there is room, and its architecture evaluated again. What has been evaluated is remembered, and not evaluated again.
    The actors end with the `with` statement, by `close()`, or with this process. Which cluster it is says `ray.init`,
    which is called before; without it Ray starts one on this machine.

    Args:
        make: Function `make(worker) -> evaluation` that is called once in each actor, with its number from 0; it loads
            model and weights from where all machines find them, and returns what is called for each architecture and
            returns a dict name -> number, such as a `SupernetEvaluator`.
        count: Number of actors.
        retries: Number of times that an architecture whose actor was lost is evaluated again. Default: 2.
        timeout: Seconds from when an actor is given an architecture until it must have answered, else it is killed, and
            the architecture evaluated again as of one that has died. The start of a new actor, also what it waits for
            room in the cluster, and `make` are part of it. Default: it may take forever.
        options: What each actor needs, as Ray's `options` take it: `{"num_cpus": 4, "num_gpus": 1}`. Default: nothing.

    Attributes:
        evaluations: What has been evaluated, by the JSON of the architecture.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        make: MakeEvaluation,
        count: int,
        *,
        retries: int = 2,
        timeout: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(make, count, retries=retries, timeout=timeout)
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                "RayWorkers need Ray, which is not installed; pip install 'supernet[ray]'"
            ) from error
        self._ray, self.options = ray, dict(options or {})

    def _start(self, number: int) -> _Actor:
        # Ray starts no actor again by itself: then an architecture would not be known to have killed it.
        actor = self._ray.remote(Answerer).options(max_restarts=0, **self.options)
        return _Actor(actor.remote(self.make, number))

    def _send(self, worker: _Actor, architecture: Architecture) -> None:
        worker.reference = worker.handle.answer.remote(architecture)

    def _receive(self, workers: Mapping[int, _Actor], seconds: float | None) -> list[tuple[int, Answer]]:
        references = [worker.reference for worker in workers.values()]
        ready, others = self._ray.wait(references, num_returns=1, timeout=seconds)
        if others:  # of which some may be there, too, and are not to seem late
            ready = [*ready, *self._ray.wait(others, num_returns=len(others), timeout=0)[0]]
        answers = []
        for number, worker in workers.items():
            if worker.reference in ready:
                try:
                    answers.append((number, Answer(*self._ray.get(worker.reference))))
                except self._ray.exceptions.RayError as error:
                    worker.death = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
                    answers.append((number, Answer()))
        return answers

    def _end(self, worker: _Actor) -> str:
        self._ray.kill(worker.handle)
        return worker.death
