"""Which choice is reached through which: the tree of a space, as it is counted, walked and printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from supernet.errors import SpaceError
from supernet.nn import Choice
from supernet.nn.domain import Decision, Domain
from supernet.space.counting import Node, Nodes, node_of
from supernet.space.original import original_branches, original_children

__all__: list[str] = []

MAX_BRANCHES = 1_000  # decisions of one choice that holds others


class Met(NamedTuple):
    """A label that is met on the way through a model, and what is met next for each decision's key (if anything)."""

    label: str
    inside: dict[Any, list[Met]]


def each_once(met: Sequence[Met]) -> list[Met]:
    """Return them without what is there already, in their order."""
    found: list[Met] = []
    for one in met:
        if one not in found:
            found.append(one)
    return found


def nodes_of(module: nn.Module, known: dict[int, Nodes], within: list[int]) -> Nodes:
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
        nodes = frozenset().union(*(nodes_of(child, known, within) for _, child in original_children(module)))
    within.pop()
    known[id(module)] = nodes
    return nodes


def _node(choice: Choice, known: dict[int, Nodes], within: list[int]) -> Node:
    """Return a choice with what is met next for each of its decisions, in the order of its domain."""
    domain = choice.domain()
    options = [
        frozenset[Node]().union(*(nodes_of(module, known, within) for module in branch))
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


def in_order(
    nodes: Nodes, domains: Mapping[str, Domain], order: Mapping[str, int], known: dict[Nodes, list[Met]]
) -> list[Met]:
    """Return the nodes, and those inside them, as they are met: in the order in which the choices stand."""
    if nodes not in known:
        known[nodes] = []
        for node in sorted(nodes, key=lambda node: order[node.label]):
            keys = map(key_of_decision, domains[node.label]) if node.branches else ()
            inside = [in_order(branch, domains, order, known) for branch in node.branches]
            known[nodes].append(Met(node.label, dict(zip(keys, inside, strict=True))))
    return known[nodes]


def key_of_decision(decision: Decision) -> Any:
    """Return what a decision is looked up by."""
    return tuple(decision) if isinstance(decision, list) else decision


def tree_of(nodes: Nodes) -> list[Any]:
    """Return which choices stand inside which, as JSON has it."""
    trees = [[node.label, [tree_of(inside) for inside in node.branches]] for node in nodes]
    return sorted(trees, key=json.dumps)


def lines_of(
    met: list[Met], domains: Mapping[str, Domain], indent: int, known: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield a line for each choice not `known` from lines around it, and those inside, by all ways to them."""
    known |= {label for label, _ in met}
    for label, inside in met:
        yield f"{'  ' * indent}{label}: {domains[label]}"
        ways: list[tuple[list[str], list[Met]]] = []  # decisions, and the choices that are met by just these
        for further in each_once([further for of_one in inside.values() for further in of_one]):
            if further.label not in known:
                decisions = [str(decision) for decision, of_one in inside.items() if further in of_one]
                same = next((of_same for way, of_same in ways if way == decisions), None)
                if same is None:
                    ways.append((decisions, [further]))
                else:
                    same.append(further)
        for decisions, of_these in ways:
            yield f"{'  ' * (indent + 1)}in {', '.join(decisions)}:"
            yield from lines_of(of_these, domains, indent + 2, known)
