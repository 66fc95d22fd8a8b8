"""Drawing architectures by what they cost: each bin of a cost equally often, so that small ones are not starved."""

from __future__ import annotations

import heapq
import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from supernet.checks import check_counts
from supernet.cost.cost import Cost
from supernet.cost.extremes import extremes
from supernet.errors import CostError
from supernet.space import Architecture, SearchSpace
from supernet.space.summary import descended

__all__ = ["CostBins"]

logger = logging.getLogger("supernet")

SAMPLES = 500  # of which those begin that fall into a bin
DESCENTS = 5  # towards a bin that none of these falls into
PROPOSALS = 8  # between one architecture of a bin and the next
BURN_IN = 20  # architectures that are let go, since the first one is none that was drawn


class CostBins:
    """Draws architectures: each bin of a cost is equally likely, and within it each is as likely as the space has it.

    In most spaces nearly all architectures cost about the same, since costs are sums over many choices (see arXiv
    2011.09011): where paths are sampled uniformly, the smallest networks are hardly ever trained.

    Within a bin a Metropolis walk goes from one architecture to the next: some decisions are drawn anew, by their
    priors, and what leaves the bin is not taken. So a draw takes a fixed time however rare the bin is, what is drawn
    has the space's own distribution within it, and successive draws of a bin resemble each other.

    Args:
        cost: What an architecture costs.
        bins: Number of bins between the smallest and the largest architecture, each as wide as the one before times a
            factor; or their edges, ascending: what costs less than the first or more than the last is never drawn.
        allows: Says whether an architecture may be drawn. Default: all may.
        sample: Draws an architecture that may be drawn, `generator -> architecture`. Default: the space's own.

    Attributes:
        space: The space of the cost.
        edges: The (least, most) of each bin; those that no architecture was found for are left out.

    Raises:
        CostError: The edges are none, no architecture was found in any bin, or a number of bins is given where the
            smallest architecture costs nothing.

    >>> widths = [ValueChoice([2, 4, 8, 16], label=label) for label in "abc"]
    >>> bins = CostBins(ArchitectureCost(SearchSpace(nn.ModuleList(widths)), lambda a: a["a"] * a["b"] * a["c"]), 3)
    >>> [round(most) for least, most in bins.edges]
    [64, 512, 4096]
    """

    def __init__(
        self,
        cost: Cost,
        bins: int | Sequence[float],
        *,
        allows: Callable[[Architecture], bool] | None = None,
        sample: Callable[[torch.Generator], Architecture] | None = None,
    ) -> None:
        self.space: SearchSpace = cost.space
        self._cost_of, self._allows, sample = cost.of, allows, sample or cost.space.sample
        generator = torch.Generator().manual_seed(0)
        ends = extremes(self.space, cost.of, sample, allows)
        self._edges = _edges(bins, cost, *map(cost.of, ends))
        drawn, others = [*ends, *(sample(generator) for _ in range(SAMPLES))], self.space.draw(generator)
        found = {number: self._member(number, drawn, others) for number in range(len(self._edges) - 1)}
        members = {number: member for number, member in found.items() if member is not None}
        if not members:
            raise CostError(
                f"no architecture was found whose {cost.name} is from {self._edges[0]:,.6g} to {self._edges[-1]:,.6g}; "
                f"the smallest has {cost.of(ends.smallest):,.6g}, the largest {cost.of(ends.largest):,.6g}"
            )
        if len(members) < len(found):
            logger.info("%d of %d bins of %s have architectures", len(members), len(found), cost.name)
        self._numbers = list(members)
        self.edges = [(self._edges[number], self._edges[number + 1]) for number in members]
        # Where each walk is: a decision for every choice, for those that are not reached are drawn, too.
        self._places = [{**others, **members[number]} for number in members]
        for position in range(len(members)):
            for _ in range(BURN_IN):
                self._walk(position, generator)

    def _member(self, number: int, drawn: Sequence[Architecture], others: Architecture) -> Architecture | None:
        """Return an architecture of a bin: one that was drawn, or what descents from the nearest of these lead to."""
        outside = partial(self._outside, number)
        for architecture in heapq.nsmallest(DESCENTS, drawn, key=outside):
            found = descended(self.space, architecture, others, outside)
            if not outside(found):
                return found
        return None

    def sample(self, generator: torch.Generator) -> Architecture:
        """Return an architecture of a bin; each bin is equally likely.

        Args:
            generator: Where the random numbers come from, on the CPU.
        """
        return self._walk(int(torch.randint(len(self._places), (), generator=generator)), generator)

    def _walk(self, position: int, generator: torch.Generator) -> Architecture:
        space, number, place = self.space, self._numbers[position], self._places[position]
        # How much is drawn anew: all, half of it, and so on down to one decision, each as often.
        halvings = torch.randint(len(space).bit_length(), (PROPOSALS,), generator=generator).tolist()
        for halving in halvings:
            proposed = space.redraw(place, 0.5**halving, generator)
            architecture = space.follow(proposed.__getitem__)
            if not self._outside(number, architecture):
                place = proposed
        self._places[position] = place
        return space.follow(place.__getitem__)

    def _bin(self, cost: float) -> int:
        """Return the number of a cost's bin; the last one has both its edges."""
        last = len(self._edges) - 1
        return last - 1 if cost == self._edges[last] else bisect_right(self._edges, cost) - 1

    def _outside(self, number: int, architecture: Architecture) -> float:
        """Return by how much an architecture is outside of a bin; 0 for one inside that may be drawn."""
        if not self.space.allows(architecture):
            return math.inf
        cost = self._cost_of(architecture)
        if self._bin(cost) == number:
            return 0.0 if self._allows is None or self._allows(architecture) else math.inf
        low, high = self._edges[number : number + 2]
        # At the upper edge itself begins the next bin.
        return max(low - cost, cost - high, math.ulp(high)) if math.isfinite(cost) else math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return from where the walks go on exactly."""
        return {"places": [dict(place) for place in self._places]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the walks go on from there."""
        self._places = [dict(place) for place in state["places"]]


def _edges(bins: int | Sequence[float], cost: Cost, least: float, most: float) -> list[float]:
    if hasattr(bins, "__len__"):
        given = list(bins) if isinstance(bins, Sequence) and not isinstance(bins, str) else []
        edges = [float(edge) for edge in given] if all(hasattr(edge, "__float__") for edge in given) else []
        if len(edges) < 2 or any(not low < high for low, high in pairwise(edges)):
            raise CostError(
                f"bins are a whole number, or a list of their edges, two ascending numbers or more, not {bins!r:.80}"
            )
        return edges
    check_counts(bins=bins)
    if least <= 0:
        raise CostError(
            f"bins are each wider by a factor, and the smallest architecture has {least:,.6g} {cost.name}; give the "
            "bins' edges"
        )
    inner = [least * (most / least) ** (number / bins) for number in range(1, bins)]
    # The smallest and the largest may be all there is.
    return [least, *inner, most] if least < most else [least, math.nextafter(least, math.inf)]
