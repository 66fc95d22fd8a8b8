"""Costs that a table has for each option of some choices, counted where they are reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from supernet.checks import check_numbers
from supernet.errors import ArchitectureError, SupernetError, TrainingError
from supernet.execution.selection import Selection, weights_of
from supernet.nn.domain import Domain
from supernet.space import SearchSpace

__all__: list[str] = []

Table: TypeAlias = Mapping[str, Mapping[Any, float]]  # label -> candidate's name, or value -> its cost


def checked_table(
    table: Table, space: SearchSpace, kind: type[SupernetError] = TrainingError
) -> dict[str, dict[str, float]]:
    """Return a table of costs that fits the space, by the names of options, or raise an error of a kind."""
    checked: dict[str, dict[str, float]] = {}
    for label, costs in table.items():
        domain = space.get(label)
        if domain is None or domain.is_set:
            known = ", ".join(other for other, d in space.items() if not d.is_set)
            raise kind(f"cost names {label!r}, which is no choice of one option in this space; it has: {known}")
        try:
            by_name = {name if name in domain.options else _name_of(domain, name): cost for name, cost in costs.items()}
        except ArchitectureError:
            by_name = {}
        if len(costs) != len(domain.options) or set(by_name) != set(domain.options):
            raise kind(
                f"the cost of choice {label!r} is given for {', '.join(map(repr, costs))}; give a number for each of "
                f"{', '.join(map(repr, domain.outcomes))}"
            )
        try:
            check_numbers(-math.inf, **{f"the cost of {name!r} in choice {label!r}": c for name, c in by_name.items()})
        except TrainingError as error:
            raise kind(str(error)) from None
        checked[label] = {name: float(cost) for name, cost in by_name.items()}
    return checked


def _name_of(domain: Domain, decision: Any) -> str:
    (position,) = domain.positions(decision)
    return domain.options[position]


def cost_of(table: Table, space: SearchSpace, architecture: Mapping[str, Any]) -> float:
    """Return the sum of the costs of the options that an architecture decides for and reaches."""
    path = space.canonical(architecture)
    return sum(costs[_name_of(space[label], path[label])] for label, costs in table.items() if label in path)


def cost_of_plan(table: Table, space: SearchSpace, plan: Mapping[str, Any]) -> torch.Tensor | float:
    """Return the cost of the path that a plan runs; where it has gates, with its gradient for each.

    A gate's gradient is the cost of the path with that decision in the active one's place.
    """
    gates = {label: entry for label, entry in plan.items() if isinstance(entry, Selection)}
    if not gates:
        return cost_of(table, space, plan)
    active = {label: gate.active[0] for label, gate in gates.items()}
    terms = []
    for label in space.canonical(active):
        costs = [cost_of(table, space, {**active, label: decision}) for decision in gates[label].active]
        weights = weights_of(gates[label])
        terms.append((weights * weights.new_tensor(costs)).sum())
    return torch.stack(terms).sum()
