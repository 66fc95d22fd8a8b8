"""The space of all architectures of a model."""

from __future__ import annotations

import copy
import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from supernet.errors import ArchitectureError, SpaceError
from supernet.nn import Value, ValueChoice
from supernet.nn.domain import Decision, Domain
from supernet.space.constraints import (
    MAX_EXPANDED,
    Condition,
    Constraint,
    Diagrams,
    NotReachedError,
    Predicate,
    Requirement,
    attached,
    check_labels,
    in_falling_order,
    in_words,
    inherent,
)
from supernet.space.counting import Counter, Nodes, node_of
from supernet.space.original import original_modules, pinned_choices
from supernet.space.tree import Met, each_once, in_order, key_of_decision, lines_of, nodes_of, tree_of

if TYPE_CHECKING:
    from supernet.space.profile import LimitsOfCosts, SpaceProfile
    from supernet.space.summary import SpaceSummary

__all__ = ["Architecture", "SearchSpace"]

Architecture: TypeAlias = dict[str, Decision]

SHOWN_FIRST, SHOWN_LAST = 40, 8  # lines of a printed space
_AS_WRITTEN = (str, int)
MAX_DRAWS = 10_000  # for one architecture that keeps the constraints
MAX_ENUMERATED = 10_000  # architectures of which a function is asked, to count those that it allows


class SearchSpace(Mapping[str, Domain]):
    """All architectures of a model: an ordered map label -> domain, in the order in which the choices stand.

    An architecture is a plain dict, label -> decision, that JSON can hold: a candidate's name for a
    `LayerChoice`, the ascending list of chosen positions for an `InputChoice`. It decides the choices that are
    reached: those inside a candidate that is not chosen need no decision. Going in, positions of candidates,
    a lone position or name of one input, and names from `choose_from` are understood too.

    Making a space pins the label of each choice that has none to its path in the model. The space keeps
    nothing else of the model.

    A space has the constraints that `supernet.require` has given its model; `require` and `where` return one with more.
    Architectures that break one are none of the space: none is counted, enumerated, sampled, bred or loaded.

    Args:
        model: A module with choices, as written or with its choices replaced.

    Attributes:
        constraints: The constraints, as texts.

    Raises:
        SpaceError: One label means two different choices, or a constraint is about a choice that is not there.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> space
    SearchSpace of 2 architectures
      act: relu | tanh
    >>> space.sample(torch.Generator().manual_seed(0))
    {'act': 'tanh'}
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise SpaceError(f"a space is made from an nn.Module, not from {type(model).__name__}")
        choices = pinned_choices(model)
        self._domains: dict[str, Domain] = {}
        for choice in choices:
            self._domains.setdefault(str(choice.label), choice.domain())
        self._roots = nodes_of(model, {}, within=[])
        self._counter = self._new_counter(Diagrams())
        self._constraints: tuple[Constraint, ...] = ()
        self._prepare()
        modules = [module for _, module in original_modules(model)]
        self._take([one for module in modules for one in (*inherent(module), *attached(module))])

    def _new_counter(self, diagrams: Diagrams) -> Counter:
        return Counter({label: domain.size for label, domain in self._domains.items()}, diagrams)

    def _prepare(self) -> None:
        """Look up once what every sample, check and mutation needs, for searches make millions of them."""
        self._draws: dict[str, tuple[Callable[[Sequence[float]], Decision], slice]] = {}
        self._cdfs: dict[str, tuple[int, list[float], float, tuple[Any, ...]]] = {}  # no outcomes: a set
        self._written: dict[str, frozenset[Any]] = {}  # texts and whole numbers, as they stand in an architecture
        self._changeable: set[str] = set()
        self._num_random_numbers = 0
        for label, domain in self._domains.items():
            start = self._num_random_numbers
            self._num_random_numbers += domain.num_random_numbers
            edges, total = ([], 0.0) if domain.is_set else domain.cdf
            self._draws[label] = domain.draw, slice(start, self._num_random_numbers)
            self._cdfs[label] = start, edges, total, () if domain.is_set else domain.outcomes
            outcomes = () if domain.is_set else domain.outcomes
            self._written[label] = frozenset(one for one in outcomes if type(one) in _AS_WRITTEN)
            if domain.size > 1:
                self._changeable.add(label)
        self._met = in_order(self._roots, self._domains, {label: i for i, label in enumerate(self._domains)}, {})
        # Where no choice stands inside another, each architecture decides all of them.
        self._is_flat = self._roots == {node_of(label, []) for label in self._domains}

    def __getitem__(self, label: str) -> Domain:
        return self._domains[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.fingerprint == other.fingerprint

    # --- constraints -----------------------------------------------------------------------------------------

    @property
    def constraints(self) -> list[str]:
        """The constraints, as texts."""
        return [constraint.text for constraint in self._constraints]

    def require(self, *expressions: Value) -> SearchSpace:
        """Return the space of those architectures in which some expressions hold; this one stays as it is.

        An expression is of the choices that stand in the model, or of `value(label)`. Where one of its choices is not
        reached, it holds. Its text is part of the fingerprint, and so of files of architectures; so is the code of
        functions of yours in it, see `where`.

        Args:
            expressions: Expressions that are true or false, such as `width * depth <= 64`.

        Raises:
            SpaceError: An expression is none, or is about a choice that is not there; no architecture keeps all
                constraints (names the smallest set of them that none keeps), or none was found.

        >>> width, depth = ValueChoice([16, 32], label="width"), ValueChoice([1, 2, 3], label="depth")
        >>> space = SearchSpace(nn.ModuleList([width, depth])).require(width * depth <= 64)
        >>> space.size, {"width": 32, "depth": 3} in list(space.enumerate())
        (5, False)
        """
        return self.constrained([Requirement(expression) for expression in expressions])

    def where(self, predicate: Predicate) -> SearchSpace:
        """Return the space of those architectures that a function allows; this one stays as it is.

        Of the function its name and its code are part of the fingerprint, and so of files of architectures, which
        another version of Python may compile to another code. Prefer `require`, which can be counted.

        Args:
            predicate: Function of an architecture, without what it does not reach, which says whether it is allowed. It
                must always say the same.

        Raises:
            SpaceError: It allows none of 10,000 architectures drawn, or asks one for what that does not reach.

        >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=a) for a in "ab")))
        >>> list(space.where(lambda architecture: architecture["a"] != architecture["b"]).enumerate())
        [{'a': '0', 'b': '1'}, {'a': '1', 'b': '0'}]
        """
        return self.constrained([Condition(predicate)])

    def value(self, label: str) -> ValueChoice:
        """Return the decision of a choice, for expressions that are required: of a `LayerChoice` the candidate's name.

        Args:
            label: The label of a choice of one option.

        Raises:
            SpaceError: There is no such choice, or it chooses a set.

        >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=a) for a in "ab")))
        >>> space.require(space.value("a") == space.value("b")).size
        2
        """
        if label not in self:
            raise SpaceError(f"the space has no choice {label!r}; it has: {', '.join(self)}")
        if self[label].is_set:
            raise SpaceError(f"choice {label!r} chooses a set, of which no expression is known; use where")
        return ValueChoice(self[label].outcomes, label=label)

    def allows(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether an architecture in the form that the space writes keeps the constraints."""
        return self.broken_by(architecture) is None

    def broken_by(self, architecture: Mapping[str, Any]) -> Constraint | None:
        """Return the first constraint that an architecture in that form breaks; None if it keeps all."""
        return next((one for one in self._constraints if not self._keeps(architecture, one)), None)

    def requirements(self) -> list[Requirement]:
        """Return the constraints that are expressions."""
        return [one for one in self._constraints if isinstance(one, Requirement)]

    def _keeps(self, architecture: Mapping[str, Any], constraint: Constraint) -> bool:
        try:
            return constraint.allows(architecture)
        except NotReachedError as error:
            if error.label in self:
                raise
            raise SpaceError(
                f"constraint {constraint.text} asks for {error.label!r}, but the space has no choice of that label; it "
                f"has: {', '.join(self)}"
            ) from None

    def rules_out(self, decided: Mapping[str, Any]) -> bool:
        """Say whether some decisions that are reached break a required expression, whatever else is decided.

        Args:
            decided: Label -> decision in the form that we write, of some choices.
        """
        return not all(one.allows(decided) for one in self.requirements())

    def constrained(self, constraints: Sequence[Constraint]) -> SearchSpace:
        """Return the space of those architectures that keep some more constraints."""
        space = copy.copy(self)
        space._take(constraints)
        space.sample(torch.Generator().manual_seed(0))  # what nothing keeps is better known now
        return space

    def _take(self, constraints: Iterable[Constraint]) -> None:
        """Have further constraints; one that is there already is there once."""
        by_key = {one.key: one for one in self._constraints}
        for one in constraints:
            check_labels(one, self._domains)
            by_key.setdefault(one.key, one)
        self._constraints = tuple(by_key.values())
        self._about: dict[str, list[Constraint]] = {}
        for one in self._constraints:
            for label in one.labels or ():
                self._about.setdefault(label, []).append(one)
        self._size: int | None = None

    def _count(self, constraints: Sequence[Constraint]) -> int:
        """Return how many architectures keep some constraints that are all expressions."""
        diagrams = Diagrams()
        left = [diagrams.of(one, self._domains) for one in constraints if isinstance(one, Requirement)]
        return self._new_counter(diagrams).count(self._roots, left)

    def until_allowed(self, draw: Callable[[], Architecture]) -> Architecture:
        """Return what a function draws, which is called until that keeps the constraints.

        Args:
            draw: Draws a decision for every choice that is reached, and maybe for others.

        Raises:
            SpaceError: None of 10,000 draws does; names the smallest set of constraints that conflicts, if one does.
        """
        if not self._constraints:
            return draw()
        for _ in range(MAX_DRAWS):
            drawn = draw()
            if self.allows(self.follow(drawn.__getitem__)):
                return drawn
        raise self._none_found()

    def _none_found(self) -> SpaceError:
        """Return the error that says which constraints conflict, if that can be known."""
        requirements = self.requirements()
        found = f"none of {MAX_DRAWS:,} architectures drawn keeps {in_words(self._constraints)}"
        try:
            for count in range(1, len(requirements) + 1):
                for some in combinations(requirements, count):
                    if self._count(some) == 0:
                        what = "has no architecture" if count == 1 else "conflict: no architecture keeps them together"
                        return SpaceError(f"{in_words(some)} {what}; loosen {'it' if count == 1 else 'one of them'}")
            if len(requirements) == len(self._constraints):
                found += f", which {self._count(requirements):,} of {self._count([]):,} do"
        except SpaceError:  # too many to be counted
            pass
        return SpaceError(f"{found}; loosen a constraint, or give the choices priors that favour what is allowed")

    @property
    def size(self) -> int:
        """The exact number of architectures; nested choices count only where they are reached.

        Raises:
            SpaceError: Labels that stand in several branches, or in constraints, are too entangled to be counted
                exactly; or a function is among the constraints, and there are too many architectures to ask it of all.
        """
        if not self._constraints:
            return self._counter.count(self._roots)
        if self._size is None:
            requirements = self.requirements()
            most = self._count(requirements)
            if len(requirements) == len(self._constraints):
                self._size = most
            elif most <= MAX_ENUMERATED:
                self._size = sum(1 for _ in self.enumerate())
            else:
                raise SpaceError(
                    f"a function is among the constraints, {in_words(self._constraints)}, so all of {most:,} "
                    f"architectures would be asked, and at most {MAX_ENUMERATED:,} are; write it as an expression, "
                    "which require takes, or count space.enumerate()"
                )
        return self._size

    @property
    def fingerprint(self) -> str:
        """A digest of what can be decided here: equal for spaces with the same architectures."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture, each decision drawn by its choice's prior; again, until it keeps the constraints.

        Args:
            generator: Where the random numbers come from. Default: torch's global generator.

        Raises:
            SpaceError: None of 10,000 draws keeps the constraints.
        """
        if self._constraints:
            return self.until_allowed(lambda: self._sample(generator))
        return self._sample(generator)

    def _sample(self, generator: torch.Generator | None) -> Architecture:
        if self._is_flat:
            return self._draw_all(generator)
        uniforms = self._uniforms(generator)
        return self.follow(lambda label: self._draw(label, uniforms))

    def draw(self, generator: torch.Generator | None = None) -> Architecture:
        """Return a decision for every choice, also for those that the others leave unreached; else as `sample`."""
        if self._constraints:
            return self.until_allowed(lambda: self._draw_all(generator))
        return self._draw_all(generator)

    def redraw(
        self, decisions: Mapping[str, Decision], probability: float, generator: torch.Generator | None = None
    ) -> Architecture:
        """Return a decision for every choice, each drawn anew with some probability, and else as it is.

        A walk by such steps has the distribution of `draw` where that has no constraints; these are not looked at.

        Args:
            decisions: A decision for every choice.
            probability: The probability that a decision is drawn anew, by its choice's prior.
            generator: Where the random numbers come from. Default: torch's global generator.
        """
        drawn = self._draw_all(generator)
        numbers = torch.rand(len(self._domains), generator=generator, dtype=torch.float64).tolist()
        anew = zip(self._domains, numbers, strict=True)
        return {label: drawn[label] if number < probability else decisions[label] for label, number in anew}

    def _draw_all(self, generator: torch.Generator | None) -> Architecture:
        uniforms = self._uniforms(generator)
        # `Domain.draw` of one option is written out here: a call for each label would take longer than all the rest.
        return {
            label: outcomes[bisect_right(edges, uniforms[start] * total)] if outcomes else self._draw(label, uniforms)
            for label, (start, edges, total, outcomes) in self._cdfs.items()
        }

    def mutate(self, architecture: Mapping[str, Any], generator: torch.Generator | None = None) -> Architecture:
        """Return the architecture with one decision changed, drawn from those that it reaches.

        Choices that the change makes reachable are drawn by their priors. An architecture none of whose
        decisions has an alternative comes back as it is; so does one of which none of 1,000 changes keeps the
        constraints, as where two choices must be equal.

        Args:
            architecture: The architecture to change, label -> decision.
            generator: Where the random numbers come from. Default: torch's global generator.

        Raises:
            ArchitectureError: The architecture is not one of this space.
        """
        parent = self.canonical(architecture)
        changeable = [label for label in parent if label in self._changeable]
        if not changeable:
            return parent
        if not self._constraints:
            return self._mutated(parent, changeable, generator)
        mutated = (self._mutated(parent, changeable, generator) for _ in range(MAX_DRAWS // 10))
        return next((child for child in mutated if self.allows(child)), parent)

    def _mutated(
        self, parent: Architecture, changeable: Sequence[str], generator: torch.Generator | None
    ) -> Architecture:
        which = float(torch.rand((), generator=generator, dtype=torch.float64))
        changed = changeable[int(which * len(changeable))]
        changes = torch.rand(
            max(2, self[changed].num_random_numbers), generator=generator, dtype=torch.float64
        ).tolist()
        uniforms = self._uniforms(generator)
        known = {**parent, changed: self[changed].mutate(parent[changed], changes)}
        return self.follow(lambda label: known[label] if label in known else self._draw(label, uniforms))

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture once, lazily."""
        # Depth first over the decisions: each entry holds what is decided, and which nodes are still to be met.
        stack: list[Iterator[tuple[Architecture, list[Met]]]] = [iter([({}, self._met)])]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                continue
            decided, ahead = following
            while ahead and ahead[0].label in decided:
                label, inside = ahead[0]
                ahead = (inside[key_of_decision(decided[label])] if inside else []) + ahead[1:]
            if ahead:
                stack.append(self._ways(decided, ahead))
            else:
                architecture = {label: decided[label] for label in self._domains if label in decided}
                if not self._constraints or self.allows(architecture):
                    yield architecture

    def best(
        self,
        first: Callable[[str], Decision],
        scores: Callable[[str], Sequence[float]],
        allows: Callable[[Architecture], bool] | None = None,
        asked_of: Iterable[str] | None = None,
        most: int = MAX_EXPANDED,
    ) -> Architecture:
        """Return the architecture whose decisions have the largest sum of scores; of equal ones the first.

        It is that of the best decision of each choice, reached or not; where that breaks a constraint, the next best in
        the sum over all choices that does not.

        Args:
            first: Returns the best decision of a choice, by its label.
            scores: Returns the scores of all decisions of a choice, in the order of its domain. It is asked only where
                there are constraints.
            allows: What must hold beside the constraints. Default: nothing.
            asked_of: Labels of the choices on which that depends. Default: all.
            most: Number of beginnings of architectures that are looked at. Default: 100,000.

        Raises:
            SpaceError: None that keeps the constraints was found among so many beginnings of one.
        """

        def is_allowed(architecture: Architecture) -> bool:
            return self.allows(architecture) and (allows is None or allows(architecture))

        best = {label: first(label) for label in self._domains}
        architecture = self.follow(best.__getitem__)
        if is_allowed(architecture):
            return architecture
        labels = self._decisive()
        if allows is not None:
            among = self.keys() if asked_of is None else {*asked_of, *labels}
            labels = [label for label in self._domains if label in among]
        ranked = [
            sorted(zip(scores(label), self._domains[label], strict=True), key=lambda pair: -pair[0]) for label in labels
        ]
        for decided in in_falling_order(labels, ranked, self._known_early(labels), most):
            architecture = self.follow({**best, **decided}.__getitem__)
            if is_allowed(architecture):
                return architecture
        what = in_words(self._constraints) if allows is None else "what is asked for"
        raise SpaceError(
            f"the best architecture that keeps {what} was not found among {MAX_EXPANDED:,}; loosen a constraint"
        )

    def _decisive(self) -> list[str]:
        """Return the labels on which it depends whether the constraints are kept, outer before inner."""
        if not all(isinstance(constraint, Requirement) for constraint in self._constraints):
            return list(self._domains)
        required = {label for constraint in self._constraints for label in constraint.labels or ()}
        holding: set[str] = set()
        stack = [*self._met]
        while stack:
            label, inside = stack.pop()
            holding |= {label} if any(inside.values()) else set()
            stack += [one for further in inside.values() for one in further]
        return [label for label in self._domains if label in required | holding]

    def _known_early(self, labels: Sequence[str]) -> dict[str, list[Constraint]]:
        """Return label -> the requirements that are known once the labels up to it are decided, for these are met."""
        always = {met.label for met in self._met}
        known: dict[str, list[Constraint]] = {label: [] for label in labels}
        for constraint in self._constraints:
            if constraint.labels and always.issuperset(constraint.labels):
                known[max(constraint.labels, key=labels.index)].append(constraint)
        return known

    def canonical(self, architecture: Mapping[str, Any]) -> Architecture:
        """Return the architecture in the form that we write, without what it does not reach.

        Raises:
            ArchitectureError: A label is unknown, a reached one is missing, a decision is not possible, or a constraint
                is broken.
        """
        if not isinstance(architecture, Mapping):
            raise ArchitectureError(f"an architecture is a dict label -> decision, not {architecture!r}")
        if not architecture.keys() <= self._domains.keys():
            label = next(label for label in architecture if label not in self._domains)
            raise ArchitectureError(f"the space has no choice {label!r}; it has: {', '.join(self._domains)}")
        # Names and whole numbers are nearly all decisions, and as we write them already: no call is made for these.
        written = self._written
        decisions = {
            label: d if type(d) in _AS_WRITTEN and d in written[label] else self._domains[label].normalized(d)
            for label, d in architecture.items()
        }
        try:
            canonical = self.follow(decisions.__getitem__)
        except KeyError as missing:
            label = missing.args[0]
            raise ArchitectureError(
                f"the architecture leaves {label!r} open; decide it: {self._domains[label]}"
            ) from None
        for constraint in self._constraints:
            if not self._keeps(canonical, constraint):
                labels = canonical if constraint.labels is None else constraint.labels
                decided = ", ".join(f"{label}={canonical[label]!r}" for label in labels)
                raise ArchitectureError(f"the architecture breaks the constraint {constraint.text}: {decided:.300}")
        return canonical

    def validate(self, architecture: Mapping[str, Any]) -> None:
        """Raise unless this is an architecture of the space.

        Raises:
            ArchitectureError: A label is unknown, a reached one is missing, a decision is not possible, or a constraint
                is broken.
        """
        self.canonical(architecture)

    @property
    def nodes(self) -> Nodes:
        """What every architecture meets: nodes, each a label with what is met next for each of its decisions."""
        return self._roots

    def follow(self, decide: Callable[[str], Decision]) -> Architecture:
        """Return the decisions on all choices that are reached when each is decided as `decide` says.

        Args:
            decide: A function label -> decision in the form that we write. It is called once for each label that is
                reached, outer choices before those in the chosen candidate. Constraints are not looked at.
        """
        if self._is_flat:
            return {label: decide(label) for label in self._domains}
        decided: Architecture = {}
        ahead = [*self._met]
        for label, inside in ahead:  # which grows meanwhile
            if label not in decided:
                decided[label] = decide(label)
            if inside:
                ahead += inside[key_of_decision(decided[label])]
        return {label: decided[label] for label in self._domains if label in decided}

    def around(self, label: str) -> tuple[str, ...]:
        """Return the labels of the choices on which it depends whether a choice is reached, outer ones first.

        Args:
            label: The label of a choice of the space.
        """
        if any(at == label for at, _ in self._met):  # it is reached whatever is decided, wherever else it stands
            return ()
        found: set[str] = set()

        def look(met: list[Met], outside: frozenset[str]) -> None:
            for at, inside in met:
                if at == label:
                    found.update(outside)
                for further in each_once([one for of_one in inside.values() for one in of_one]):
                    look([further], outside | {at})

        look(self._met, frozenset())
        return tuple(other for other in self._domains if other in found)

    def summary(self, model: nn.Module, example: Any, *, num_samples: int = 100, seed: int = 0) -> SpaceSummary:
        """Return how many architectures there are, and parameters and MACs of the smallest, median and largest network.

        The networks are frozen from a copy without values, so it takes no memory; the model stays as it is.

        Args:
            model: The model that the space was made of.
            example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of
                keyword arguments, or one argument. MACs are for the whole of it.
            num_samples: Number of architectures whose median is taken; a space of so many at most is looked at as a
                whole. Default: 100.
            seed: Seed of the sample. Default: 0.

        Raises:
            SpaceError: The space is another model's.

        >>> widths = [ValueChoice([8, 16, 32], label=f"width{i}") for i in range(2)]
        >>> layers = supernet.nn.Linear(4, widths[0]), supernet.nn.Linear(*widths), supernet.nn.Linear(widths[1], 2)
        >>> model = nn.Sequential(*layers)
        >>> print(SearchSpace(model).summary(model, torch.ones(1, 4)))
        9 architectures
                  parameters   MACs
        smallest         130    112
        median           394    352
        largest        1,282  1,216
        """
        from supernet.space.summary import summarize  # which freezes, and so stands above

        return summarize(self, model, example, num_samples=num_samples, seed=seed)

    def profile(self, limits: LimitsOfCosts, *, num_samples: int = 1_000, seed: int = 0) -> SpaceProfile:
        """Return whether limits of costs can be kept, and how often random architectures do: before any training.

        Args:
            limits: The limits, a `supernet.cost.Limits` of the model that the space was made of.
            num_samples: Number of random architectures that are looked at. Default: 1,000.
            seed: Seed of the sample. Default: 0.

        Raises:
            SpaceError: The limits are of another space.
            CostError: Nothing that was found keeps them; names the nearest.

        >>> width = ValueChoice(list(range(8, 40, 8)), label="width")
        >>> model = nn.Sequential(supernet.nn.Linear(4, width), supernet.nn.Linear(width, 2))
        >>> print(SearchSpace(model).profile(Limits(model, {"parameters": "60%"})))
        50.0% of 1,000 random architectures keep all limits
                            limit  keep it  least  5 %  median  95 %  most
        parameters  at most 135.6    50.0%     58   58     142   226   226
        """
        from supernet.space.profile import profiled  # late, for it looks at spaces from outside

        return profiled(self, limits, num_samples=num_samples, seed=seed)

    def to_json(self) -> dict[str, Any]:
        """Return what can be decided, as JSON has it: the choices by label, and which stand inside which."""
        constraints = sorted((one.to_json() for one in self._constraints), key=json.dumps)
        return {
            "choices": {label: domain.to_json() for label, domain in self._domains.items()},
            "order": list(self._domains),
            "tree": tree_of(self._roots),
            **({"constraints": constraints} if constraints else {}),
        }

    def __repr__(self) -> str:
        title, *lines = self.describe().splitlines()
        hidden = len(lines) - SHOWN_FIRST - SHOWN_LAST
        if hidden > 0:
            more = f"{hidden} more line{'s' if hidden > 1 else ''}"
            lines[SHOWN_FIRST:-SHOWN_LAST] = [f"  ... {more}, which print(space.describe()) shows ..."]
        return "\n".join([title, *lines])

    def describe(self) -> str:
        """Return the size and every choice, a line each; `print(space)` leaves out the middle where they are many."""
        # No function is asked of architectures to print a space.
        requirements = self.requirements()
        at_most = "" if len(requirements) == len(self._constraints) else "at most "
        try:
            size = self._count(requirements) if at_most else self.size
            count = f"{size:,}" if size < 10**15 else f"{Decimal(size):.3e}"
            title = f"SearchSpace of {at_most}{count} architecture{'s' if size != 1 else ''}"
        except SpaceError:
            title = "SearchSpace, too entangled to be counted"
        kept = [f"  where {constraint.text}" for constraint in self._constraints]
        return "\n".join([title, *lines_of(self._met, self._domains, indent=1), *kept])

    def _uniforms(self, generator: torch.Generator | None) -> list[float]:
        """Return enough numbers for every choice to be drawn: one call, since each call costs the same."""
        # In float64, for in float32 there are 2**24 of them: rare options would have other probabilities.
        numbers: list[float] = torch.rand(self._num_random_numbers, generator=generator, dtype=torch.float64).tolist()
        return numbers

    def _draw(self, label: str, uniforms: list[float]) -> Decision:
        draw, numbers = self._draws[label]
        return draw(uniforms[numbers])

    def _ways(self, decided: Architecture, ahead: list[Met]) -> Iterator[tuple[Architecture, list[Met]]]:
        label = ahead[0].label
        about = self._about.get(label, ())
        for decision in self._domains[label]:
            further = {**decided, label: decision}
            if all(constraint.allows(further) for constraint in about):  # those that are known by now
                yield further, ahead


def check_space(space: Any) -> None:
    """Raise `SpaceError` unless it is a `SearchSpace`."""
    if isinstance(space, SearchSpace):
        return
    mend = "SearchSpace(model)" if isinstance(space, nn.Module) else "one"
    if isinstance(getattr(space, "space", None), SearchSpace):  # a supernet, a trainer
        mend = "its .space"
    raise SpaceError(f"space is a SearchSpace, not {type(space).__name__}; give {mend}")
