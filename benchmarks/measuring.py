"""How time and memory are measured: contestants in turn in one process, and each alone in a fresh one for memory."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

THREADS = 2
MIB = 2**20


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return name -> seconds of each round; the runs take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # as `fit` does; for all
    for counts in [False, *[True] * rounds]:
        for name, run in runs.items():
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            if counts:
                seconds[name].append(time.perf_counter() - began)
    gc.unfreeze()
    return seconds


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median over the rounds of one's seconds as a share of the other's in the same round."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def synchronize(device: str) -> None:
    """Wait for what has been launched."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_growth(run: Callable[[], Any], device: str = "cpu") -> float:
    """Return by how many MiB memory grows at its peak while something runs: resident memory, or a GPU's.

    On a CPU this is to be called in a fresh process, for what others have freed is not always given back.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    ctypes.CDLL(None).malloc_trim(0)  # what building has freed shall not hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    """Return a figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class _Saved:
    """A tensor that autograd holds, as long as it holds it."""

    def __init__(self, tensor: torch.Tensor, books: SavedForBackward) -> None:
        self.tensor, self._books = tensor, books
        self._key, self._size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        books.enter(self._key, self._size)

    def __del__(self) -> None:
        self._books.leave(self._key, self._size)


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of distinct storages that autograd holds in this context; `peak` is the most at a time."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._now = self.peak = 0
        super().__init__(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)

    def enter(self, key: int, size: int) -> None:
        """Take a storage into the books."""
        self._held[key] = self._held.get(key, 0) + 1
        if self._held[key] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)

    def leave(self, key: int, size: int) -> None:
        """Take a storage out of the books."""
        self._held[key] -= 1
        if self._held[key] == 0:
            del self._held[key]
            self._now -= size


def saved_by(run: Callable[[], Any]) -> float:
    """Return the most MiB that autograd holds at a time while something runs."""
    saved = SavedForBackward()
    with saved:
        run()
    return saved.peak / MIB


def flops_of(run: Callable[[], Any]) -> int:
    """Return how many floating-point operations matrix products and convolutions need."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_flops(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return the floating-point operations a second that a large matrix product reaches here."""
    n = 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = interleaved({"product": lambda: a @ b}, rounds=10, device=device)["product"]
    return 2 * n**3 / min(seconds)


def machine(device: str = "cpu") -> str:
    """Return what this was measured on, in words."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{threads} threads of {model} ({capability}), torch {torch.__version__}"


def report(name: str, title: str, rows: Sequence[Mapping[str, Any]], device: str = "cpu") -> None:
    """Print one table, and write it into results/{name}.json."""
    columns = list(rows[0])
    cells = [[_written(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}\n{machine(device)}\n")
    for line in [columns, ["-" * width for width in widths], *cells]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps({"title": title, "machine": machine(device), "rows": list(rows)}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(Path(__file__).parents[1])}")


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
