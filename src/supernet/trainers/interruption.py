"""SIGTERM and SIGINT while a search runs: finish the step, save, and go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__: list[str] = []

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Which signal has come, if any."""

    signal: signal.Signals | None = None


@contextmanager
def noticing_signals(enabled: bool) -> Iterator[Interruption]:
    """Note the first SIGTERM or SIGINT inside this context; a second one acts as it did before.

    Python takes signals in the main thread only. Elsewhere, and where not enabled, nothing is changed.
    """
    noticed = Interruption()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield noticed
        return
    before: dict[signal.Signals, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noticed.signal = signal.Signals(number)
        put_back()

    for number in SIGNALS:
        before[number] = signal.signal(number, note)
    try:
        yield noticed
    finally:
        put_back()
