"""How long it takes to take a model over, to freeze it, and to import the library.

python -m benchmarks.building
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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


def seconds_of(module: str, after: str, bytecode: str) -> float:
    """Return how long importing a module after another keeps the processor; bytecode is kept in a directory."""
    code = f"import time, {after}; t = time.process_time(); import {module}; print(time.process_time() - t)"
    # As where it is installed: compiling the sources each time, as that variable has it, takes longer than all else.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


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
    with tempfile.TemporaryDirectory() as bytecode:
        seconds_of("supernet", "torch", bytecode)  # compiles all
        for module, after in (("torch", "sys"), ("supernet", "torch")):
            seconds = min(seconds_of(module, after, bytecode) for _ in range(ROUNDS))
            rows.append({"what": f"import {module} after {after}", "seconds (min)": seconds})
    measuring.report("building", "Building", rows)


if __name__ == "__main__":
    main()
