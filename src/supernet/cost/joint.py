"""What several choices decide together, and means over that where each is decided on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from supernet.errors import CostError
from supernet.space import Architecture, SearchSpace

__all__: list[str] = []

MAX_JOINT = 100_000  # decisions of choices that are looked at together
TRIES = 10  # draws of all else, for an architecture that keeps the constraints


def completed(space: SearchSpace, decided: Mapping[str, Any], generator: torch.Generator) -> Architecture | None:
    """Return an architecture with some decisions, all else drawn; None if none was found that keeps the constraints."""
    for _ in range(TRIES):
        architecture = space.follow({**space.draw(generator), **decided}.__getitem__)
        if space.allows(architecture):
            return architecture
    return None


class Joint:
    """All that some choices decide together, and what each of that costs.

    Args:
        space: The space of the choices.
        scope: Their labels.
        cost_of: What an architecture costs, as far as these choices decide it.
        what: Of what the cost is, for a message.
        generator: What decides all other choices.

    Raises:
        CostError: They decide too much together.
    """

    def __init__(
        self,
        space: SearchSpace,
        scope: tuple[str, ...],
        cost_of: Callable[[Architecture], float],
        what: str,
        generator: torch.Generator,
    ) -> None:
        self.scope = scope
        number = math.prod(space[label].size for label in scope)
        if number > MAX_JOINT:
            raise CostError(
                f"{what} depends on {len(scope)} choices together ({', '.join(scope[:4])}, ...), which have {number:,} "
                f"joint decisions; at most {MAX_JOINT:,} have a mean: use the cost in a search"
            )
        decisions = [list(space[label]) for label in scope]
        positions, costs = [], []
        for at in product(*(range(len(of_label)) for of_label in decisions)):
            decided = {label: decisions[k][i] for k, (label, i) in enumerate(zip(scope, at, strict=True))}
            architecture = completed(space, decided, generator)
            if architecture is not None:
                positions.append(at)
                costs.append(cost_of(architecture))
        self._positions_JL = torch.tensor(positions).reshape(len(positions), len(scope))
        self._costs_J = torch.tensor(costs, dtype=torch.float64)

    def mean(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cost (), differentiable in the probabilities; what constraints rule out has no share."""
        if not self.scope:
            return self._costs_J.sum()
        factors = [
            probabilities[label].double()[self._positions_JL[:, place].to(probabilities[label].device)]
            for place, label in enumerate(self.scope)
        ]
        share_J = math.prod(factors[1:], start=factors[0])
        return (share_J * self._costs_J.to(share_J)).sum() / share_J.sum()


def checked_probabilities(space: SearchSpace, probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the probabilities of all labels, or raise `CostError` where there is not one for each decision."""
    checked = {}
    for label, domain in space.items():
        given = probabilities.get(label)
        if not isinstance(given, Tensor) or given.shape != (domain.size,):
            what = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise CostError(
                f"choice {label!r} has {domain.size} decisions, so its probabilities are a tensor ({domain.size},), "
                f"not {what}"
            )
        checked[label] = given
    return checked


def summed(means: list[Tensor], probabilities: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of means (), of the dtype and on the device of the probabilities."""
    like = next(iter(probabilities.values()), torch.zeros(()))
    return torch.stack([torch.zeros((), dtype=torch.float64), *(mean.cpu() for mean in means)]).sum().to(like)
