"""What surrounds the loop while a search runs, and what is left of it where it was left between two steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from supernet.execution.state import RandomState
from supernet.processes.interruption import Interruption
from supernet.training.run_directory import failing_softly

__all__: list[str] = []


@dataclass(frozen=True)
class Rest:
    """What `fit` needs to go on exactly where the same trainer was left between two steps, beside the trainer itself.

    Attributes:
        random: State of the random numbers that it had come to; outside of `fit` they are the user's own.
        seconds: Seconds that it had run.
        data: Place that each part of the data had come to, of those that have one.
    """

    random: RandomState
    seconds: float
    data: tuple[Any, ...]


@contextmanager
def end_described(
    describe: Callable[..., None], signals: Interruption, undisturbed: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Say in `run.json` how this context was left, unless all was done: "failed" by an error, else "interrupted".

    Args:
        describe: `describe(status, **what)`.
        signals: Signals that have come.
        undisturbed: A context in which other processes, which have failed too, do not interrupt this one.
    """
    try:
        yield
    except BaseException as failure:
        with undisturbed(), failing_softly("run.json does not say how the search ended"):
            error = ": ".join(filter(None, (type(failure).__name__, str(failure))))
            if isinstance(failure, Exception):
                describe("failed", error=error)
            elif signals.signal is not None:
                describe("interrupted", signal=signals.signal.name)
            else:  # a second Ctrl-C, or somebody's sys.exit()
                describe("interrupted", error=error)
        raise


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Let the garbage collector look at new objects only in this context.

    A step makes thousands of them, and going through all that imports have made whenever they are many took 5 % of the
    time.
    """
    if gc.get_freeze_count():  # somebody has seen to it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
