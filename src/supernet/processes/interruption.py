"""SIGTERM and SIGINT while a search runs: finish the step, save, and go."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.util import Finalize, register_after_fork
from types import FrameType
from typing import Any

__all__: list[str] = []

logger = logging.getLogger("supernet")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_OF_GRACE = 5.0  # of several processes, whose launcher may be slow


class Interruption:
    """Which signal has come, if any.

    Args:
        as_keyboard: Whether SIGINT ends what is interrupted by `KeyboardInterrupt`, as it does elsewhere.
    """

    def __init__(self, as_keyboard: bool) -> None:
        self.signal: signal.Signals | None = None
        self._as_keyboard = as_keyboard

    def exit(self, message: str = "") -> BaseException:
        """Return what to leave by: `SystemExit` with 128 + the signal's number, or `KeyboardInterrupt`."""
        assert self.signal is not None, "asked for after a signal only"
        if self.signal == signal.SIGINT and self._as_keyboard:
            return KeyboardInterrupt(message)
        return SystemExit(128 + self.signal)


@contextmanager
def noticing_signals(*, as_keyboard: bool, grace: float = 0.0) -> Iterator[Interruption]:
    """Note the first SIGTERM or SIGINT inside this context; a second one acts as it did before.

    A signal that nobody has answered by leaving is answered at the end of this context, so none is lost. Where an error
    ends the context instead, it is logged, and is the cause of what the signal is answered by.

    Python takes signals in the main thread only: elsewhere nothing is changed. A signal that is ignored stays so.

    Args:
        as_keyboard: Whether SIGINT is answered by `KeyboardInterrupt` instead of `SystemExit`.
        grace: Seconds in which further signals count as the first once more: a launcher passes on what a terminal or a
            batch system has sent to all processes already. Default: none.
    """
    noticed, until = Interruption(as_keyboard), 0.0
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: handler for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal until
        if noticed.signal is None:
            noticed.signal, until = signal.Signals(number), time.monotonic() + grace
            if not grace:
                put_back()
            stack.enter_context(_lost_workers_let_be())
        elif time.monotonic() >= until:
            put_back()
            signal.raise_signal(number)

    stack = ExitStack()
    try:
        for number in before:
            signal.signal(number, note)
        with stack:
            yield noticed
    except Exception as error:
        if noticed.signal is None:
            raise
        what = f"{type(error).__name__}: {error}"
        logger.error("%s has come, and then an error: %s", noticed.signal.name, what, exc_info=error)
        raise noticed.exit(what) from error
    finally:
        put_back()
    if noticed.signal is not None:
        raise noticed.exit()


@contextmanager
def _lost_workers_let_be() -> Iterator[None]:
    """Keep torch in this context from raising, in whatever is run, where a loader's process has ended by a signal.

    One that has sent it to this process has sent it to that one too: the step that is under way can be finished.
    """
    child = getattr(signal, "SIGCHLD", None)  # not on Windows
    handler = None if child is None else signal.getsignal(child)
    if child is None or not getattr(handler, "__module__", "").startswith("torch.utils.data"):
        yield
        return
    signal.signal(child, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(child, handler)


def outliving_one_signal(given: Callable[[int], None] | None) -> Callable[[int], None]:
    """Return a `worker_init_fn` by which a loader's processes go on after a first signal, as this process does.

    Batch systems and terminals send it to all processes of a group. Without its loaders' processes, this one could
    not finish its step.

    Args:
        given: The `worker_init_fn` of the user.
    """
    if isinstance(given, partial) and given.func is _begin_worker:
        return given
    return partial(_begin_worker, given)


def _begin_worker(given: Callable[[int], None] | None, number: int) -> None:
    for which in SIGNALS:
        if signal.getsignal(which) != signal.SIG_IGN:
            signal.signal(which, _let_the_next_one_act)
    if given is not None:
        given(number)


def _let_the_next_one_act(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _end_children() -> None:
    """End the loaders' processes that are left when this process ends: Python sends one signal, and waits for ever."""
    with _lost_workers_let_be():
        for child in multiprocessing.active_children():
            while child.daemon and child.is_alive():
                child.terminate()
                child.join(0.05)


def _end_children_at_exit(end: Callable[[], None]) -> None:
    Finalize(None, end, exitpriority=0)  # just before Python's own


_end_children_at_exit(_end_children)
register_after_fork(_end_children, _end_children_at_exit)  # a forked process forgets what it should do at its end
