"""A whole step of a search by mixtures: ours against the textbook way, in time and memory.

    python -m benchmarks.mixture --network darts --depth 3 8 --batch 16 64 --order 1 2
    python -m benchmarks.mixture --network darts --depth 3 --batch 16 --order 1 --remedies

A step is a bilevel one: the alphas on a validation batch, then the weights on a training batch. The contestants take
turns in one process; memory is measured for each in a fresh one. Before, all must give the same numbers in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from itertools import product
from typing import Any

import torch
from torch import nn

from benchmarks import measuring
from benchmarks.contestants import CONTESTANTS, REMEDIES, Adapter, Task

DEPTHS = {"darts": [3, 8], "nas_bench_201": [5], "transformer": [4]}
SIZES = {"darts": 32, "nas_bench_201": 32, "transformer": 64}


def check(task: Task, contestants: dict[str, Adapter]) -> None:
    """Raise unless all contestants have the same alphas after three steps on small inputs in float64."""
    small = dataclasses.replace(task, batch=4, size=8, dtype=torch.float64)
    batches = small.batches()
    torch.set_num_threads(1)  # inputs as small as these are faster so
    expected: dict[str, torch.Tensor] | None = None
    for name, adapter in contestants.items():
        step = adapter(small)
        for _ in range(3):
            alphas = step(*batches)
        alphas = {label: alpha.detach().clone() for label, alpha in alphas.items()}
        expected = expected or alphas
        for label, alpha in expected.items():
            if not torch.allclose(alphas[label], alpha, rtol=0, atol=1e-7):
                difference = float((alphas[label] - alpha).abs().max())
                raise SystemExit(f"{name} gives other alphas for {label!r}: they differ by {difference:.1e}")
    torch.set_num_threads(measuring.THREADS)


def needed_flops(task: Task) -> int:
    """Return the operations that a step cannot do without: gradients are taken only of what a step moves.

    A forward pass is F, the gradient of the inputs F, that of the weights F. First order: 2F and 3F. Second order: the
    virtual step 3F, the validation gradient 3F, both sides of the difference 2F each, the weights' step 3F.
    """

    class First(nn.Module):  # one candidate after another, so that all are counted
        def __init__(self, label: str, candidates: dict[str, nn.Module]) -> None:
            super().__init__()
            self.candidates = nn.ModuleList(candidates.values())

        def forward(self, x: torch.Tensor) -> Any:
            return sum(candidate(x) for candidate in self.candidates)

    model, batch = task.build(First).to(task.device), task.batches()
    with torch.no_grad():
        forward = measuring.flops_of(lambda: model(batch[0]))
    return forward * (13 if task.second_order else 5)


def memory_alone(task: Task, name: str) -> dict[str, float]:
    """Return peak growth and bytes saved for backward in MiB, of one contestant in a fresh process."""
    fields = dataclasses.asdict(task) | {"dtype": None}
    command = [sys.executable, "-m", "benchmarks.mixture", "--alone", json.dumps([name, fields])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def measure_alone(name: str, fields: dict[str, Any]) -> None:
    """Print what `memory_alone` returns."""
    task = Task(**fields | {"dtype": torch.float32})
    step, batch = (CONTESTANTS | REMEDIES)[name](task), task.batches()
    growth = measuring.peak_growth(lambda: [step(*batch) for _ in range(2)], task.device)
    print(json.dumps({"growth": growth, "saved": measuring.saved_by(lambda: step(*batch))}))


def rows_of(task: Task, contestants: dict[str, Adapter], rounds: int, memory: bool) -> list[dict[str, Any]]:
    """Return a row of the table for each contestant."""
    check(task, contestants)
    batch = task.batches()
    steps = {name: adapter(task) for name, adapter in contestants.items()}
    runs = {name: lambda step=step: step(*batch) for name, step in steps.items()}  # type: ignore[misc]
    seconds = measuring.interleaved(runs, rounds, task.device)
    floor = needed_flops(task) / measuring.peak_flops(task.device)
    del steps, runs
    rows, first = [], next(iter(contestants))
    of_first: dict[str, float] = {}
    for name in contestants:
        row = {
            "depth": task.depth,
            "batch": task.batch,
            "order": 2 if task.second_order else 1,
            "contestant": name,
            "ms (min)": 1e3 * min(seconds[name]),
            "speed": 1 / measuring.ratio(seconds[name], seconds[first]),
            "speed (of minima)": min(seconds[first]) / min(seconds[name]),
            "floor / time": floor / min(seconds[name]),
        }
        if memory:
            alone = memory_alone(task, name)
            of_first = of_first or alone
            for what, mib in alone.items():
                row[f"{what} MiB"], row[f"{what} share"] = mib, mib / of_first[what]
        rows.append(row)
        print(f"  {row}", file=sys.stderr)
    return rows


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(DEPTHS), default="darts")
    parser.add_argument("--depth", type=int, nargs="+", help="cells; cells a stage; blocks")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--order", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    parser.add_argument("--remedies", action="store_true", help="what each remedy brings, instead of the contestants")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(measuring.THREADS)
    if options.alone:
        measure_alone(*json.loads(options.alone))
        return
    rows, depths = [], options.depth or DEPTHS[options.network]
    for depth, batch, order in product(depths, options.batch, options.order):
        task = Task(options.network, depth, batch, order == 2, SIZES[options.network], device=options.device)
        contestants = REMEDIES if options.remedies else CONTESTANTS
        rows += rows_of(task, contestants, options.rounds, not options.no_memory)
    kind = "remedies" if options.remedies else "mixture"
    name = "_".join(map(str, [kind, options.network, *depths, "batch", *options.batch, "order", *options.order]))
    measuring.report(name, f"A bilevel step, {options.network}", rows, options.device)


if __name__ == "__main__":
    main()
