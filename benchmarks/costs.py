"""How long it takes to know what architectures of a space cost, in seconds of the processor, by one thread.

python -m benchmarks.costs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import measuring
from supernet import SearchSpace
from supernet.cost import Macs, Parameters, Parts, PeakMemory, TableCost
from supernet.demo import Network
from supernet.hub import Darts, MobileNetV3

COUNT = 10_000
SPACES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "the demo's": (Network, (1, 1, 8, 8)),
    "MobileNetV3's": (MobileNetV3, (1, 3, 224, 224)),
    "DARTS's": (Darts, (1, 3, 32, 32)),
}


def seconds_of(run: Callable[[], Any]) -> float:
    """Return how long a function keeps the processor."""
    began = time.process_time()
    run()
    return time.process_time() - began


def making() -> list[dict[str, Any]]:
    """Return the seconds of making each cost, of each space."""
    warm = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1)
    rows: list[dict[str, Any]] = [
        {"what": "what torch imports for the first that needs a pass", "seconds": seconds_of(lambda: Macs(*warm))}
    ]
    for name, (make, shape) in SPACES.items():
        model, example = make(), torch.ones(shape)
        costs = {"parameters": Parameters, "MACs": partial(Macs, example=example)}
        for cost, of in {**costs, "peak of memory": partial(PeakMemory, example=example)}.items():
            rows.append(
                {"what": f"looking at {name} networks, for the {cost}", "seconds": seconds_of(partial(of, model))}
            )
    return rows


def looking_up() -> list[dict[str, Any]]:
    """Return the seconds of what architectures of MobileNetV3's space cost."""
    model, example = MobileNetV3(), torch.ones(1, 3, 224, 224)
    space, generator = SearchSpace(model), torch.Generator().manual_seed(0)
    architectures = [space.sample(generator) for _ in range(COUNT)]
    parts, peak = Parts(model, example), PeakMemory(model, example)
    entries = {label: dict.fromkeys(domain.options, 1.0) for label, domain in space.items()}
    costs = (Parameters(parts), Macs(parts), TableCost(space, entries, name="latency_ms"))
    rows = []
    for cost in costs:
        cost.of(architectures[0])
        looked_up = partial(list, map(cost.of, architectures))
        rows.append({"what": f"{cost.name} of {COUNT:,} of MobileNetV3's", "seconds": seconds_of(looked_up)})
    together = seconds_of(lambda: [[cost.of(one) for cost in costs] for one in architectures])
    rows.append({"what": f"all three of {COUNT:,}", "seconds": together})
    peaks = seconds_of(lambda: [*map(peak.of, architectures[:100])])
    return [*rows, {"what": "the peak of memory of 100", "seconds": peaks}]


def main() -> None:
    """Measure making costs, and looking up each and three together."""
    torch.set_num_threads(1)
    measuring.report("costs", "Costs of architectures", [*making(), *looking_up()])


if __name__ == "__main__":
    main()
