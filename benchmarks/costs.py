"""How long it takes to say what architectures of Once-for-All's MobileNetV3 space cost.

python -m benchmarks.costs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import measuring
from supernet import SearchSpace
from supernet.cost import Macs, Parameters, Parts, PeakMemory, TableCost
from supernet.hub import MobileNetV3

COUNT = 10_000


def seconds_of(run: Callable[[], Any]) -> float:
    """Return how long a function takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Measure making costs, and looking up each and three together."""
    torch.set_num_threads(measuring.THREADS)
    model, example = MobileNetV3(), torch.ones(1, 3, 224, 224)
    space, generator = SearchSpace(model), torch.Generator().manual_seed(0)
    architectures = [space.sample(generator) for _ in range(COUNT)]
    began = time.perf_counter()
    parts = Parts(model, example)
    rows: list[dict[str, Any]] = [{"what": "looking at all parts", "seconds": time.perf_counter() - began}]
    entries = {label: dict.fromkeys(domain.options, 1.0) for label, domain in space.items()}
    costs = (Parameters(parts), Macs(parts), TableCost(space, entries, name="latency_ms"))
    for cost in costs:
        cost.of(architectures[0])
        looked_up = partial(list, map(cost.of, architectures))
        rows.append({"what": f"{cost.name} of {COUNT:,}", "seconds": seconds_of(looked_up)})
    together = seconds_of(lambda: [[cost.of(one) for cost in costs] for one in architectures])
    rows.append({"what": f"all three of {COUNT:,}", "seconds": together})
    began = time.perf_counter()
    peak = PeakMemory(model, example)
    rows.append({"what": "looking at all operations, for the peak of memory", "seconds": time.perf_counter() - began})
    rows.append(
        {"what": "the peak of memory of 100", "seconds": seconds_of(lambda: [*map(peak.of, architectures[:100])])}
    )
    measuring.report("costs", "Costs of architectures of MobileNetV3's space", rows)


if __name__ == "__main__":
    main()
