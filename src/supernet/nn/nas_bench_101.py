"""The cell of NAS-Bench-101: any graph of a few operations, whose widths follow from the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from supernet.errors import ChoiceError, MixtureError
from supernet.nn.cell import check_numbers, total
from supernet.nn.choice import Choice
from supernet.nn.composed import as_graph_module
from supernet.nn.domain import Domain
from supernet.nn.mutable import Mutable
from supernet.nn.value import ValueChoice

__all__ = ["NasBench101Cell"]

Operations: TypeAlias = Sequence[Callable[[int], nn.Module]] | Mapping[str, Callable[[int], nn.Module]]

INCLUSION = 0.4  # how probable an edge is where one is drawn: so a fiftieth of all draws are cells, the most


class NasBench101Cell(Mutable):
    """The cell of NAS-Bench-101 (arXiv 1902.09635): a graph of operations, of few nodes and edges.

    Its choices are the number of nodes, `{label}/num_nodes`, the input and the output among them; the operation of each
    node between, `{label}/op_1` and so on; and the earlier nodes that each takes, `{label}/input_1` and so on, the last
    of which are the output's. Each node leads to the output. With the defaults and three operations there are
    1,293,208 such architectures: the paper's 423,624 graphs, in all orders of their nodes.

    A node adds up what it takes, the cell's input by a projection. The output is what leads to it, concatenated, and
    added to that the input's projection. So widths follow from the graph: what leads to the output shares its features,
    and any other node has as many as the widest that it leads to. A node has weights of its own for each such width.

    No mixture of graphs is known: it is for trainers that sample paths.

    Args:
        op_candidates: Functions `num_features -> module`, in a list or a dict.
        in_features: Number of features of the input.
        out_features: Number of features of the output.
        projection: Function `(in_features, out_features) -> module`, for the input wherever it is added.
        max_num_nodes: The largest number of nodes, input and output among them. At least 2. Default: 7.
        max_num_edges: The largest number of edges. Default: 9.
        label: Name of the cell, with which its choices' labels begin. Cells of one label are one decision.

    Raises:
        ChoiceError: A number is too small, there are no candidates, or no label; or, inside `fixed_architecture`, some
            of its choices are decided, and others not.

    >>> cell = NasBench101Cell([nn.BatchNorm2d, nn.InstanceNorm2d], 4, 8, nn.Linear, max_num_nodes=4, label="cell")
    >>> SearchSpace(cell).size
    45
    """

    def __init__(
        self,
        op_candidates: Operations,
        in_features: int,
        out_features: int,
        projection: Callable[[int, int], nn.Module],
        max_num_nodes: int = 7,
        max_num_edges: int = 9,
        *,
        label: str,
    ) -> None:
        super().__init__()
        check_numbers(
            in_features=in_features,
            out_features=out_features,
            max_num_nodes=max_num_nodes,
            max_num_edges=max_num_edges,
        )
        if out_features < max_num_nodes - 2:
            raise ChoiceError(f"{max_num_nodes - 2} nodes cannot share {out_features} out_features; give as many")
        if not isinstance(op_candidates, Mapping):
            op_candidates = dict(enumerate(op_candidates))  # type: ignore[arg-type]  # known by their positions
        if not op_candidates or not label:
            raise ChoiceError(f"a NasBench101Cell needs candidates and a label, not {op_candidates!r} and {label!r}")
        self.label, self.out_features = label, out_features
        self.max_num_nodes, self.max_num_edges = max_num_nodes, max_num_edges
        inner: dict[str, Any] = {}
        for node in range(1, max_num_nodes):
            inner[f"input_{node}"] = _Inputs(node, label=f"{label}/input_{node}")
            if node < max_num_nodes - 1:
                inner[f"op_{node}"] = ValueChoice(list(op_candidates), label=f"{label}/op_{node}")
        self.num_nodes = _NumNodes(max_num_nodes, inner, label=f"{label}/num_nodes")
        # Inside `fixed_architecture` each of these is not a choice, but what has been decided.
        self._fixed = None if isinstance(self.num_nodes, Choice) else self._all_fixed(self.num_nodes, inner)
        self._choice: Any = (self.num_nodes,)  # as written, in whose children's places a supernet puts others
        self._positions = {name: position for position, name in enumerate(op_candidates)}
        self.ops, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for width in _widths(out_features, max_num_nodes):
            for node in range(1, max_num_nodes):
                self.projections[f"{node}_{width}"] = projection(in_features, width)
                for position, make in enumerate(op_candidates.values() if node < max_num_nodes - 1 else ()):
                    self.ops[f"{node}_{position}_{width}"] = make(width)

    def _all_fixed(self, num_nodes: int, inner: Mapping[str, Any]) -> dict[str, Any]:
        names = [f"op_{node}" for node in range(1, num_nodes - 1)] + [f"input_{node}" for node in range(1, num_nodes)]
        left = [inner[name].label for name in names if isinstance(inner[name], Choice)]
        if left:
            raise ChoiceError(f"the architecture decides {self.label}/num_nodes, but leaves {', '.join(left)} open")
        fixed = {f"{self.label}/{name}": inner[name] for name in names} | {f"{self.label}/num_nodes": num_nodes}
        if not self.condition()(fixed):
            raise ChoiceError(f"{fixed} is no {self.condition().text}")
        return fixed

    def choices(self) -> list[ValueChoice]:
        """Return all choices that this depends on, the number of nodes first."""
        return [] if self._fixed else [one for one in self._choice[0].modules() if isinstance(one, ValueChoice)]

    def condition(self) -> Cells:
        """Return what says whether an architecture is a cell of this space."""
        return Cells(self.label, self.max_num_edges)

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return (N, out_features, ...) of x, (N, in_features, ...).

        Args:
            sizes: Label -> decision.
            x: The input.
        """
        graph = _graph_of(self.label, sizes, self.out_features)
        return _computed(x, graph, self._ops(graph), self._projections(graph))

    def forward(self, x: Tensor) -> Tensor:
        """Run what the supernet's plan decides."""
        choice = self._choice[0]
        num_nodes = _decision(self.num_nodes, self.label)
        decisions = {f"{self.label}/num_nodes": num_nodes}
        for name in choice.reached(num_nodes):
            decisions[f"{self.label}/{name}"] = _decision(choice._modules[name], self.label)
        return self.run(decisions, x)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a graph module of torch that has the operations of the graph."""
        graph = _graph_of(self.label, self._fixed or decisions, self.out_features)
        module = _Wired(graph, self._ops(graph), self._projections(graph))
        module.training = self.training
        return as_graph_module(module)

    def _ops(self, graph: _Graph) -> dict[str, nn.Module]:
        return {
            str(node): self.ops[f"{node}_{self._positions[op]}_{graph.widths[node]}"]
            for node, op in enumerate(graph.ops, 1)
        }

    def _projections(self, graph: _Graph) -> dict[str, nn.Module]:
        nodes = [node for node, sources in enumerate(graph.sources, 1) if 0 in sources]
        return {str(node): self.projections[f"{node}_{graph.widths[node]}"] for node in nodes}

    def architecture(self, matrix: Any, operations: Sequence[Any]) -> dict[str, Any]:
        """Return label -> decision of a cell as the benchmark writes it, without what does not lead to its output.

        Args:
            matrix: Adjacency matrix, `matrix[i][j]` for the edge from node i to node j.
            operations: The operation of each node, in which input and output have any names.
        """
        last = len(matrix) - 1
        after, before = {last}, {0}
        for node in reversed(range(last)):
            after |= {node} if any(matrix[node][other] for other in after) else set()
        for node in range(1, last + 1):
            before |= {node} if any(matrix[other][node] for other in before) else set()
        kept = sorted(after & before)
        if kept[:1] != [0] or kept[-1] != last:
            raise ChoiceError("the input of the matrix does not lead to its output")
        decisions: dict[str, Any] = {f"{self.label}/num_nodes": len(kept)}
        for node, old in enumerate(kept[1:-1], 1):
            decisions[f"{self.label}/op_{node}"] = operations[old]
        for node, old in enumerate(kept[1:], 1):
            taken = [source for source, other in enumerate(kept[:node]) if matrix[other][old]]
            decisions[f"{self.label}/input_{node}"] = taken
        return decisions


@dataclass(frozen=True)
class Cells:
    """Says whether an architecture is one of a cell's space: each node leads to the output, by few enough edges."""

    label: str
    max_num_edges: int

    @property
    def text(self) -> str:
        """How it is written, for people and fingerprints."""
        return f"each node of {self.label!r} leads to its output, by at most {self.max_num_edges} edges"

    def __call__(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether the architecture is one, or has no such cell."""
        num_nodes = architecture.get(f"{self.label}/num_nodes", 1)
        taken = [architecture[f"{self.label}/input_{node}"] for node in range(1, num_nodes)]
        leading = {source for sources in taken for source in sources}
        return sum(map(len, taken)) <= self.max_num_edges and len(leading) == num_nodes - 1 and all(taken)


class _Inputs(ValueChoice):
    """Which of the earlier nodes a node takes: a list of at least one position."""

    def __init__(self, count: int, *, label: str) -> None:
        super().__init__(range(count), label=label, prior=[INCLUSION] * count if count > 1 else None)

    def _made_domain(self) -> Domain:
        count = len(self.candidates)
        names, prior = tuple(map(str, range(count))), tuple(self._prior) if self._prior else None
        return Domain(str(self.label), names, (1, count), is_set=True, prior=prior, noun="input", are_named=False)


class _NumNodes(ValueChoice):
    """How many nodes there are; holds the choices of nodes, of which those of nodes that are not there stay open."""

    def __init__(self, most: int, inner: Mapping[str, Any], *, label: str) -> None:
        counts = range(2, most + 1)
        # Each node more gives several times as many cells.
        super().__init__(counts, label=label, prior=[2**n / sum(2**m for m in counts) for n in counts])
        self._modules.update({name: one for name, one in inner.items() if isinstance(one, Choice)})

    def reached(self, num_nodes: int) -> list[str]:
        """Return the names of the choices of so many nodes."""
        inputs = [f"input_{node}" for node in range(1, num_nodes)]
        return [*(f"op_{node}" for node in range(1, num_nodes - 1)), *inputs]

    def branches(self) -> list[list[nn.Module]]:
        """Return the choices of the nodes that are there."""
        return [[self._modules[name] for name in self.reached(n)] for n in self.candidates]  # type: ignore[misc]


def _decision(slot: Any, label: str) -> Any:
    """Return what stands in a choice's place decides."""
    alternatives = slot.alternatives()
    if alternatives[0].weight is not None:
        raise MixtureError(
            f"the graph of NasBench101Cell {label!r} is decided, and no mixture of graphs is known; use a trainer that "
            "samples paths"
        )
    return alternatives[0].decision


# --- graphs ------------------------------------------------------------------------------------------------


class _Graph(NamedTuple):
    """A cell.

    Attributes:
        ops: Operation of each node but input and output.
        sources: What each node but the input takes.
        widths: Number of features of each node; of the input, 0.
    """

    ops: tuple[Any, ...]
    sources: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]


def _graph_of(label: str, decisions: Mapping[str, Any], out_features: int) -> _Graph:
    num_nodes = decisions[f"{label}/num_nodes"]
    ops = tuple(decisions[f"{label}/op_{node}"] for node in range(1, num_nodes - 1))
    sources = tuple(tuple(decisions[f"{label}/input_{node}"]) for node in range(1, num_nodes))
    # As the benchmark has it: features that do not divide go to the first nodes, one each.
    widths = [0] * (num_nodes - 1) + [out_features]
    leading = [source for source in sources[-1] if source]
    for position, node in enumerate(leading):
        widths[node] = out_features // len(leading) + (position < out_features % len(leading))
    for node in reversed(range(1, num_nodes - 1)):
        if node not in leading:
            widths[node] = max(widths[other] for other in range(node + 1, num_nodes - 1) if node in sources[other - 1])
    return _Graph(ops, sources, tuple(widths))


def _widths(out_features: int, max_num_nodes: int) -> list[int]:
    """Return the widths that nodes may have."""
    widths = {out_features}
    for leading in range(1, max_num_nodes - 1):
        widths |= {out_features // leading, -(-out_features // leading)}
    return sorted(widths)


def _computed(x: Any, graph: _Graph, ops: Any, projections: Any) -> Any:
    """Return the output of a graph, of modules by the nodes' numbers as texts."""
    tensors = [x]
    *between, of_output = graph.sources
    for node, sources in enumerate(between, 1):
        width = graph.widths[node]  # a source may have one feature more, or more where it leads to others too
        taken = [tensors[s] if graph.widths[s] == width else tensors[s][:, :width] for s in sources if s]
        taken += [projections[str(node)](x)] if 0 in sources else []
        tensors.append(ops[str(node)](total(taken)))
    leading = [tensors[source] for source in of_output if source]
    parts = [torch.cat(leading, 1) if len(leading) > 1 else leading[0]] if leading else []
    parts += [projections[str(len(graph.sources))](x)] if 0 in of_output else []
    return total(parts)


class _Wired(nn.Module):
    """A cell whose graph is decided."""

    def __init__(self, graph: _Graph, ops: dict[str, nn.Module], projections: dict[str, nn.Module]) -> None:
        super().__init__()
        self._graph, self.ops, self.projections = graph, nn.ModuleDict(ops), nn.ModuleDict(projections)

    def forward(self, x: Any) -> Any:
        return _computed(x, self._graph, self.ops, self.projections)
