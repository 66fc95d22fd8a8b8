"""SIGTERM and SIGINT while a search runs: finish the step, save, and go."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__: list[str] = []

logger = logging.getLogger("supernet")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Which signal has come, if any.

    Args:
        as_keyboard: whether SIGINT ends what is interrupted by `KeyboardInterrupt`, as it does elsewhere.
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
def noticing_signals(*, as_keyboard: bool) -> Iterator[Interruption]:
    """Note the first SIGTERM or SIGINT inside this context; a second one acts as it did before.

    A signal that nobody has answered by leaving is answered at the end of this context, so none is lost. Where an error
    ends the context instead, it is logged, and is the cause of what the signal is answered by.

    Python takes signals in the main thread only: elsewhere nothing is changed. A signal that is ignored stays so.

    Args:
        as_keyboard: whether SIGINT is answered by `KeyboardInterrupt` instead of `SystemExit`.
    """
    noticed = Interruption(as_keyboard)
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: handler for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noticed.signal = signal.Signals(number)
        put_back()

    try:
        for number in before:
            signal.signal(number, note)
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
