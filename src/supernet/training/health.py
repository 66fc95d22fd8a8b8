"""What is recorded of a search's health each epoch, and rules that stop it early."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from supernet.checks import check_counts
from supernet.space import Architecture, SearchSpace

__all__ = ["DartsPlusStopping", "StableStopping"]


def peak_memory(device: torch.device) -> float:
    """Return the most memory so far in MiB: the device's, or on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # MiB in macOS's bytes, in the others' KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def entropies(probabilities: Mapping[str, list[float]], space: SearchSpace) -> dict[str, float]:
    """Return label -> entropy of its distribution, in nats: log K where nothing is decided, 0 where all is.

    Where the number of chosen inputs is not fixed, each is chosen on its own, and K log 2 is the most.
    """
    outcomes = {
        label: ps if space[label].is_fixed else [q for p in ps for q in (p, 1 - p)]
        for label, ps in probabilities.items()
    }
    return {label: -sum(p * math.log(p) for p in ps if p > 0) for label, ps in outcomes.items()}


def share_without_parameters(
    architecture: Architecture, space: SearchSpace, free: Mapping[str, Collection[str]]
) -> float:
    """Return the share of layer choices whose decision is a candidate without parameters, such as a skip connection.

    Args:
        architecture: An architecture in the space's form, label -> decision.
        space: The space that it belongs to.
        free: Label -> names of the candidates without parameters.
    """
    decided = [label for label in architecture if not space[label].is_set]
    return sum(architecture[label] in free.get(label, ()) for label in decided) / len(decided) if decided else 0.0


class StableStopping:
    """Stops a search when the architecture that it would export has not changed for a number of epochs.

    Args:
        epochs: Number of epochs in which nothing may change.

    >>> StableStopping(3)({"stable_epochs": 3})
    'the architecture has not changed for 3 epochs'
    """

    needs_architecture = True  # in the record of each epoch

    def __init__(self, epochs: int) -> None:
        check_counts(epochs=epochs)
        self.epochs = epochs

    def __call__(self, record: Mapping[str, Any]) -> str | None:
        """Return why to stop after the epoch of this record, or None."""
        if record["stable_epochs"] >= self.epochs:
            return f"the architecture has not changed for {record['stable_epochs']} epochs"
        return None


class DartsPlusStopping:
    """Stops a search when a cell has too many skip connections: DARTS+ (arXiv 1909.06035).

    The paper's rule for its normal cell, where each node keeps its two strongest edges: two or more.

    Args:
        skips: Names of the candidates that are skip connections.
        cell: A function (label, architecture) -> the cell that the choice belongs to, None where it does not count,
            such as an edge that no `InputChoice` of the architecture takes. Default: all count, as one cell.
        limit: Number of skip connections in one cell that is too many. Default: 2.

    >>> DartsPlusStopping()({"architecture": {"edge0": "skip_connect", "edge1": "conv", "edge2": "skip_connect"}})
    'the network has 2 skip connections (DARTS+)'
    """

    needs_architecture = True  # in the record of each epoch

    def __init__(
        self,
        skips: Collection[str] = ("skip_connect", "skipconnect", "identity", "skip"),
        cell: Callable[[str, Architecture], str | None] = lambda label, architecture: "the network",
        limit: int = 2,
    ) -> None:
        check_counts(limit=limit)
        self.skips, self.cell, self.limit = frozenset(skips), cell, limit

    def __call__(self, record: Mapping[str, Any]) -> str | None:
        """Return why to stop after the epoch of this record, or None."""
        counts: dict[str, int] = {}
        for label, decision in record["architecture"].items():
            cell = self.cell(label, record["architecture"])
            if cell is not None and isinstance(decision, str) and decision in self.skips:
                counts[cell] = counts.get(cell, 0) + 1
        for cell, count in counts.items():
            if count >= self.limit:
                return f"{cell} has {count} skip connections (DARTS+)"
        return None
