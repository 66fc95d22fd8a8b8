"""What it costs to evaluate an architecture in a supernet, beside its plain network on the same batches.

python -m benchmarks.evaluating
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import measuring
from benchmarks.sampled import Case, darts, mobilenetv3
from supernet import SearchSpace, Supernet, accuracy, evaluate, freeze, recalibrate
from supernet.search import SupernetEvaluator


def rows_of(name: str, case: Case, paths: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each of some architectures: evaluated in the supernet, and as a plain network."""
    make, images, labels = case
    torch.manual_seed(0)
    model = make()
    space = SearchSpace(model)
    drawn = [space.sample(torch.Generator().manual_seed(path)) for path in range(paths)]
    networks = [freeze(model, architecture) for architecture in drawn]
    data = TensorDataset(images.repeat(4, 1, 1, 1), labels.repeat(4))
    how: dict[str, Any] = {"batch_size": len(images)}
    evaluator = SupernetEvaluator(
        Supernet(model), (data, data), len(data), loss=nn.CrossEntropyLoss(), metrics=accuracy, **how
    )
    rows = []
    for path, (architecture, network) in enumerate(zip(drawn, networks, strict=True)):

        def plain(network: nn.Module = network) -> None:
            evaluate(recalibrate(network, data, **how), nn.CrossEntropyLoss(), accuracy, data, **how)

        def in_supernet(architecture: Any = architecture) -> None:
            evaluator(architecture)

        runs: dict[str, Callable[[], None]] = {"plain": plain, "supernet": in_supernet}
        seconds = measuring.interleaved(runs, rounds)
        rows.append(
            {
                "network": name,
                "batch": len(images),
                "path": path,
                "plain ms": 1e3 * min(seconds["plain"]),
                "supernet / plain (median)": measuring.ratio(seconds["supernet"], seconds["plain"]),
                "supernet / plain (minima)": min(seconds["supernet"]) / min(seconds["plain"]),
            }
        )
    return rows


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--paths", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(measuring.THREADS)
    rows = [
        *rows_of("DARTS", darts(8, options.batch), options.paths, options.rounds),
        *rows_of("MobileNetV3", mobilenetv3(options.batch), options.paths, options.rounds),
    ]
    measuring.report("evaluating", "Evaluating an architecture, recalibration included", rows)


if __name__ == "__main__":
    main()
