"""How long `maximize` takes: layers of candidates under one limit and two, and a published space of nested choices.

    python -m benchmarks.integer_programs

Prints the seconds of each, of several seeds.
"""

from __future__ import annotations

import argparse
import random
import time

from torch import nn

from supernet import LayerChoice, SearchSpace, hub
from supernet.cost import Limits, Parameters, TableCost
from supernet.search import AdditiveScore, maximize


def layers(num_layers: int, num_candidates: int, num_limits: int, seed: int) -> tuple[AdditiveScore, Limits]:
    """Return random scores, and as many random costs whose limits are two thirds of what the mean network costs."""
    generator = random.Random(seed)
    model = nn.Sequential(
        *(LayerChoice([nn.Identity() for _ in range(num_candidates)], label=f"layer{i}") for i in range(num_layers))
    )
    space = SearchSpace(model)

    def table() -> dict[str, dict[str, float]]:
        return {label: {name: generator.random() for name in space[label].options} for label in space}

    costs = {f"cost{i}": TableCost(space, table()) for i in range(num_limits)}
    return AdditiveScore(space, table()), Limits(model, dict.fromkeys(costs, num_layers / 3), costs=costs)


def mobilenet(seed: int) -> tuple[AdditiveScore, Limits]:
    """Return random scores of MobileNetV3's space, and a limit of its parameters."""
    generator = random.Random(seed)
    model = hub.MobileNetV3()
    space = SearchSpace(model)
    scores = {label: {one: generator.random() for one in domain.outcomes} for label, domain in space.items()}
    costs = {"parameters": Parameters(model)}
    return AdditiveScore(space, scores), Limits(model, {"parameters": "50%"}, costs=costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    made = {
        "24 layers of 10 candidates, one limit": lambda seed: layers(24, 10, 1, seed),
        "24 layers of 10 candidates, two limits": lambda seed: layers(24, 10, 2, seed),
        "MobileNetV3, half of its parameters": mobilenet,
    }
    maximize(*layers(4, 4, 1, 0))  # scipy is imported
    for name, make in made.items():
        seconds = []
        for seed in seeds:
            score, limits = make(seed)
            begun = time.perf_counter()
            maximize(score, limits)
            seconds.append(time.perf_counter() - begun)
        print(f"{name}: {' '.join(f'{one:.2f}' for one in seconds)} s", flush=True)


if __name__ == "__main__":
    main()
