"""Whether limits of costs can be kept, and how often random architectures do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from supernet.checks import check_counts
from supernet.errors import SpaceError
from supernet.space.space import Architecture, SearchSpace

__all__ = ["SpaceProfile"]

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


class LimitsOfCosts(Protocol):
    """What is asked of limits, such as `supernet.cost.Limits`."""

    space: SearchSpace
    bounds: Mapping[str, tuple[float, float]]

    def costs_of(self, architecture: Mapping[str, Any]) -> dict[str, float]:
        """Return name -> what the network of an architecture costs."""

    def sample(self, generator: torch.Generator) -> Architecture:
        """Return an architecture that keeps all limits, or raise an error that names the nearest."""

    def described(self, name: str) -> str:
        """Return a limit for people."""


@dataclass(frozen=True)
class SpaceProfile:
    """What random architectures cost, and how many of them keep limits; printed, it is a table.

    Attributes:
        num_samples: Number of random architectures that were looked at.
        share: Share of them that keeps all limits.
        shares: Name of a cost -> share of them that keeps its limit, whatever the others say.
        quantiles: Name of a cost -> its "least", "5 %", "median", "95 %" and "most" among them.
        limits: Name of a cost -> its limit, for people.
        example: An architecture that keeps all limits; where no random one does, one that was found by changing one
            decision at a time.
        costs: What that one costs.
    """

    num_samples: int
    share: float
    shares: dict[str, float]
    quantiles: dict[str, dict[str, float]]
    limits: dict[str, str]
    example: Architecture
    costs: dict[str, float]

    def __str__(self) -> str:
        rows = [("", "limit", "keep it", *QUANTILES)]
        for name, of_cost in self.quantiles.items():
            kept = f"{self.shares[name]:.1%}" if name in self.shares else ""
            rows.append((name, self.limits.get(name, ""), kept, *(f"{value:,.6g}" for value in of_cost.values())))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        found = "" if self.share else "; one that does was found by changing decisions"
        return "\n".join(
            [f"{self.share:.1%} of {self.num_samples:,} random architectures keep all limits{found}", *lines]
        )


def profiled(space: SearchSpace, limits: LimitsOfCosts, *, num_samples: int, seed: int) -> SpaceProfile:
    """Return what `SearchSpace.profile` does; see there."""
    check_counts(num_samples=num_samples)
    if _choices(limits.space) != _choices(space):
        raise SpaceError("these are limits of another space; make them of the model that this space was made of")
    generator = torch.Generator().manual_seed(seed)
    drawn = [space.sample(generator) for _ in range(num_samples)]
    costs = [limits.costs_of(architecture) for architecture in drawn]
    kept = {
        name: torch.tensor([low <= of_one[name] <= high for of_one in costs])
        for name, (low, high) in limits.bounds.items()
    }
    keeps_all = torch.stack([torch.ones(num_samples, dtype=torch.bool), *kept.values()]).all(0)
    example = drawn[int(keeps_all.int().argmax())] if keeps_all.any() else limits.sample(generator)
    at = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    return SpaceProfile(
        num_samples,
        keeps_all.double().mean().item(),
        {name: of_one.double().mean().item() for name, of_one in kept.items()},
        {
            name: dict(zip(QUANTILES, _quantiles([of_one[name] for of_one in costs], at), strict=True))
            for name in costs[0]
        },
        {name: limits.described(name) for name in limits.bounds},
        example,
        limits.costs_of(example),
    )


def _quantiles(values: list[float], at: torch.Tensor) -> list[float]:
    quantiles: list[float] = torch.tensor(values, dtype=torch.float64).quantile(at).tolist()
    return quantiles


def _choices(space: SearchSpace) -> str:
    return json.dumps({name: value for name, value in space.to_json().items() if name != "constraints"}, sort_keys=True)
