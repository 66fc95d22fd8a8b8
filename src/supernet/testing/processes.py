"""A function in several processes of this machine, as `torchrun` would start them."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed import TCPStore

from supernet.errors import TrainingError

__all__: list[str] = []

TIMEOUT, GRACE = 600.0, 10.0  # seconds for all, and after one has failed


def in_processes(function: Callable[..., Any], *arguments: Any, count: int) -> list[Any]:
    """Return what a function returns in each of several processes, as JSON has it.

    Args:
        function: A function at the top of a module, for the processes share nothing with this one.
        arguments: What it is called with, which can be pickled.
        count: Number of processes.

    Raises:
        TrainingError: One of the processes has failed; has what it printed.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # A fork of this process would have half of torch's threads.
    is_there = "forkserver" in multiprocessing.get_all_start_methods()
    started: Any = multiprocessing.get_context("forkserver" if is_there else "spawn")
    with TemporaryDirectory() as directory:
        places = [Path(directory, f"{rank}.json") for rank in range(count)]
        processes = [
            started.Process(target=_work, args=(_environment(rank, count, store.port), place, function, arguments))
            for rank, place in enumerate(places)
        ]
        for process in processes:
            process.start()
        deadline, has_failed = time.monotonic() + TIMEOUT, False
        while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            if not has_failed and any(process.exitcode for process in processes):
                has_failed, deadline = True, time.monotonic() + GRACE  # for others to notice it
            time.sleep(0.05)
        for process in processes:
            process.kill()
            process.join()
        told = [json.loads(place.read_text()) if place.exists() else None for place in places]
    errors = [f"process {rank}: {one['error']}" for rank, one in enumerate(told) if one and "error" in one]
    errors += [f"process {rank} has ended without a result" for rank, one in enumerate(told) if one is None]
    if errors:
        raise TrainingError("\n".join(errors))
    return [one["result"] for one in told if one is not None]


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {**store, **{name: str(number) for name, number in numbers.items()}, "TORCHELASTIC_RUN_ID": "testing"}


def _work(environment: dict[str, str], place: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= environment
    multiprocessing.set_start_method(None, force=True)  # the default, for loaders of data
    try:
        told = {"result": function(*arguments)}
    except BaseException:
        told = {"error": traceback.format_exc()}
    place.write_text(json.dumps(told))
    if "error" in told:
        raise SystemExit(1)
