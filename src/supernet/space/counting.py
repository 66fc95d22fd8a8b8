"""Counting the architectures of a space, exactly.

A space is a set of nodes, each a label with, for a layer choice, the set of nodes inside each candidate. The
same label may stand in several places and is decided once, wherever it is met.

Sets that share no label multiply. Where labels are shared, one that is surely met is decided, each way in
turn, and what remains is counted. This is exact; its cost depends on how entangled the labels are, and
beyond a budget of such steps an error is raised rather than a number guessed.

Constraints share labels too: what is left of each is counted along, as a decision diagram. One of whose labels is not
met counts as held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from supernet.errors import SpaceError
from supernet.space.constraints import Diagram, Diagrams, Left

__all__: list[str] = []

MAX_STEPS = 5_000
MAX_STEPS_CONSTRAINED = 50_000


class Node(NamedTuple):
    """One occurrence of a label, and what is met next for each way to decide it (nothing: no branches)."""

    label: str
    branches: tuple[frozenset[Node], ...]


Nodes: TypeAlias = frozenset[Node]
Pending: TypeAlias = frozenset[Diagram]  # constraints of which some label is undecided


def node_of(label: str, branches: Sequence[Nodes]) -> Node:
    """Return a node; one with nothing inside any candidate has no branches."""
    return Node(label, tuple(branches) if any(branches) else ())


class Counter:
    """Counts architectures; keeps what it has counted.

    Args:
        sizes: Label -> number of ways to decide it.
        diagrams: What has made the diagrams of constraints. Default: there are none.
    """

    def __init__(self, sizes: Mapping[str, int], diagrams: Diagrams | None = None) -> None:
        self._sizes = sizes
        self._diagrams = Diagrams() if diagrams is None else diagrams
        self._counts: dict[tuple[Nodes, Pending], int] = {}
        self._labels: dict[Nodes, frozenset[str]] = {}
        self._steps = 0

    def count(self, nodes: Nodes, constraints: Iterable[Left] = ()) -> int:
        """Return in how many ways all that is met from `nodes` on can be decided.

        Args:
            nodes: What is met.
            constraints: What is to hold; what is left of it, where some labels have been decided.

        Raises:
            SpaceError: The labels are too entangled to be counted exactly.
        """
        pending = set()
        for left in constraints:
            if left is False:
                return 0
            if not isinstance(left, bool) and self._labels_of(nodes).issuperset(left.labels):
                pending.add(left)
        key = nodes, frozenset(pending)
        if key not in self._counts:
            total = 1
            for part, of_part in self._separate(nodes, pending):
                total *= self._count_connected(part, of_part)
            self._counts[key] = total
        return self._counts[key]

    def _count_connected(self, part: Nodes, pending: Pending) -> int:
        if (part, pending) in self._counts:
            return self._counts[part, pending]
        # Of the labels that are surely met, the one that ties the most nodes together, for without it the
        # part is likeliest to fall apart. Sorted, so that every process counts, or gives up, in the same way.
        met = {node.label for node in part}
        ties = [self._labels_of(frozenset({node})) for node in part] + [left.labels for left in pending]
        label = max(sorted(met), key=lambda label: sum(label in tie for tie in ties))
        n_branches = max(len(node.branches) for node in part if node.label == label)
        is_constrained = any(label in left.labels for left in pending)
        self._steps += self._sizes[label] if is_constrained else max(1, n_branches)
        if self._steps > (MAX_STEPS_CONSTRAINED if is_constrained else MAX_STEPS):
            raise SpaceError(
                f"the space is too entangled to be counted exactly: label {label!r} and others stand in many "
                "branches or constraints at once; give choices that need not agree labels of their own"
            )
        if n_branches or is_constrained:  # of a set there is a branch for each decision, too
            total = sum(
                self.count(
                    self._decided(part, label, decision),
                    [self._diagrams.decided(left, label, decision) for left in pending],
                )
                for decision in range(self._sizes[label])
            )
        else:  # whatever is decided, the rest is the same
            total = self._sizes[label] * self.count(self._decided(part, label, 0), pending)
        self._counts[part, pending] = total
        return total

    def _separate(self, nodes: Nodes, pending: Iterable[Diagram]) -> list[tuple[Nodes, Pending]]:
        """Return the parts of `nodes` that share no label and no constraint, each with its constraints."""
        parts: list[tuple[set[str], set[Node], set[Diagram]]] = []
        tied: list[tuple[Iterable[str], set[Node], set[Diagram]]]
        tied = [(self._labels_of(frozenset({node})), {node}, set()) for node in nodes]
        tied += [(left.labels, set(), {left}) for left in pending]
        for its_labels, its_nodes, its_constraints in tied:
            labels, members, constraints = set(its_labels), its_nodes, its_constraints
            apart = []
            for other in parts:
                if labels.isdisjoint(other[0]):
                    apart.append(other)
                else:
                    labels |= other[0]
                    members |= other[1]
                    constraints |= other[2]
            parts = [*apart, (labels, members, constraints)]
        return [(frozenset(members), frozenset(constraints)) for _, members, constraints in parts]

    def _decided(self, nodes: Nodes, label: str, branch: int) -> Nodes:
        """Return what is left of `nodes` once `label` is decided that way."""
        if label not in self._labels_of(nodes):
            return nodes
        left: set[Node] = set()
        for node in nodes:
            if node.label == label:
                if node.branches:
                    left |= self._decided(node.branches[branch], label, branch)
            else:
                left.add(node_of(node.label, [self._decided(inner, label, branch) for inner in node.branches]))
        return frozenset(left)

    def _labels_of(self, nodes: Nodes) -> frozenset[str]:
        if nodes not in self._labels:
            inner = (self._labels_of(branch) for node in nodes for branch in node.branches)
            self._labels[nodes] = frozenset(node.label for node in nodes).union(*inner)
        return self._labels[nodes]
