"""How long it takes to take a model over, to freeze it, and to import the library.

python -m benchmarks.building
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks import measuring
from benchmarks.contestants import Task, supernet
from supernet import LayerChoice, SearchSpace, freeze
from supernet.trainers import SupernetTrainer

ROUNDS = 5


def seconds_of(module: str) -> float:
    """Return how long a fresh process takes to import a module."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def taking_over(task: Task) -> dict[str, float]:
    """Return the seconds of making a trainer, and of it, those of the trial forward passes."""
    in_trials = 0.0
    trial = SupernetTrainer._trial

    def timed(trainer: SupernetTrainer, X: Any) -> Any:
        nonlocal in_trials
        began = time.perf_counter()
        result = trial(trainer, X)
        in_trials += time.perf_counter() - began
        return result

    began = time.perf_counter()
    task.build(lambda label, candidates: nn.Identity())
    building = -time.perf_counter()
    task.build(lambda label, candidates: LayerChoice(candidates, label=label))
    building += time.perf_counter()
    began = time.perf_counter()
    with mock.patch.object(SupernetTrainer, "_trial", timed):
        supernet(task)
    whole = time.perf_counter() - began
    return {"whole": whole - building, "trials": in_trials}


def main() -> None:
    """Measure all three."""
    torch.set_num_threads(measuring.THREADS)
    task = Task("darts", 8, 16)
    over = [taking_over(task) for _ in range(ROUNDS)]
    rows = [
        {
            "what": "taking over DARTS's network of 8 cells, trial passes aside",
            "seconds (min)": min(s["whole"] - s["trials"] for s in over),
        },
        {"what": "its trial passes (batch 16)", "seconds (min)": min(s["trials"] for s in over)},
    ]
    model = task.build(lambda label, candidates: LayerChoice(candidates, label=label))
    architecture = SearchSpace(model).sample(torch.Generator().manual_seed(0))
    frozen = measuring.interleaved({"freeze": lambda: freeze(model, architecture)}, ROUNDS)["freeze"]
    rows.append({"what": "freezing it", "seconds (min)": min(frozen)})
    imports = [(seconds_of("torch"), seconds_of("torch, supernet")) for _ in range(ROUNDS)]
    rows.append({"what": "import torch", "seconds (min)": min(alone for alone, _ in imports)})
    rows.append(
        {"what": "import supernet beside it (median)", "seconds (min)": statistics.median(b - a for a, b in imports)}
    )
    measuring.report("building", "Building", rows)


if __name__ == "__main__":
    main()
