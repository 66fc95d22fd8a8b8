"""The space of all architectures of a model."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from supernet.errors import ArchitectureError, SpaceError
from supernet.nn import Choice
from supernet.nn.domain import Decision, Domain
from supernet.space.counting import Counter, Node, Nodes, node_of
from supernet.space.original import original_branches, original_children, pinned_choices

__all__ = ["Architecture", "SearchSpace"]

Architecture: TypeAlias = dict[str, Decision]

SHOWN_FIRST, SHOWN_LAST = 40, 8  # lines of a printed space
MAX_BRANCHES = 1_000  # decisions of one choice that holds others


class SearchSpace(Mapping[str, Domain]):
    """All architectures of a model: an ordered map label -> domain, in the order in which the choices stand.

    An architecture is a plain dict, label -> decision, that JSON can hold: a candidate's name for a
    `LayerChoice`, the ascending list of chosen positions for an `InputChoice`. It decides the choices that are
    reached: those inside a candidate that is not chosen need no decision. Going in, positions of candidates,
    a lone position or name of one input, and names from `choose_from` are understood too.

    Making a space pins the label of each choice that has none to its path in the model. The space keeps
    nothing else of the model.

    Args:
        model: A module with choices, as written or with its choices replaced.

    Raises:
        SpaceError: one label means two different choices.

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
        self._roots = _nodes(model, {}, within=[])
        self._counter = Counter({label: domain.size for label, domain in self._domains.items()})
        self._prepare()

    def _prepare(self) -> None:
        """Look up once what every sample, check and mutation needs, for searches make millions of them."""
        self._draws: dict[str, tuple[Callable[[Sequence[float]], Decision], slice]] = {}
        self._cdfs: dict[str, tuple[int, list[float], float, tuple[Any, ...]]] = {}  # no outcomes: a set
        self._names: dict[str, frozenset[str]] = {}
        self._changeable: set[str] = set()
        self._num_uniforms = 0
        for label, domain in self._domains.items():
            start, self._num_uniforms = self._num_uniforms, self._num_uniforms + domain.num_random_numbers
            edges, total = ([], 0.0) if domain.is_set else domain.cdf
            self._draws[label] = domain.draw, slice(start, self._num_uniforms)
            self._cdfs[label] = start, edges, total, () if domain.is_set else domain.outcomes
            self._names[label] = frozenset(() if domain.is_set or domain.values else domain.options)
            if domain.size > 1:
                self._changeable.add(label)
        self._met = _in_order(self._roots, self._domains, {label: i for i, label in enumerate(self._domains)}, {})
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

    @property
    def size(self) -> int:
        """The exact number of architectures; nested choices count only where they are reached.

        Raises:
            SpaceError: labels that stand in several branches are too entangled to be counted exactly.
        """
        return self._counter.count(self._roots)

    @property
    def fingerprint(self) -> str:
        """A digest of what can be decided here: equal for spaces with the same architectures."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture, each decision drawn by its choice's prior.

        Args:
            generator: Where the random numbers come from. Default: torch's global generator.
        """
        if self._is_flat:
            return self.draw(generator)
        uniforms = self._uniforms(generator)
        return self.follow(lambda label: self._draw(label, uniforms))

    def draw(self, generator: torch.Generator | None = None) -> Architecture:
        """Return a decision for every choice, also for those that the others leave unreached; else as `sample`."""
        uniforms = self._uniforms(generator)
        # `Domain.draw` of one option is written out here: a call for each label would take longer than all the rest.
        return {
            label: outcomes[bisect_right(edges, uniforms[start] * total)] if outcomes else self._draw(label, uniforms)
            for label, (start, edges, total, outcomes) in self._cdfs.items()
        }

    def mutate(self, architecture: Mapping[str, Any], generator: torch.Generator | None = None) -> Architecture:
        """Return the architecture with one decision changed, drawn from those that it reaches.

        Choices that the change makes reachable are drawn by their priors. An architecture none of whose
        decisions has an alternative comes back as it is.

        Args:
            architecture: The architecture to change, label -> decision.
            generator: Where the random numbers come from. Default: torch's global generator.

        Raises:
            ArchitectureError: the architecture is not one of this space.
        """
        parent = self.canonical(architecture)
        changeable = [label for label in parent if label in self._changeable]
        if not changeable:
            return parent
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
        stack: list[Iterator[tuple[Architecture, list[_Met]]]] = [iter([({}, self._met)])]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                continue
            decided, ahead = following
            while ahead and ahead[0].label in decided:
                label, inside = ahead[0]
                ahead = (inside[_key(decided[label])] if inside else []) + ahead[1:]
            if ahead:
                stack.append(self._ways(decided, ahead))
            else:
                yield {label: decided[label] for label in self._domains if label in decided}

    def canonical(self, architecture: Mapping[str, Any]) -> Architecture:
        """Return the architecture in the form that we write, without what it does not reach.

        Raises:
            ArchitectureError: a label is unknown, a reached one is missing, or a decision is not possible.
        """
        if not isinstance(architecture, Mapping):
            raise ArchitectureError(f"an architecture is a dict label -> decision, not {architecture!r}")
        for label in architecture:
            if label not in self._domains:
                raise ArchitectureError(f"the space has no choice {label!r}; it has: {', '.join(self._domains)}")
        # A candidate's name is already as we write it, and so are nearly all decisions: no call is made for these.
        decisions = {
            label: d if type(d) is str and d in self._names[label] else self._domains[label].normalized(d)
            for label, d in architecture.items()
        }
        try:
            return self.follow(decisions.__getitem__)
        except KeyError as missing:
            label = missing.args[0]
            raise ArchitectureError(
                f"the architecture leaves {label!r} open; decide it: {self._domains[label]}"
            ) from None

    def validate(self, architecture: Mapping[str, Any]) -> None:
        """Raise unless this is an architecture of the space.

        Raises:
            ArchitectureError: a label is unknown, a reached one is missing, or a decision is not possible.
        """
        self.canonical(architecture)

    def follow(self, decide: Callable[[str], Decision]) -> Architecture:
        """Return the decisions on all choices that are reached when each is decided as `decide` says.

        Args:
            decide: A function label -> decision in the form that we write. It is called once for each label that is
                reached, outer choices before those in the chosen candidate.
        """
        if self._is_flat:
            return {label: decide(label) for label in self._domains}
        decided: Architecture = {}
        ahead = [*self._met]
        for label, inside in ahead:  # which grows meanwhile
            if label not in decided:
                decided[label] = decide(label)
            if inside:
                ahead += inside[_key(decided[label])]
        return {label: decided[label] for label in self._domains if label in decided}

    def to_json(self) -> dict[str, Any]:
        """Return what can be decided, as JSON has it: the choices by label, and which stand inside which."""
        return {
            "choices": {label: domain.to_json() for label, domain in self._domains.items()},
            "order": list(self._domains),
            "tree": self._tree(self._roots),
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
        try:
            size = self.size
            count = f"{size:,}" if size < 10**15 else f"{Decimal(size):.3e}"
            title = f"SearchSpace of {count} architecture{'s' if size != 1 else ''}"
        except SpaceError:
            title = "SearchSpace, too entangled to be counted"
        return "\n".join([title, *self._lines(self._met, indent=1)])

    def _uniforms(self, generator: torch.Generator | None) -> list[float]:
        """Return enough numbers for every choice to be drawn: one call, since each call costs the same."""
        # In float64, for in float32 there are 2**24 of them: rare options would have other probabilities.
        numbers: list[float] = torch.rand(self._num_uniforms, generator=generator, dtype=torch.float64).tolist()
        return numbers

    def _draw(self, label: str, uniforms: list[float]) -> Decision:
        draw, numbers = self._draws[label]
        return draw(uniforms[numbers])

    def _ways(self, decided: Architecture, ahead: list[_Met]) -> Iterator[tuple[Architecture, list[_Met]]]:
        for decision in self._domains[ahead[0].label]:
            yield {**decided, ahead[0].label: decision}, ahead

    def _tree(self, nodes: Nodes) -> list[Any]:
        trees = [[node.label, [self._tree(inside) for inside in node.branches]] for node in nodes]
        return sorted(trees, key=json.dumps)

    def _lines(self, met: list[_Met], indent: int) -> Iterator[str]:
        for label, inside in met:
            yield f"{'  ' * indent}{label}: {self._domains[label]}"
            for decision, further in inside.items():
                if further:
                    yield f"{'  ' * (indent + 1)}in {decision}:"
                    yield from self._lines(further, indent + 2)


class _Met(NamedTuple):
    """A label that is met on the way through a model, and what is met next for each decision's key (if anything)."""

    label: str
    inside: dict[Any, list[_Met]]


def check_space(space: Any) -> None:
    """Raise `SpaceError` unless it is a `SearchSpace`."""
    if isinstance(space, SearchSpace):
        return
    mend = "SearchSpace(model)" if isinstance(space, nn.Module) else "one"
    if isinstance(getattr(space, "space", None), SearchSpace):  # a supernet, a trainer
        mend = "its .space"
    raise SpaceError(f"space is a SearchSpace, not {type(space).__name__}; give {mend}")


def _in_order(
    nodes: Nodes, domains: Mapping[str, Domain], order: Mapping[str, int], known: dict[Nodes, list[_Met]]
) -> list[_Met]:
    """Return the nodes, and those inside them, as they are met: in the order in which the choices stand."""
    if nodes not in known:
        known[nodes] = []
        for node in sorted(nodes, key=lambda node: order[node.label]):
            keys = map(_key, domains[node.label]) if node.branches else ()
            inside = [_in_order(branch, domains, order, known) for branch in node.branches]
            known[nodes].append(_Met(node.label, dict(zip(keys, inside, strict=True))))
    return known[nodes]


def _key(decision: Decision) -> Any:
    """Return what a decision is looked up by."""
    return tuple(decision) if isinstance(decision, list) else decision


def _nodes(module: nn.Module, known: dict[int, Nodes], within: list[int]) -> Nodes:
    """Return the choices that are met when `module` runs, each with those inside its candidates."""
    if id(module) in known:
        return known[id(module)]
    if id(module) in within:
        raise SpaceError(f"a {type(module).__name__} contains itself, so its choices cannot be counted")
    within.append(id(module))
    nodes: Nodes
    if isinstance(module, Choice):
        nodes = frozenset([_node(module, known, within)])
    else:
        nodes = frozenset().union(*(_nodes(child, known, within) for _, child in original_children(module)))
    within.pop()
    known[id(module)] = nodes
    return nodes


def _node(choice: Choice, known: dict[int, Nodes], within: list[int]) -> Node:
    """Return a choice with what is met next for each of its decisions, in the order of its domain."""
    domain = choice.domain()
    options = [
        frozenset[Node]().union(*(_nodes(module, known, within) for module in branch))
        for branch in original_branches(choice)
    ]
    if any(options) and domain.size > MAX_BRANCHES:
        raise SpaceError(
            f"{choice.description()} holds choices and has {domain.size:,} decisions; at most {MAX_BRANCHES:,} are "
            "counted: give it fewer options, or bounds"
        )
    if not any(options):
        return node_of(str(choice.label), [])
    if not domain.is_set:
        return node_of(str(choice.label), options)
    return node_of(
        str(choice.label),
        [frozenset[Node]().union(*(options[i] for i in domain.positions(decision))) for decision in domain],
    )
