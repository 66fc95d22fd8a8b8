"""What a network may cost: limits of costs, which searches keep and trainers aim at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from supernet.cost.cost import Cost
from supernet.cost.counts import Macs, Parameters, WeightMemory
from supernet.cost.latency import Latency
from supernet.cost.parts import Parts
from supernet.cost.peak_memory import PeakMemory
from supernet.errors import CostError, SpaceError
from supernet.space import Architecture, SearchSpace
from supernet.space.summary import descended

__all__ = ["Limit", "Limits"]

Limit: TypeAlias = float | str | tuple[float | str | None, float | str | None]

DRAWS, DESCENTS = 200, 20
MAX_EXPANDED = 10_000  # beginnings of architectures that are looked at for the best one
PENALTIES = tuple(2.0**k for k in range(-4, 12))  # of what is beyond limits, from light to heavy

KNOWN: dict[str, Any] = {
    "parameters": Parameters,
    "macs": Macs,
    "weight_memory": WeightMemory,
    "peak_memory": PeakMemory,
    "latency_ms": Latency,
}
OF_A_PASS = ("macs", "peak_memory", "latency_ms")  # which need an example


class Limits:
    """Limits of what a network may cost; called with an architecture, it says whether that keeps them all.

    So it is what searchers take as `constraint`.

    Args:
        model: A module with choices, as written or replaced, or a `Supernet`; or the space alone, where all costs are
            given.
        limits: Name of a cost -> the most that a network may cost; or (least, most), either None or infinite. A text
            such as "60%" is that share of what the largest network costs. Names that are known: "parameters", "macs",
            "weight_memory" (bytes), "peak_memory" (bytes), "latency_ms".
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument. Costs of what runs need it.
        costs: Further costs by name, or others of the names that are known. Those that have no limit are reported too.

    Attributes:
        space: The space of the model.
        costs: The costs by name.
        bounds: Name -> (least, most) as numbers, of those that have a limit.
        example: What was given, of which costs of what runs are.

    Raises:
        CostError: A name is not known, a limit is none, or nothing that was found keeps all limits: names the nearest
            architecture and its costs.

    >>> width = ValueChoice([8, 16, 32], label="width")
    >>> model = nn.Sequential(supernet.nn.Linear(4, width), supernet.nn.Linear(width, 2))
    >>> limits = Limits(model, {"parameters": "60%"})
    >>> limits.bounds, limits({"width": 16}), limits({"width": 32})
    ({'parameters': (-inf, 135.6)}, True, False)
    """

    def __init__(
        self,
        model: nn.Module | SearchSpace,
        limits: Mapping[str, Limit],
        *,
        example: Any = None,
        costs: Mapping[str, Cost] | None = None,
    ) -> None:
        if not isinstance(limits, Mapping):
            raise CostError(f"limits are a dict such as {{'parameters': 60_000}}, not {limits!r:.80}")
        self.space = model if isinstance(model, SearchSpace) else SearchSpace(model)
        self.example = example
        given = checked_costs(costs, self.space)
        self.costs = {**known_costs(model, [name for name in limits if name not in given], example), **given}
        self.bounds = {name: self._bounds(name, limit) for name, limit in limits.items()}
        self._extremes: dict[str, Architecture] = {}
        self.sample(torch.Generator().manual_seed(0))  # what nothing keeps is better known now than after a training

    def __repr__(self) -> str:
        return f"Limits({', '.join(f'{name} {self.described(name)}' for name in self.bounds)})"

    # --- what an architecture costs ----------------------------------------------------------------------------

    def costs_of(self, architecture: Mapping[str, Any]) -> dict[str, float]:
        """Return name -> what the network of an architecture costs."""
        canonical = self.space.canonical(architecture)  # once for all
        return {name: cost.of_canonical(canonical) for name, cost in self.costs.items()}

    def __call__(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether the network of an architecture keeps all limits."""
        canonical = self.space.canonical(architecture)
        return all(low <= self.costs[name].of_canonical(canonical) <= high for name, (low, high) in self.bounds.items())

    def excess(self, architecture: Mapping[str, Any]) -> dict[str, float]:
        """Return name -> by which share of its limit a network is beyond it; only those that are."""
        canonical = self.space.canonical(architecture)
        return self.beyond({name: self.costs[name].of_canonical(canonical) for name in self.bounds})

    def beyond(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Return the same of costs that are known, name -> number."""
        found = {}
        for name, (low, high) in self.bounds.items():
            cost = costs[name]
            beyond = max(low - cost, cost - high)
            if not beyond <= 0:  # NaN is beyond every limit
                limit = high if not cost <= high else low
                found[name] = beyond / max(abs(limit), 1e-12) if math.isfinite(beyond) else math.inf
        return found

    def check(self, architecture: Mapping[str, Any]) -> None:
        """Raise unless an architecture keeps all limits.

        Raises:
            CostError: Names each cost that is beyond its limit.
        """
        if beyond := self.excess(architecture):
            raise CostError(f"the architecture breaks limits: {self._shown(architecture, beyond)}")

    # --- what keeps the limits ---------------------------------------------------------------------------------

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture that keeps all limits: drawn as the space's until one does.

        Where few do, one that was drawn is changed, one decision at a time, until it does; then small networks, or
        whatever is rare, are drawn more often than the priors say.

        Args:
            generator: Where the random numbers come from, on the CPU. Default: a new one with the seed 0.

        Raises:
            CostError: None was found; names the nearest architecture, and what it costs.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        for _ in range(DRAWS):
            drawn = self.space.sample(generator)
            if self(drawn):
                return drawn
        nearest: Architecture | None = None
        for _ in range(DESCENTS):
            found = descended(self.space, self.space.sample(generator), self.space.draw(generator), self._total_excess)
            if not self.excess(found):
                return found
            if nearest is None or self._total_excess(found) < self._total_excess(nearest):
                nearest = found
        assert nearest is not None
        raise CostError(
            f"no architecture was found that keeps the limits; the nearest has {self._shown(nearest, self.bounds)}, as "
            f"{nearest}; raise a limit, or make the space larger"
        )

    def best(self, scores: Mapping[str, Sequence[float]]) -> tuple[Architecture, bool]:
        """Return the architecture whose decisions have the largest sum of scores among those that keep all limits.

        It is looked for from the best one downward. Where the limits are far from that, the best one that was found by
        changing one decision at a time is returned.

        Args:
            scores: The scores of all decisions of each choice, in the order of its domain.

        Returns:
            The architecture, and whether it is known to be the best.

        >>> model = nn.Sequential(LayerChoice({"big": nn.Linear(9, 9), "small": nn.Identity()}, label="op"))
        >>> Limits(model, {"parameters": 50}).best({"op": [1.0, 0.0]})
        ({'op': 'small'}, True)
        """
        decisions = {label: list(domain) for label, domain in self.space.items()}
        first = {label: decisions[label][max(range(len(of)), key=of.__getitem__)] for label, of in scores.items()}
        asked_of = {label for name in self.bounds for label in self.costs[name].labels()}
        try:
            found = self.space.best(first.__getitem__, scores.__getitem__, self, asked_of, MAX_EXPANDED)
            return found, True
        except SpaceError:
            pass

        def lack(architecture: Architecture) -> float:
            """Return by how much its decisions are worse than the best ones."""
            of_each = (
                max(scores[label]) - scores[label][decisions[label].index(decision)]
                for label, decision in architecture.items()
            )
            return sum(of_each)

        def lack_within(architecture: Architecture) -> float:
            return lack(architecture) if self(architecture) else math.inf

        generator, everywhere = torch.Generator().manual_seed(0), first
        best = descended(self.space, self.sample(generator), everywhere, lack_within)
        start = self.space.follow(first.__getitem__)
        for weight in PENALTIES:

            def lack_and_excess(architecture: Architecture, weight: float = weight) -> float:
                return lack(architecture) + weight * self._total_excess(architecture)

            start = descended(self.space, start, everywhere, lack_and_excess)
            if self(start):
                best = min(best, descended(self.space, start, everywhere, lack_within), key=lack)
                break
        return best, False

    def _total_excess(self, architecture: Mapping[str, Any]) -> float:
        return sum(self.excess(architecture).values())

    def _shown(self, architecture: Mapping[str, Any], names: Mapping[str, Any]) -> str:
        costs = self.costs_of(architecture)
        return ", ".join(f"{name} {costs[name]:,.6g} ({self.described(name)})" for name in names)

    def described(self, name: str) -> str:
        """Return a limit for people, such as "at most 60,000"."""
        return bounds_in_words(*self.bounds[name], self.costs[name].unit)

    # --- limits as they are given ------------------------------------------------------------------------------

    def _bounds(self, name: str, limit: Any) -> tuple[float, float]:
        low, high = limit if isinstance(limit, tuple | list) and len(limit) == 2 else (None, limit)
        # As `bounds` has open ends.
        low = None if isinstance(low, float) and low == -math.inf else low
        high = None if isinstance(high, float) and high == math.inf else high
        if low is None and high is None:
            raise CostError(
                f"the limit of {name!r} is a number, a share such as '60%', or (least, most), not {limit!r}"
            )
        low = -math.inf if low is None else self._number(name, low, limit)
        high = math.inf if high is None else self._number(name, high, limit)
        if not low <= high:
            raise CostError(f"the limit of {name!r} is (least, most), but {low:g} is more than {high:g}")
        return low, high

    def _number(self, name: str, number: Any, limit: Any) -> float:
        if isinstance(number, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", number)):
            largest = self.largest(name)
            if not math.isfinite(largest):
                raise CostError(f"the limit of {name!r} is {number}, but the largest network costs {largest}")
            return float(match[1]) / 100 * largest
        is_number = hasattr(number, "__float__") and getattr(number, "ndim", 0) == 0 and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise CostError(
                f"the limit of {name!r} is a number, a share such as '60%', or (least, most), not {limit!r}"
            )
        return float(number)

    def largest(self, name: str) -> float:
        """Return what the largest network costs, as found from samples by changing one decision at a time."""
        cost, generator = self.costs[name], torch.Generator().manual_seed(0)
        sampled = [self.space.sample(generator) for _ in range(20)]
        for one in sampled:
            if math.isnan(cost.of(one)):
                raise CostError(f"the cost {name!r} is NaN for {one}, so no network has the largest; give a number")
        best = max(sampled, key=cost.of)
        return cost.of(descended(self.space, best, self.space.draw(generator), lambda one: -cost.of(one)))


def bounds_in_words(least: float, most: float, unit: str = "") -> str:
    """Return a limit for people: -inf and inf for none."""
    unit = f" {unit}" if unit else ""
    if least == -math.inf:
        return f"at most {most:,.6g}{unit}"
    return f"at least {least:,.6g}{unit}" if most == math.inf else f"{least:,.6g} to {most:,.6g}{unit}"


def checked_costs(costs: Mapping[str, Any] | None, space: SearchSpace) -> dict[str, Cost]:
    """Return costs of a space by name, or raise `CostError` where one is none, or of another space."""
    if not (costs is None or isinstance(costs, Mapping)):
        raise CostError(f"costs are a dict name -> Cost, not {costs!r:.80}")
    for name, cost in (costs or {}).items():
        if not isinstance(cost, Cost):
            raise CostError(f"the cost {name!r} is a Cost, not {cost!r:.80}; give ArchitectureCost(space, function)")
        if cost.space != space:
            raise CostError(f"the cost {name!r} is of another space than the model's; make it of this model")
    return dict(costs or {})


def known_costs(model: nn.Module | SearchSpace, names: list[str], example: Any) -> dict[str, Cost]:
    """Return the costs of names that are known, which share what the networks are made of."""
    for name in names:
        if name not in KNOWN:
            raise CostError(
                f"there is no cost {name!r}; known are {', '.join(KNOWN)}: give others by costs={{{name!r}: ...}}"
            )
    if needing := [name for name in names if name in OF_A_PASS and example is None]:
        raise CostError(
            f"the cost {needing[0]!r} is of a network that runs; give example=, what the model is called with"
        )
    if not names:
        return {}
    if isinstance(model, SearchSpace):
        raise CostError(f"the cost {names[0]!r} is of networks, not of a space; give the model, or costs=")
    parts = Parts(model, example)
    return {name: KNOWN[name](parts) for name in names}
