"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from supernet.errors import TrainingError
from supernet.search.workers import Answer, Answerer, Evaluation, MakeEvaluation, Workers
from supernet.space import Architecture

__all__ = ["ProcessWorkers"]

GRACE = 5.0  # seconds that a process has to end
CONTEXT: Any = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang


class _Process(NamedTuple):
    process: multiprocessing.process.BaseProcess
    connection: Connection


class ProcessWorkers(Workers[_Process]):
    """Evaluates architectures in several processes of this machine; called with some, it returns metrics of each.

    So it is what `search_front` takes as `evaluate`. A process that dies, however it does, is started again, and its
    architecture evaluated again. What has been evaluated is remembered, and not evaluated again. The processes end with
    the `with` statement, by `close()`, or with this process.

    Each process is a new Python that imports the module in which `make` stands; so a script that uses this needs
    `if __name__ == "__main__":`. It has an equal share of the threads that torch has here.

    Args:
        make: Function `make(worker) -> evaluation` at the top of a module, called once in each process with its number
            from 0, which may say the GPU. It loads model and weights, and returns what is called for each architecture
            and returns a dict name -> number, such as a `SupernetEvaluator`.
        count: Number of processes.
        retries: Number of times that an architecture whose process was lost is evaluated again. Default: 2.
        timeout: Seconds from when a process is given an architecture until it must have answered, else it is killed,
            and the architecture evaluated again as of one that has died. The start of a new process, and `make`, are
            part of it. Default: it may take forever.

    Attributes:
        evaluations: What has been evaluated, by the JSON of the architecture.

    Raises:
        TrainingError: `make` cannot be sent to another process.
    """

    def __init__(self, make: MakeEvaluation, count: int, *, retries: int = 2, timeout: float | None = None) -> None:
        super().__init__(make, count, retries=retries, timeout=timeout)
        try:
            self._pickled = pickle.dumps(make)
        except Exception as error:  # whatever its parts raise
            raise TrainingError(
                f"make cannot be sent to another process ({error}); give a function at the top of a module"
            ) from error

    def _start(self, number: int) -> _Process:
        ours, theirs = CONTEXT.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        process = CONTEXT.Process(
            target=_work, args=(self._pickled, number, theirs, threads), name=f"supernet-worker-{number}", daemon=True
        )
        process.start()
        theirs.close()
        return _Process(process, ours)

    def _send(self, worker: _Process, architecture: Architecture) -> None:
        with suppress(OSError):  # it has died, which `_receive` finds
            worker.connection.send(architecture)

    def _receive(self, workers: Mapping[int, _Process], seconds: float | None) -> list[tuple[int, Answer]]:
        ready = wait([worker.connection for worker in workers.values()], seconds)
        answers = []
        for number, worker in workers.items():
            if worker.connection in ready:
                try:
                    answers.append((number, Answer(*worker.connection.recv())))
                except (EOFError, OSError):
                    worker.process.join(GRACE)
                    answers.append((number, Answer()))
        return answers

    def _end(self, worker: _Process) -> str:
        worker.connection.close()
        if worker.process.exitcode is None:
            worker.process.terminate()
            worker.process.join(GRACE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work(pickled: bytes, number: int, connection: Connection, threads: int) -> None:
    """Answer one architecture after another, until nobody is there who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, which ends this one
    multiprocessing.current_process().daemon = False  # else a loader of data could have no processes of its own
    torch.set_num_threads(threads)

    def make(worker: int) -> Evaluation:
        # Here, not by multiprocessing: a module that is not found, or lacks it, is told like what `make` raises.
        make_evaluation: MakeEvaluation = pickle.loads(pickled)
        return make_evaluation(worker)

    answerer = Answerer(make, number)
    with suppress(EOFError, OSError):
        while True:
            connection.send(answerer.answer(connection.recv()))
    # At once, as `_end` does: Python would wait for the processes of a loader, which end by themselves when alone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
