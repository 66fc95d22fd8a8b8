"""Counting the architectures of a space, exactly.

A space is a set of nodes, each a label with, for a layer choice, the set of nodes inside each candidate. The
same label may stand in several places and is decided once, wherever it is met.

Sets that share no label multiply. Where labels are shared, one that is surely met is decided, each way in
turn, and what remains is counted. This is exact; its cost depends on how entangled the labels are, and
beyond a budget of such steps an error is raised rather than a number guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from supernet.errors import SpaceError

__all__: list[str] = []

MAX_STEPS = 5_000


class Node(NamedTuple):
    """One occurrence of a label, and what is met next for each way to decide it (nothing: no branches)."""

    label: str
    branches: tuple[frozenset[Node], ...]


Nodes: TypeAlias = frozenset[Node]


def node_of(label: str, branches: Sequence[Nodes]) -> Node:
    """Return a node; one with nothing inside any candidate has no branches."""
    return Node(label, tuple(branches) if any(branches) else ())


class Counter:
    """Counts architectures; keeps what it has counted.

    Args:
        sizes: Label -> number of ways to decide it.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._counts: dict[Nodes, int] = {}
        self._labels: dict[Nodes, frozenset[str]] = {}
        self._steps = 0

    def count(self, nodes: Nodes) -> int:
        """Return in how many ways all that is met from `nodes` on can be decided.

        Raises:
            SpaceError: the labels are too entangled to be counted exactly.
        """
        if nodes not in self._counts:
            total = 1
            for part in self._separate(nodes):
                total *= self._count_connected(part)
            self._counts[nodes] = total
        return self._counts[nodes]

    def _count_connected(self, part: Nodes) -> int:
        if part in self._counts:
            return self._counts[part]
        # Of the labels that are surely met, the one that ties the most nodes together, for without it the
        # part is likeliest to fall apart. Sorted, so that every process counts, or gives up, in the same way.
        met = {node.label for node in part}
        label = max(sorted(met), key=lambda label: sum(label in self._labels_of(frozenset({n})) for n in part))
        n_branches = max(len(node.branches) for node in part if node.label == label)
        self._steps += max(1, n_branches)
        if self._steps > MAX_STEPS:
            raise SpaceError(
                f"the space is too entangled to be counted exactly: label {label!r} and others stand in many "
                "branches at once; give choices that need not agree labels of their own"
            )
        if n_branches:  # of a set there is one for each decision, too
            total = sum(self.count(self._decided(part, label, branch)) for branch in range(n_branches))
        else:  # whatever is decided, the rest is the same
            total = self._sizes[label] * self.count(self._decided(part, label, 0))
        self._counts[part] = total
        return total

    def _separate(self, nodes: Nodes) -> list[Nodes]:
        """Return the parts of `nodes` that share no label."""
        parts: list[tuple[set[str], set[Node]]] = []
        for node in nodes:
            labels, members = set(self._labels_of(frozenset({node}))), {node}
            apart = []
            for other_labels, other_members in parts:
                if labels.isdisjoint(other_labels):
                    apart.append((other_labels, other_members))
                else:
                    labels |= other_labels
                    members |= other_members
            parts = [*apart, (labels, members)]
        return [frozenset(members) for _, members in parts]

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
