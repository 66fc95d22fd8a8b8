"""Evaluating architectures in several processes, of which any may die.

`Workers` hands out architectures and keeps books; how a worker is started, reached and ended a subclass says.
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.errors import TrainingError
from supernet.space import Architecture

__all__ = ["Evaluation", "MakeEvaluation", "Workers"]

logger = logging.getLogger("supernet")

Evaluation: TypeAlias = Callable[[Architecture], Mapping[str, float]]
MakeEvaluation: TypeAlias = Callable[[int], Evaluation]

Worker = TypeVar("Worker")

MAX_SECONDS = 86_400.0  # of one wait: systems count milliseconds in 32 bits


class Task(NamedTuple):
    """An architecture that is to be evaluated.

    Args:
        name: Its JSON.
        architecture: It itself.
        num_deaths: Number of workers that it has cost.
        deadline: When it is to have been answered, where a worker has it.
    """

    name: str
    architecture: Architecture
    num_deaths: int = 0
    deadline: float = math.inf


class Answer(NamedTuple):
    """What has come of a worker: the numbers of its architecture, an error in words, or neither: it is lost.

    Args:
        metrics: Name -> number.
        error: What the evaluation raised, as a traceback.
        is_late: Whether the worker still runs, though its time is over; else it has died.
    """

    metrics: dict[str, float] | None = None
    error: str | None = None
    is_late: bool = False


class Workers(ABC, Generic[Worker]):
    """Evaluates architectures in several workers; called with some, it returns loss and metrics of each.

    So it is what `search_front` takes as `evaluate`. What it has evaluated it remembers, and does not evaluate again.
    A worker that dies, or does not answer in time, is started again, and its architecture evaluated again. Use it in a
    `with` statement, or end the workers by `close()`.

    Args:
        make: Function `make(worker) -> evaluation` that is called once in each worker, with the worker's number from 0;
            `evaluation(architecture)` returns a dict name -> number, as an evaluator does.
        count: Number of workers.
        retries: Number of times that an architecture whose worker was lost is evaluated again. Default: 2.
        timeout: Seconds from when a worker is given an architecture until it must have answered, else it is killed. The
            start of a new worker, and `make`, are part of it. Default: it may take forever.

    Attributes:
        evaluations: What has been evaluated, by the JSON of the architecture.
    """

    def __init__(self, make: MakeEvaluation, count: int, *, retries: int = 2, timeout: float | None = None) -> None:
        check_functions(make=make)
        check_counts(count=count)
        check_counts(0, retries=retries)
        check_timeout(timeout)
        self.make, self.count, self.retries, self.timeout = make, count, retries, timeout
        self.evaluations: dict[str, dict[str, float]] = {}
        self._workers: dict[int, Worker] = {}

    def __call__(
        self, architectures: Sequence[Architecture], *, progress: Callable[[int], None] | None = None
    ) -> list[dict[str, float]]:
        """Return loss and metrics of each architecture, in their order.

        Args:
            architectures: Dicts label -> decision.
            progress: Is called as soon as something is known, with of how many of them it is.

        Raises:
            TrainingError: An evaluation fails, or each of the workers that an architecture was given to was lost: names
                the architecture. What had been evaluated by then is remembered.
        """
        names = list(map(json.dumps, architectures))
        times = Counter(names)
        for architecture, _ in self.as_evaluated(architectures):
            if progress is not None:
                progress(times[json.dumps(architecture)])
        return [dict(self.evaluations[name]) for name in names]

    def as_evaluated(self, architectures: Sequence[Architecture]) -> Iterator[tuple[Architecture, dict[str, float]]]:
        """Yield each architecture with its loss and metrics as soon as they are known, once where it is given twice.

        Raises:
            TrainingError: The same as a call.
        """
        waiting = deque[Task]()
        for name, architecture in {json.dumps(one): dict(one) for one in architectures}.items():
            if name in self.evaluations:
                yield architecture, dict(self.evaluations[name])
            else:
                waiting.append(Task(name, architecture))
        under_way: dict[int, Task] = {}
        try:
            while waiting or under_way:
                for number in range(self.count):
                    if waiting and number not in under_way:
                        under_way[number] = self._handed_out(number, waiting.popleft())
                answers = self._answers(under_way)
                # An error of one does not lose what others have evaluated.
                for number, answer in sorted(answers, key=lambda one: one[1].metrics is None):
                    task = under_way.pop(number)
                    if answer.metrics is not None:
                        self.evaluations[task.name] = answer.metrics
                        yield task.architecture, dict(answer.metrics)
                    elif answer.error is not None:
                        raise TrainingError(f"the evaluation of {task.architecture} fails in a worker:\n{answer.error}")
                    else:
                        task = task._replace(num_deaths=task.num_deaths + 1)
                        self._bury(number, task, answer.is_late)
                        # Next, not last: what kills each worker is found out before all else has been evaluated.
                        waiting.appendleft(task)
        except BaseException:
            self.close()  # what is still under way is of no use, and would be taken for the answer to something else
            raise

    def _handed_out(self, number: int, task: Task) -> Task:
        if number not in self._workers:
            self._workers[number] = self._start(number)
        self._send(self._workers[number], task.architecture)
        return task._replace(deadline=math.inf if self.timeout is None else time.monotonic() + self.timeout)

    def _answers(self, under_way: Mapping[int, Task]) -> list[tuple[int, Answer]]:
        """Wait until something comes of a worker, or the time of one is over."""
        first = min(task.deadline for task in under_way.values())
        seconds = None if first == math.inf else min(max(0.0, first - time.monotonic()), MAX_SECONDS)
        answers = self._receive({number: self._workers[number] for number in under_way}, seconds)
        now, answered = time.monotonic(), dict(answers)
        late = [number for number, task in under_way.items() if number not in answered and task.deadline <= now]
        return [*answers, *((number, Answer(is_late=True)) for number in late)]

    def _bury(self, number: int, task: Task, is_late: bool) -> None:
        end = self._end(self._workers.pop(number))
        how = f"has not answered within timeout={self.timeout:g} seconds" if is_late else f"has died by {end}"
        if task.num_deaths > self.retries:
            mend = "to see what it waits for, or raise timeout" if is_late else "to see why (memory, most often)"
            raise TrainingError(
                f"each of {task.num_deaths} workers that were to evaluate {task.architecture} was lost, the last one "
                f"{how}; see what it has written, or evaluate it in this process, {mend}, or raise retries"
            )
        logger.warning("worker %d %s; what it had is evaluated again: %s", number, how, task.architecture)

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
    def _receive(self, workers: Mapping[int, Worker], seconds: float | None) -> list[tuple[int, Answer]]:
        """Wait until something comes of workers that evaluate, and return what; nothing if nothing comes in time."""

    @abstractmethod
    def _end(self, worker: Worker) -> str:
        """End a worker, whether it lives or not, and return in words how it has ended."""


def check_timeout(timeout: Any) -> None:
    """Raise `TrainingError` unless it is a number of seconds above 0, or None."""
    if timeout is not None:
        check_numbers(timeout=timeout)
        if timeout == 0:
            raise TrainingError("timeout is a number of seconds above 0, not 0; None lets an evaluation take forever")


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
            evaluation = make(number)
            if not callable(evaluation):
                raise TypeError(f"make returns what evaluates an architecture, a function, not {evaluation!r:.80}")
            self._evaluation = evaluation
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
