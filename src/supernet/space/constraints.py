"""Constraints between choices: which architectures of a space are allowed.

`require(model, width * depth <= 64)` makes one a part of the model, so that its space keeps it, and with it every
trainer, searcher and `freeze`; `space.require` and `space.where` make a constrained space beside the model.

A constraint that is an expression is known by its text, and by the code of a user's functions in it; it can be counted.
It becomes a decision diagram: a node for each of its choices in turn, whose branches are one node where what is left of
the constraint is the same, so that sums and products have few nodes. A constraint that is a function is known by its
name and code, and can only be asked.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from supernet.errors import SpaceError
from supernet.nn.domain import Domain
from supernet.nn.mutable import Mutable
from supernet.nn.value import MAX_JOINT, Value
from supernet.space.functions import Described, is_known_by_name

__all__: list[str] = []

Predicate: TypeAlias = Callable[[dict[str, Any]], Any]

MAX_EXPANDED = 100_000  # beginnings of architectures that are looked at for the best one
_MEMORY = "_supernet_constraints"


class Constraint:
    """Says whether an architecture is allowed.

    Attributes:
        text: How it is written, for people and fingerprints.
        labels: The choices that it is about; None where it may look at all.
    """

    text: str
    labels: tuple[str, ...] | None

    @property
    def key(self) -> Any:
        """What is the same in two that are one."""
        raise NotImplementedError

    def allows(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether it holds for an architecture in the form that the space writes."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return what fingerprints are made of."""
        raise NotImplementedError


class Requirement(Constraint):
    """An expression that must hold wherever all the choices in it are reached.

    Args:
        expression: An expression that is true or false, such as `width * depth <= 64`.
    """

    labels: tuple[str, ...]

    def __init__(self, expression: Any) -> None:
        if not isinstance(expression, Value):
            raise SpaceError(
                f"what is required is an expression over choices that is true or false, such as width * depth <= 64, "
                f"not {expression!r}; a function of an architecture is what where takes"
            )
        self.expression = expression
        self.labels = tuple(str(leaf.label) for leaf in expression.leaves())
        self.text = re.sub(r" at 0x[0-9a-f]+", "", repr(expression))  # the same in each process
        self._described = [Described(each) for each in expression.functions() if not is_known_by_name(each)]

    @property
    def key(self) -> Any:
        """What is the same in two that are one: the text, and what functions in it compute."""
        opaque = [id(thing) for described in self._described for thing in described.opaque]
        return type(self), self.text, tuple(described.digest for described in self._described), tuple(opaque)

    def allows(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether it holds for an architecture in the form that the space writes."""
        if any(label not in architecture for label in self.labels):
            return True
        value = self.expression.evaluate(architecture)
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, bool):
            raise SpaceError(
                f"what is required is true or false, but {self.text} is {value!r}; compare it with a number"
            )
        return value

    def to_json(self) -> dict[str, Any]:
        """Return what fingerprints are made of."""
        computed = [described.digest for described in self._described]
        return {"require": self.text, **({"computed": computed} if computed else {})}


class Condition(Constraint):
    """A function of an architecture.

    Args:
        predicate: Function of an architecture, which says whether it is allowed.
    """

    labels = None

    def __init__(self, predicate: Predicate) -> None:
        if isinstance(predicate, Value) or not callable(predicate):
            raise SpaceError(
                f"where takes a function of an architecture, not {predicate!r}; an expression is what require takes"
            )
        self.predicate = predicate
        text, name = (getattr(predicate, attribute, None) for attribute in ("text", "__qualname__"))
        self.text = text or name or type(predicate).__qualname__
        self._digest = None if text else Described(predicate).digest  # else the text says what it is

    @property
    def key(self) -> Any:
        """What is the same in two that are one: not the name alone."""
        return type(self), self.predicate

    def allows(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether it holds for an architecture in the form that the space writes."""
        try:
            return bool(self.predicate(_Reached(architecture)))
        except _NotReached as error:
            raise NotReachedError(
                f"constraint {self.text} asks for {error.label!r}, which this architecture does not reach; "
                f"use a.get({error.label!r})",
                error.label,
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return what fingerprints are made of."""
        return {"where": self.text, **({} if self._digest is None else {"computed": [self._digest]})}


class NotReachedError(SpaceError):
    """A constraint asks for what an architecture has not decided.

    Attributes:
        label: What it asks for.
    """

    def __init__(self, message: str, label: Any) -> None:
        super().__init__(message)
        self.label = label


class _Reached(dict[str, Any]):
    """An architecture as functions are asked of it."""

    def __missing__(self, label: Any) -> Any:
        raise _NotReached(label)


class _NotReached(KeyError):
    """Such as a function may itself catch."""

    @property
    def label(self) -> Any:
        return self.args[0]


def constraint_of(given: Any) -> Constraint:
    """Return the constraint that a user means by an expression or a function."""
    return Condition(given) if callable(given) and not isinstance(given, Value) else Requirement(given)


def check_labels(constraint: Constraint, domains: Mapping[str, Domain]) -> None:
    """Raise `SpaceError` unless the choices in a constraint are those of the space."""
    if not isinstance(constraint, Requirement):
        return
    for leaf in constraint.expression.leaves():
        domain = domains.get(str(leaf.label))
        if domain is None:
            raise SpaceError(
                f"{constraint.text} is required, but the space has no choice {leaf.label!r}; it has: "
                f"{', '.join(domains) or 'none'}"
            )
        if list(domain.outcomes) != list(leaf.candidates):
            raise SpaceError(
                f"{constraint.text} is required of {leaf.label!r} as {' | '.join(map(str, leaf.candidates))}, but "
                f"in the space it is {domain}; write it with the choice that the model has, or space.value(label)"
            )


# --- as a part of a model ----------------------------------------------------------------------------------


def attach(module: nn.Module, constraints: Sequence[Constraint]) -> None:
    """Let a module have constraints; copies have them too, as an ordinary attribute goes along with `copy.deepcopy`."""
    module.__dict__[_MEMORY] = [*attached(module), *constraints]


def attached(module: nn.Module) -> list[Constraint]:
    """Return the constraints that a module itself has."""
    return list(module.__dict__.get(_MEMORY, ()))


def inherent(module: nn.Module) -> list[Constraint]:
    """Return the constraint that a module has by what it is."""
    condition = module.condition() if isinstance(module, Mutable) else None
    return [] if condition is None else [Condition(condition)]


def detach(module: nn.Module) -> None:
    """Let a module have no constraints."""
    module.__dict__.pop(_MEMORY, None)


# --- as a decision diagram ---------------------------------------------------------------------------------


class Diagram:
    """What is left of a requirement: what it is once the next of its choices is decided, for each decision.

    Args:
        labels: The choices that are not decided yet.
        branches: What is left for each decision of the first of them: a diagram, or whether it holds.
    """

    def __init__(self, labels: tuple[str, ...], branches: tuple[Left, ...]) -> None:
        self.labels, self.branches = labels, branches


Left: TypeAlias = Diagram | bool


class Diagrams:
    """Makes diagrams, each only once: those that are equal are one object."""

    def __init__(self) -> None:
        self._made: dict[Any, Diagram] = {}
        self._decided: dict[tuple[Diagram, str, int], Left] = {}

    def of(self, requirement: Requirement, domains: Mapping[str, Domain]) -> Left:
        """Return the whole diagram of a requirement.

        Raises:
            SpaceError: It has too many choices to be looked at together.
        """
        labels = requirement.labels
        if math.prod(domains[label].size for label in labels) > MAX_JOINT:
            raise SpaceError(
                f"{requirement.text} depends on {len(labels)} choices with more than {MAX_JOINT:,} joint decisions, "
                "too many to be counted exactly; split it, or count a part by space.enumerate()"
            )

        def left(position: int, decided: dict[str, Any]) -> Left:
            if position == len(labels):
                return requirement.allows(decided)
            label = labels[position]
            branches = tuple(left(position + 1, {**decided, label: decision}) for decision in domains[label])
            return self._diagram(labels[position:], branches)

        return left(0, {})

    def decided(self, left: Left, label: str, decision: int) -> Left:
        """Return what is left of a diagram once a choice is decided so, by its position in the domain."""
        if isinstance(left, bool) or label not in left.labels:
            return left
        key = left, label, decision
        if key not in self._decided:
            if left.labels[0] == label:
                self._decided[key] = left.branches[decision]
            else:
                labels = tuple(other for other in left.labels if other != label)
                branches = tuple(self.decided(branch, label, decision) for branch in left.branches)
                self._decided[key] = self._diagram(labels, branches)
        return self._decided[key]

    def _diagram(self, labels: tuple[str, ...], branches: tuple[Left, ...]) -> Left:
        # What never holds stays a diagram: where one of its choices is not reached, it counts as held.
        if all(branch is True for branch in branches):
            return True
        key = labels, tuple(branch if isinstance(branch, bool) else id(branch) for branch in branches)
        return self._made.setdefault(key, Diagram(labels, branches))


def in_falling_order(
    labels: Sequence[str],
    ranked: Sequence[Sequence[tuple[float, Any]]],
    known: Mapping[str, Sequence[Constraint]],
    most: int = MAX_EXPANDED,
) -> Iterator[dict[str, Any]]:
    """Yield label -> decision by the sum of their scores, the largest first; of equal ones the first decisions.

    Best-first search: a beginning lacks what its decisions lack of the best ones, and all that follow from it lack at
    least as much. So whatever comes to its end first is the best.

    Args:
        labels: Labels, in the order in which they are decided.
        ranked: Score and decision of each, best first.
        known: Constraints that are known once the labels up to one are decided; what breaks them is left out.
        most: Number of beginnings that are looked at. Default: 100,000.
    """
    # What it lacks; of equal ones what is nearer to its end, then what is of earlier ranks.
    heap: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for _ in range(most):
        if not heap:
            return
        lack, _, ranks = heapq.heappop(heap)
        decided = {label: ranked[i][rank][1] for i, (label, rank) in enumerate(zip(labels, ranks, strict=False))}
        if ranks and not all(constraint.allows(decided) for constraint in known[labels[len(ranks) - 1]]):
            continue
        if len(ranks) == len(labels):
            yield decided
            continue
        following = ranked[len(ranks)]
        for rank, (score, _) in enumerate(following):
            heapq.heappush(heap, (lack + following[0][0] - score, -len(ranks) - 1, (*ranks, rank)))


def in_words(constraints: Sequence[Constraint]) -> str:
    """Return some constraints as they stand in a message."""
    return " and ".join(constraint.text for constraint in constraints)
