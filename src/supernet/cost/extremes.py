"""The architectures of a space that cost least and most, as far as they can be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from supernet.errors import CostError
from supernet.space import Architecture, SearchSpace
from supernet.space.summary import descended

__all__: list[str] = []

SAMPLES = 20  # of which the best is where a descent begins


class Extremes(NamedTuple):
    """The architecture that costs least, and the one that costs most."""

    smallest: Architecture
    largest: Architecture


def extremes(
    space: SearchSpace,
    cost_of: Callable[[Architecture], float],
    sample: Callable[[torch.Generator], Architecture] | None = None,
    allows: Callable[[Architecture], bool] | None = None,
) -> Extremes:
    """Return the smallest and the largest architecture: the best of a sample, then changed one decision at a time.

    Where each decision costs more or less whatever the others are, as widths, depths and kernels do, these are exact.

    Args:
        space: The space.
        cost_of: Function architecture -> what it costs.
        sample: Function of a generator that returns an architecture that is allowed. Default: the space's own.
        allows: Function that says whether an architecture may be returned. Default: all may.

    Raises:
        CostError: The cost of an architecture is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = [(sample or space.sample)(generator) for _ in range(SAMPLES)]
    costs = [cost_of(architecture) for architecture in drawn]
    if bad := [(one, cost) for one, cost in zip(drawn, costs, strict=True) if not math.isfinite(cost)]:
        raise CostError(
            f"an architecture is small or large by a finite cost, and this one costs {bad[0][1]}: {bad[0][0]}"
        )
    others, found = space.draw(generator), list[Architecture]()
    for sign in (1, -1):

        def signed(architecture: Mapping[str, Any], sign: int = sign) -> float:
            return sign * cost_of(dict(architecture)) if allows is None or allows(dict(architecture)) else math.inf

        start = min(range(SAMPLES), key=lambda i, sign=sign: sign * costs[i])  # type: ignore[misc]
        found.append(descended(space, drawn[start], others, signed))
    return Extremes(*found)
