"""Evaluating architectures in several processes, of which any may die.

`Workers` hands out architectures and keeps books; how a worker is started, reached and ended a subclass says.
"""

from __future__ import annotations

import json
import logging
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from supernet.checks import check_counts, check_functions
from supernet.errors import TrainingError
from supernet.space import Architecture

__all__ = ["Evaluation", "MakeEvaluation", "Workers"]

logger = logging.getLogger("supernet")

Evaluation: TypeAlias = Callable[[Architecture], Mapping[str, float]]
MakeEvaluation: TypeAlias = Callable[[int], Evaluation]

Worker = TypeVar("Worker")


class Answer(NamedTuple):
    """What has come of a worker: the numbers of its architecture, an error in words, or neither: it has died.

    Args:
        metrics: Name -> number.
        error: What the evaluation raised, as a traceback.
    """

    metrics: dict[str, float] | None = None
    error: str | None = None


class Workers(ABC, Generic[Worker]):
    """Evaluates architectures in several workers; called with some, it returns loss and metrics of each.

    So it is what `search_front` takes as `evaluate`. What it has evaluated it remembers, and does not evaluate again.
    A worker that dies is started again, and its architecture evaluated again. Use it in a `with` statement, or end the
    workers by `close()`.

    Args:
        make: Function `make(worker) -> evaluation` that is called once in each worker, with the worker's number from 0;
            `evaluation(architecture)` returns a dict name -> number, as an evaluator does.
        count: Number of workers.
        retries: Number of times that an architecture whose worker has died is evaluated again. Default: 2.

    Attributes:
        evaluations: What has been evaluated, by the JSON of the architecture.
    """

    def __init__(self, make: MakeEvaluation, count: int, *, retries: int = 2) -> None:
        check_functions(make=make)
        check_counts(count=count)
        check_counts(0, retries=retries)
        self.make, self.count, self.retries = make, count, retries
        self.evaluations: dict[str, dict[str, float]] = {}
        self._workers: dict[int, Worker] = {}

    def __call__(self, architectures: Sequence[Architecture]) -> list[dict[str, float]]:
        """Return loss and metrics of each architecture, in their order.

        Raises:
            TrainingError: An evaluation fails, or each of the workers that an architecture was given to has died: names
                the architecture. What had been evaluated by then is remembered.
        """
        for _ in self.as_evaluated(architectures):
            pass
        return [dict(self.evaluations[json.dumps(architecture)]) for architecture in architectures]

    def as_evaluated(self, architectures: Sequence[Architecture]) -> Iterator[tuple[Architecture, dict[str, float]]]:
        """Yield each architecture with its loss and metrics as soon as they are known, once where it is given twice.

        Raises:
            TrainingError: The same as a call.
        """
        waiting = deque[tuple[str, Architecture, int]]()
        for name, architecture in {json.dumps(one): dict(one) for one in architectures}.items():
            if name in self.evaluations:
                yield architecture, dict(self.evaluations[name])
            else:
                waiting.append((name, architecture, 0))
        under_way: dict[int, tuple[str, Architecture, int]] = {}
        try:
            while waiting or under_way:
                for number in range(self.count):
                    if waiting and number not in under_way:
                        under_way[number] = waiting.popleft()
                        self._hand_out(number, under_way[number][1])
                answers = self._receive({number: self._workers[number] for number in under_way})
                # An error of one does not lose what others have evaluated.
                for number, answer in sorted(answers, key=lambda one: one[1].metrics is None):
                    name, architecture, num_deaths = under_way.pop(number)
                    if answer.metrics is not None:
                        self.evaluations[name] = answer.metrics
                        yield architecture, dict(answer.metrics)
                    elif answer.error is not None:
                        raise TrainingError(f"the evaluation of {architecture} fails in a worker:\n{answer.error}")
                    else:
                        self._bury(number, architecture, num_deaths + 1)
                        # Next, not last: what kills each worker is found out before all else has been evaluated.
                        waiting.appendleft((name, architecture, num_deaths + 1))
        except BaseException:
            self.close()  # what is still under way is of no use, and would be taken for the answer to something else
            raise

    def _hand_out(self, number: int, architecture: Architecture) -> None:
        if number not in self._workers:
            self._workers[number] = self._start(number)
        self._send(self._workers[number], architecture)

    def _bury(self, number: int, architecture: Architecture, num_deaths: int) -> None:
        how = self._end(self._workers.pop(number))
        if num_deaths > self.retries:
            raise TrainingError(
                f"each of {num_deaths} workers that were to evaluate {architecture} has died, the last one by {how}; "
                "see what it has written, or evaluate it in this process, to see why (memory, most often), or raise "
                "retries"
            )
        logger.warning("worker %d has died by %s; what it had is evaluated again: %s", number, how, architecture)

    def close(self) -> None:
        """End all workers; they start again when there is something to evaluate."""
        while self._workers:
            self._end(self._workers.popitem()[1])

    def __enter__(self) -> Workers[Worker]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what a subclass says ----------------------------------------------------------------------------------

    @abstractmethod
    def _start(self, number: int) -> Worker:
        """Start a worker."""

    @abstractmethod
    def _send(self, worker: Worker, architecture: Architecture) -> None:
        """Give an architecture to a worker that has nothing to do; one that has died may be given it too."""

    @abstractmethod
    def _receive(self, workers: Mapping[int, Worker]) -> list[tuple[int, Answer]]:
        """Wait until something comes of workers that evaluate, and return what."""

    @abstractmethod
    def _end(self, worker: Worker) -> str:
        """End a worker, whether it lives or not, and return in words how it has ended."""


class Answerer:
    """What answers in a worker, whatever carries question and answer.

    Args:
        make: Function of the worker's number that returns what evaluates an architecture.
        number: The worker's number.
    """

    def __init__(self, make: MakeEvaluation, number: int) -> None:
        self._evaluation: Evaluation | None = None
        self._failure = ""
        try:
            self._evaluation = make(number)
        except Exception:  # is told to whoever asks
            self._failure = traceback.format_exc()

    def answer(self, architecture: Architecture) -> tuple[dict[str, float] | None, str | None]:
        """Return what an `Answer` is made of."""
        if self._evaluation is None:
            return None, self._failure
        try:
            metrics = self._evaluation(architecture)
            if not isinstance(metrics, Mapping):
                raise TypeError(f"an evaluation returns a dict name -> number, not {metrics!r:.80}")
            return {str(name): float(value) for name, value in metrics.items()}, None
        except Exception:
            return None, traceback.format_exc()
