"""What several choices decide together, and means over that where each is decided on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import CostError
from supernet.space import Architecture, SearchSpace

__all__: list[str] = []

MAX_JOINT = 100_000  # decisions of choices that are looked at together
TRIES = 200  # draws of all else, for an architecture that keeps the constraints
TRIES_OF_A_REPAIR = 20  # of them that one counts for which was repaired in vain
REPAIRS = 20  # decisions that are changed after a draw, where an expression over few choices is broken
MAX_LISTED = 1_000  # decisions of one choice, which are all tried for a repair


def completed(space: SearchSpace, decided: Mapping[str, Any], generator: torch.Generator) -> Architecture | None:
    """Return an architecture with some decisions, all else drawn; None if none was found that keeps the constraints.

    What is drawn hardly ever keeps `a == b` where `a` is decided already, so a choice that a broken expression is about
    is decided again, in such a way that the expression holds if that can be.
    """
    left = TRIES
    while left > 0:
        full = {**space.draw(generator), **decided}
        for _ in range(REPAIRS):
            architecture = space.follow(full.__getitem__)
            broken = space.broken_by(architecture)
            if broken is None:
                return architecture
            if broken.labels is None:  # a function, which does not say what it is about
                break
            free = [label for label in broken.labels if label not in decided]
            if not free:
                if all(label in decided for inner in broken.labels for label in space.around(inner)):
                    return None  # for it is broken whatever all else is
                break
            label = free[int(torch.randint(len(free), (), generator=generator))]
            if space[label].size > MAX_LISTED:
                full[label] = space.draw(generator)[label]
            else:
                decisions = list(space[label])
                kept = [d for d in decisions if broken.allows({**architecture, label: d})] or decisions
                full[label] = kept[int(torch.randint(len(kept), (), generator=generator))]
        left -= 1 if broken is not None and broken.labels is None else TRIES_OF_A_REPAIR
    return None


class Joint:
    """All that some choices decide together, and what each of that costs.

    Args:
        space: The space of the choices.
        scope: Their labels.
        cost_of: What an architecture costs, as far as these choices decide it.
        what: Name of what the cost is of, for a message.
        generator: What decides all other choices.

    Attributes:
        positions_JL: The positions of the decisions of each row.
        costs_J: What each row costs.

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
        self.positions_JL = torch.tensor(positions, dtype=torch.long).reshape(len(positions), len(scope))
        self.costs_J = torch.tensor(costs, dtype=torch.float64)


class Means:
    """The sum of the mean costs of several joints, by a few operations on all of them at once.

    Args:
        space: The space of the choices.
        joints: What choices decide together, and what that costs.
    """

    # P probabilities of all decisions of the space, J rows of all joints, S joints, L places of a row

    def __init__(self, space: SearchSpace, joints: Sequence[Joint]) -> None:
        first, start = {}, 0
        for label, domain in space.items():
            first[label], start = start, start + domain.size
        most = max([1, *(len(joint.scope) for joint in joints)])
        rows = []
        for joint in joints:
            at_JL = joint.positions_JL + torch.tensor([first[label] for label in joint.scope], dtype=torch.long)
            # Places that a joint does not use point to a number that is 1.
            rows.append(nn.functional.pad(at_JL, (0, most - len(joint.scope)), value=start))
        lengths = torch.tensor([len(of_joint) for of_joint in rows])
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._tables = (
            torch.cat([torch.zeros((0, most), dtype=torch.long), *rows]),
            torch.arange(len(joints)).repeat_interleave(lengths) if rows else torch.zeros(0, dtype=torch.long),
            torch.cat([torch.zeros(0, dtype=torch.float64), *(joint.costs_J for joint in joints)]),
        )
        self._count = len(joints)

    def sum(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the means (), differentiable in the probabilities; what constraints rule out has no share.

        Args:
            probabilities: The probabilities of all decisions of all choices of the space, in their order.
        """
        given = [p.double() if p.device.type != "mps" else p.cpu().double() for p in probabilities.values()]
        like = next(iter(probabilities.values()), torch.zeros(()))
        p_P = torch.cat([*given, torch.ones(1, dtype=torch.float64, device=given[0].device if given else None)])
        if p_P.device not in self._on:
            at_JL, of_J, costs_J = (table.to(p_P.device) for table in self._tables)
            self._on[p_P.device] = at_JL, of_J, costs_J
        at_JL, of_J, costs_J = self._on[p_P.device]
        share_J = math.prod([p_P[at_J] for at_J in at_JL.unbind(1)], start=torch.ones_like(costs_J))
        of_all, of_costs = (
            p_P.new_zeros(self._count).index_add(0, of_J, each) for each in (share_J, share_J * costs_J)
        )
        return (of_costs / of_all).sum().to(like)


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
