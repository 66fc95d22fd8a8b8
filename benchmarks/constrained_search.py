"""How far from the best a search ends under a latency bound: NAS-Bench-201 on 27 devices.

python -m benchmarks.constrained_search ../shared/data

A search sees the validation accuracy on CIFAR-10 after 12 epochs, and is judged by the test accuracy after 200 epochs:
its regret is how far what it takes for the best is below the true best of those that keep the bound.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supernet import SearchSpace
from supernet.cost import ArchitectureCost, Limits
from supernet.hub import NasBench201
from supernet.search import (
    EvolutionSearcher,
    NsgaSearcher,
    RandomSearcher,
    RegularizedEvolutionSearcher,
    TpeSearcher,
    search,
)

BUDGETS = (50, 100, 500)
SHARES = (0.25, 0.5, 0.75)  # of the cells that keep a bound
SEARCHERS: dict[str, Callable[..., Any]] = {
    "random": RandomSearcher,
    "regularized evolution": RegularizedEvolutionSearcher,
    "evolution of SPOS": partial(EvolutionSearcher, population=20, num_parents=5),
    "TPE": TpeSearcher,
    "NSGA-II": partial(NsgaSearcher, population=10),
}


class Benchmark:
    """The tables of NAS-Bench-201 and of its latencies, by architecture.

    Args:
        data: Directory of nas_bench_201.npz and nas_latency.npz.
    """

    def __init__(self, data: Path) -> None:
        with np.load(data / "nas_bench_201.npz") as table, np.load(data / "nas_latency.npz") as latency:
            self.signal = table["valid_accuracy_12"][:, 0].astype(np.float64)
            self.truth = table["test_accuracy_200"][:, 0].astype(np.float64)
            operations = [str(name) for name in table["operations"]]
            labels = [f"cell__{a}_{b}" for a, b in table["edge"].tolist()]
            cells = table["operation"].tolist()
            self.latency = dict(
                zip(latency["nas_bench_201_device"].tolist(), latency["nas_bench_201_latency"], strict=True)
            )
        self.space = SearchSpace(NasBench201(channels=1, cells=1))
        architectures = ({label: operations[k] for label, k in zip(labels, cell, strict=True)} for cell in cells)
        self._rows_within: dict[Limits, list[int]] = {}
        self._rows = {json.dumps(self.space.canonical(a)): row for row, a in enumerate(architectures)}

    def row(self, architecture: dict[str, Any]) -> int:
        return self._rows[json.dumps(architecture)]

    def limits(self, device: str, share: float) -> Limits:
        """Return the limit that a share of the cells keep on a device."""
        latency = self.latency[device].astype(np.float64)
        cost = ArchitectureCost(self.space, lambda a: float(latency[self.row(a)]), name="latency_ms", unit="ms")
        return Limits(self.space, {"latency_ms": float(np.quantile(latency, share))}, costs={"latency_ms": cost})

    def regrets(
        self, kind: Callable[..., Any], seed: int, limits: Limits | None, budgets: Sequence[int] = BUDGETS
    ) -> list[float]:
        """Return the regret after each number of evaluations of one search."""
        asked: list[int] = []

        def score(architectures: Sequence[Any]) -> list[float]:
            rows = [self.row(architecture) for architecture in architectures]
            asked.extend(rows)
            return [float(self.signal[row]) for row in rows]

        generator = torch.Generator().manual_seed(seed)
        search(kind(self.space, generator=generator, constraint=limits), score, max(budgets))
        allowed = range(len(self.truth)) if limits is None else self._allowed(limits)
        best = self.truth[list(allowed)].max()
        return [float(best - self.truth[max(asked[:count], key=self.signal.__getitem__)]) for count in budgets]

    def exhaustive(self, limits: Limits | None) -> float:
        """Return the regret of whoever looks at the signal of every cell."""
        allowed = list(range(len(self.truth)) if limits is None else self._allowed(limits))
        return float(self.truth[allowed].max() - self.truth[max(allowed, key=self.signal.__getitem__)])

    def _allowed(self, limits: Limits) -> list[int]:
        if limits not in self._rows_within:
            bound, cost = limits.bounds["latency_ms"][1], limits.costs["latency_ms"]
            self._rows_within[limits] = [row for name, row in self._rows.items() if cost.of(json.loads(name)) <= bound]
        return self._rows_within[limits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="searches under each bound (default: 3)")
    parser.add_argument("--devices", nargs="*", help="default: all")
    parser.add_argument("--searchers", nargs="*", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--one-bound", action="store_true", help="one a device, in turn (default: all three)")
    parser.add_argument("--unbounded", action="store_true", help="without a bound, instead")
    parser.add_argument("--json", type=Path, help="where all regrets are written")
    options = parser.parse_args()
    benchmark = Benchmark(options.data)
    devices = options.devices or list(benchmark.latency)
    pairs = [(device, share) for device in devices for share in SHARES]
    if options.one_bound:
        pairs = [(device, SHARES[i % len(SHARES)]) for i, device in enumerate(devices)]
    bounds = [None] if options.unbounded else [benchmark.limits(*pair) for pair in pairs]
    print(f"{len(bounds)} bounds, {options.seeds} searches under each: mean regret +- standard error after", *BUDGETS)
    print(f"{'every cell':24}{np.mean([benchmark.exhaustive(limits) for limits in bounds]):8.2f}")
    all_regrets = {}
    for name in options.searchers:
        start = time.perf_counter()
        regrets_RB = np.array(
            [benchmark.regrets(SEARCHERS[name], seed, limits) for limits in bounds for seed in range(options.seeds)]
        )
        means, errors = regrets_RB.mean(0), regrets_RB.std(0) / len(regrets_RB) ** 0.5
        shown = "".join(f"{mean:8.2f} +-{error:5.2f}" for mean, error in zip(means, errors, strict=True))
        print(f"{name:24}{shown}   {(time.perf_counter() - start) / len(regrets_RB):6.2f} s a search", flush=True)
        all_regrets[name] = regrets_RB.tolist()
    if options.json:
        options.json.write_text(json.dumps({"budgets": BUDGETS, "regrets": all_regrets}))


if __name__ == "__main__":
    main()
