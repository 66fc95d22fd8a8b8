"""A thread by which each process knows how the others are, and is ended where one of them has failed."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import distributed

if TYPE_CHECKING:
    from supernet.processes.messages import Processes

__all__: list[str] = []

logger = logging.getLogger("supernet")

STORE_LOST = "process 0, or what has launched the processes, has ended"

_watches = count()


class Watch(threading.Thread):
    """Tells how this process is, and looks how the others are: beside the main thread, which may hang.

    It tells through the store by which the processes found each other. Where another process has failed, the main
    thread is interrupted; and if it has not ended after the timeout, the process is.
    """

    def __init__(self, processes: Processes, where: Callable[[], str], interval: float, timeout: float) -> None:
        super().__init__(name="supernet-watch", daemon=True)
        self.where = where
        self._processes, self._interval, self._timeout = processes, interval, timeout
        self._others = [rank for rank in range(processes.count) if rank != processes.rank]
        self._key = f"supernet/{next(_watches)}"
        store: Any = distributed.distributed_c10d._get_default_store()
        self._store, self._lock_of_store = store.clone(), threading.Lock()  # of this thread and the main one
        self._store.set_timeout(timedelta(seconds=timeout))
        self._beat, self._is_over, self._lock = 0, threading.Event(), threading.Lock()
        self._own_failure: str | None = None
        self._failure: str | None = None  # another's
        self._is_armed = False
        self.tell()

    def tell(self, failure: str | None = None) -> None:
        """Tell how this process is.

        Args:
            failure: What this process ends by, which stays said in whatever is told later. Default: it goes on.
        """
        with self._lock_of_store:
            self._own_failure = self._own_failure or failure
            told = {"beat": self._beat, "where": self.where(), "failure": self._own_failure, **self._processes.state()}
            try:
                self._store.set(f"{self._key}/{self._processes.rank}", json.dumps(told))
            except RuntimeError as error:  # whoever keeps the store has ended, and with it the others
                logger.debug("the other processes are not told: %s", error)

    def run(self) -> None:
        """Tell and look until it is over."""
        failed_at = None
        while not self._is_over.wait(self._interval):
            self._beat += 1
            self.tell()
            if failed_at is None:
                self._failure = self._failure_of_others()
                if self._failure is not None:
                    failed_at = time.monotonic()
                    self._interrupt()
            elif time.monotonic() - failed_at > self._timeout and self._is_armed:
                logger.critical("%s; this process hangs %s, and is ended", self._failure, self.where())
                os._exit(1)

    def stop(self) -> None:
        """Let it be over."""
        self._is_over.set()
        if self.is_alive():
            self.join(self._interval + 5)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the main thread be interrupted in this context; in another thread nothing can be.

        Nor is it where something other than Python handles the signal for that, which could not be put back.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or not hasattr(signal, "SIGURG") or signal.getsignal(signal.SIGURG) is None:
            yield
            return
        before = signal.signal(signal.SIGURG, self._raise)  # ignored by default, and nobody's
        self._is_armed = True
        try:
            yield
        finally:
            with self._lock:
                self._is_armed = False
            signal.signal(signal.SIGURG, before)

    def of_others(self) -> str:
        """Return what is known of the other processes, for an error; it takes a moment."""
        try:
            before = after = self._read()
            until = time.monotonic() + 3 * self._interval  # whoever lives tells something new in that time
            while time.monotonic() < until and not any(other["failure"] for other in after.values()):
                time.sleep(self._interval / 4)
                after = self._read()
        except RuntimeError:
            return STORE_LOST
        lines = []
        for rank, other in sorted(after.items(), key=lambda item: item[1]["failure"] is None):
            waits = f", waiting for {other['waits for']}" if other["waits for"] else ""
            if other["failure"]:
                lines.append(f"process {rank} has ended: {other['failure']}")
            elif other["beat"] == before[rank]["beat"]:
                lines.append(f"process {rank} has ended or is stopped, last heard of in {other['where']}{waits}")
            else:
                lines.append(f"process {rank} is alive, in {other['where']}{waits}")
        return "; ".join(lines)

    def _failure_of_others(self) -> str | None:
        if self._processes.is_leaving:
            return None
        try:
            failed = {rank: other["failure"] for rank, other in self._read().items() if other["failure"]}
        except RuntimeError:
            return STORE_LOST
        return next((f"process {rank} has ended: {failure}" for rank, failure in failed.items()), None)

    def _read(self) -> dict[int, dict[str, Any]]:
        with self._lock_of_store:
            told = self._store.multi_get([f"{self._key}/{rank}" for rank in self._others])
        return {rank: json.loads(text) for rank, text in zip(self._others, told, strict=True)}

    def _interrupt(self) -> None:
        with self._lock:
            if self._is_armed:
                ident = threading.main_thread().ident
                assert ident is not None
                signal.pthread_kill(ident, signal.SIGURG)

    def _raise(self, *_: Any) -> None:
        if self._failure is not None and not self._processes.is_undisturbed:
            raise self._processes.end_by(self._failure, self.where())
