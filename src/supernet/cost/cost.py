"""What a cost is: a number of an architecture, and its mean under a distribution over architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

from supernet.cost.joint import Joint, Means, checked_probabilities
from supernet.cost.parts import Parts, Scope
from supernet.cost.recording import Part
from supernet.cost.terms import Term, forms
from supernet.errors import CostError
from supernet.space import SearchSpace

__all__ = ["Cost", "PartsCost"]

MAX_LOOKED_UP = 4_096  # joint decisions of the choices of parts that are looked up together


class Cost(ABC):
    """What the network of an architecture costs.

    A cost of your own says `of`, and `expected` where trainers that have probabilities are to keep a limit of it.

    Attributes:
        name: What limits and tables call it.
        unit: Its unit, for people; empty for a mere count.
        space: The space of its architectures.
    """

    name: str = "cost"
    unit: str = ""
    space: SearchSpace

    @abstractmethod
    def of(self, architecture: Mapping[str, Any]) -> float:
        """Return what the network of an architecture costs.

        Raises:
            ArchitectureError: It is none of the space.
        """

    def terms(self) -> list[Term]:
        """Return what the cost is the sum of, each term decided by a few choices, for integer programs.

        Raises:
            CostError: This cost is no such sum, or a term depends on too many choices together.
        """
        raise CostError(
            f"the cost {self.name!r} ({type(self).__name__}) is not known as a sum of what a few choices decide, which "
            "an integer program is made of; define terms(), or use another search"
        )

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return the same of an architecture in the form that the space writes, which need not be checked again."""
        return self.of(architecture)

    def labels(self) -> Iterable[str]:
        """Return the labels of the choices on which it depends. Default: all of the space."""
        return self.space

    def of_network(self, network: nn.Module, architecture: Mapping[str, Any]) -> float:
        """Return what the frozen network of an architecture costs. Default: what is known of the architecture."""
        return self.of(architecture)

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cost where each choice is decided on its own, differentiable in the probabilities.

        Args:
            probabilities: Label -> probability (K,) of each decision, in the order of its domain.

        Raises:
            CostError: This cost has no mean that can be computed, or a label lacks probabilities.
        """
        raise CostError(
            f"the cost {self.name!r} has no mean under a distribution; define expected(), or use it in searches"
        )


class CanonicalCost(Cost):
    """A cost that looks at architectures in the form that the space writes."""

    def of(self, architecture: Mapping[str, Any]) -> float:
        """Return what the network of an architecture costs.

        Raises:
            ArchitectureError: It is none of the space.
        """
        return self.of_canonical(self.space.canonical(architecture))

    @abstractmethod
    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return the same of an architecture in the form that the space writes."""


class PartsCost(CanonicalCost):
    """A cost that is the sum of what the parts of a network cost: exact, and known without building the network.

    A subclass says by `of_part` what a part costs.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument.

    Attributes:
        parts: What the model's networks are made of.
    """

    def __init__(self, model: nn.Module | Parts, example: Any = None) -> None:
        self.parts = model if isinstance(model, Parts) else Parts(model, example)
        self.space = self.parts.space
        self._version = -1
        self._tables: list[_Table] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_version": -1, "_tables": [], "_means": None}  # are made anew

    @abstractmethod
    def of_part(self, part: Part) -> float:
        """Return what a part costs."""

    def labels(self) -> Iterable[str]:
        """Return the labels of the choices on which some part depends."""
        return {label for scope in self.parts.scopes.values() for label in scope}

    def of_network(self, network: nn.Module, architecture: Mapping[str, Any]) -> float:
        """Return what the frozen network of an architecture costs, counted in that itself."""
        return float(sum(self.of_part(part) for _, part in Parts(network, self.parts.example).of({})))

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return what the network of an architecture costs, in the form that the space writes."""
        while True:
            if self._version != self.parts.version:
                self._make_tables()
            decided = {**self._open, **architecture}
            if self._sets:
                decided |= {label: tuple(architecture[label]) for label in self._sets if label in architecture}
            total = 0.0
            for table in self._tables:
                key = table.key(decided)
                value = table.known.get(key)
                if value is None:
                    value = self._cost_of_parts(table, architecture)
                    if self._version != self.parts.version:  # some part depends on more than was known
                        break
                    table.known[key] = value
                total += value
            else:
                return total

    def _make_tables(self) -> None:
        # Parts whose choices are among those of another are looked up with it: there are few blocks, but many layers.
        paths: dict[Scope, list[str]] = {}
        for path, scope in sorted(self.parts.scopes.items(), key=lambda item: -len(item[1])):
            around = (other for other in paths if self.parts.num_forms(other) <= MAX_LOOKED_UP)
            paths.setdefault(next((other for other in around if {*scope} <= {*other}), scope), []).append(path)
        self._tables = [_Table(scope, of_scope, _key_of(scope), {}) for scope, of_scope in paths.items()]
        self._open = dict.fromkeys(self.space)
        self._sets = [label for label, domain in self.space.items() if domain.is_set]
        self._means: Means | None = None
        self._version = self.parts.version

    def terms(self) -> list[Term]:
        """Return what the cost is the sum of: see `Cost.terms`.

        Raises:
            CostError: A part depends on too many choices together.
        """
        while True:
            if self._version != self.parts.version:
                self._make_tables()
            terms = []
            for table in self._tables:
                what = f"the {self.name} of {table.paths[0] or 'the model'!r}"
                every = forms(self.space, table.scope, what, self.parts.generator)
                terms.append(Term(table.scope, {key: self._cost_of_parts(table, one) for key, one in every}))
            if self._version == self.parts.version:  # else some part depends on more than was known
                return terms

    def _cost_of_parts(self, table: _Table, architecture: Mapping[str, Any]) -> float:
        parts = [self.parts.part(path, architecture) for path in table.paths]
        return sum(self.of_part(part) for part in parts if part is not None)

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cost where each choice is decided on its own, differentiable in the probabilities.

        It is exact: each part's mean is that over all that its choices decide together. Under constraints it is that on
        condition that those among the choices of a part, and of parts averaged with it, are kept.

        Args:
            probabilities: Label -> probability (K,) of each decision, in the order of its domain.

        Raises:
            CostError: A label lacks probabilities, or a part depends on too many choices together.
        """
        given = checked_probabilities(self.space, probabilities)
        while True:
            if self._version != self.parts.version:
                self._make_tables()
            if self._means is None:
                means = Means(self.space, [self._joint(table) for table in self._tables])
                if self._version != self.parts.version:  # some part depends on more than was known
                    continue
                self._means = means
            return self._means.sum(given)

    def _joint(self, table: _Table) -> Joint:
        what = f"the {self.name} of {table.paths[0] or 'the model'!r}"
        return Joint(self.space, table.scope, partial(self._cost_of_parts, table), what, self.parts.generator)


class _Table(NamedTuple):
    """What the parts of one scope cost together, by the decisions of its choices."""

    scope: Scope
    paths: list[str]
    key: Callable[[Mapping[str, Any]], Any]
    known: dict[Any, float]


def _key_of(scope: Scope) -> Callable[[Mapping[str, Any]], Any]:
    return itemgetter(*scope) if scope else lambda decided: ()
