"""Cells, as published search spaces have them, made of LayerChoices and InputChoices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.composed import Composed
from supernet.nn.domain import is_int
from supernet.nn.input_choice import InputChoice
from supernet.nn.layer_choice import LayerChoice

__all__ = ["Cell", "NasBench201Cell"]

Candidates: TypeAlias = Sequence[nn.Module] | Mapping[str, nn.Module] | nn.ModuleList | nn.ModuleDict
Factories: TypeAlias = Sequence[Callable[[int, int], nn.Module]] | Mapping[str, Callable[[int, int], nn.Module]]


class Cell(Composed):
    """A cell of nodes, each of which adds up operations on earlier tensors (arXiv 1802.03268, 1707.07012).

    Called with a list of `num_predecessors` tensors (N, C, ...). Each operation of a node is an InputChoice of
    one among the predecessors and the nodes before, labelled `{label}/input_{node}_{k}`, then a LayerChoice
    labelled `{label}__op_{node}_{k}`. The nodes are concatenated along dimension 1.

    Args:
        op_candidates: Modules in a list or a dict, which are copied for each operation; or a function without arguments
            that makes such a list or dict.
        num_nodes: Number of nodes.
        num_ops_per_node: Number of operations that a node adds up. Default: 1.
        num_predecessors: Number of tensors that the cell is called with. Default: 1.
        merge_op: "all", which concatenates all nodes; there is no other. Default: "all".
        label: Name of the cell, with which its choices' labels begin. Cells of one label are one decision. Default:
            choices are named by their paths.

    Raises:
        ChoiceError: A number is below 1, there are no candidates, or `merge_op` is not known.

    >>> cell = Cell({"conv": nn.Conv2d(8, 8, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1)}, num_nodes=2, label="cell")
    >>> SearchSpace(cell)
    SearchSpace of 8 architectures
      cell__op_0_0: conv | pool
      cell__op_1_0: conv | pool
      cell/input_0_0: 1 of 1 inputs
      cell/input_1_0: 1 of 2 inputs
    """

    def __init__(
        self,
        op_candidates: Candidates | Callable[[], Candidates],
        num_nodes: int,
        num_ops_per_node: int = 1,
        num_predecessors: int = 1,
        merge_op: str = "all",
        label: str | None = None,
    ) -> None:
        super().__init__()
        check_numbers(num_nodes=num_nodes, num_ops_per_node=num_ops_per_node, num_predecessors=num_predecessors)
        if merge_op != "all":
            raise ChoiceError(f"merge_op is 'all', which concatenates every node, not {merge_op!r}")
        self.num_predecessors, self.label = num_predecessors, label
        self.ops, self.inputs = nn.ModuleList(), nn.ModuleList()
        for node in range(num_nodes):
            ops, inputs = nn.ModuleList(), nn.ModuleList()
            for k in range(num_ops_per_node):
                made = _made(op_candidates)
                ops.append(LayerChoice(made, label=label and f"{label}__op_{node}_{k}"))
                inputs.append(InputChoice(node + num_predecessors, 1, label=label and f"{label}/input_{node}_{k}"))
            self.ops.append(ops)
            self.inputs.append(inputs)

    def forward(self, x: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run the nodes one after another."""
        states = [x[i] for i in range(self.num_predecessors)]
        for ops, inputs in zip(self.ops, self.inputs, strict=True):
            node = [op(pick(states)) for op, pick in zip(ops, inputs, strict=True)]  # type: ignore[call-overload]
            states = [*states, total(node)]
        return torch.cat(states[self.num_predecessors :], 1)


class NasBench201Cell(Composed):
    """The cell of NAS-Bench-201 (arXiv 2001.00326): every pair of its tensors is joined by a LayerChoice.

    Tensor `tid` is the sum over all earlier tensors `j` of a LayerChoice labelled `{label}__{j}_{tid}`; the first
    tensor is the input, the last the output.

    Args:
        op_candidates: Functions `(in_features, out_features) -> module`, in a list or a dict.
        in_features: Number of features of the input, given to the functions.
        out_features: Number of features of all other tensors, given to the functions.
        num_tensors: Number of tensors, the input among them. At least 2. Default: 4.
        label: Name of the cell, with which its choices' labels begin. Cells of one label are one decision. Default:
            choices are named by their paths.

    Raises:
        ChoiceError: A number is too small, or there are no candidates.

    >>> SearchSpace(NasBench201Cell([nn.Linear] * 5, in_features=16, out_features=16, label="cell")).size
    15625
    """

    def __init__(
        self,
        op_candidates: Factories,
        in_features: int,
        out_features: int,
        num_tensors: int = 4,
        label: str | None = None,
    ) -> None:
        super().__init__()
        check_numbers(in_features=in_features, out_features=out_features, num_tensors=num_tensors)
        if not isinstance(op_candidates, Mapping):
            op_candidates = {str(position): make for position, make in enumerate(op_candidates)}
        self.label = label
        self.layers = nn.ModuleList()
        for tid in range(1, num_tensors):
            self.layers.append(
                nn.ModuleList(
                    LayerChoice(
                        {
                            name: make(in_features if j == 0 else out_features, out_features)
                            for name, make in op_candidates.items()
                        },
                        label=label and f"{label}__{j}_{tid}",
                    )
                    for j in range(tid)
                )
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the layers one after another."""
        tensors = [inputs]
        for layer in self.layers:
            tensors.append(total([op(tensor) for op, tensor in zip(layer, tensors, strict=True)]))  # type: ignore[call-overload]
        return tensors[-1]


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0]  # not by `sum`, which begins with 0 and so adds once more, in the frozen network too
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _made(candidates: Candidates | Callable[[], Candidates]) -> Candidates:
    """Return candidates of their own for one operation."""
    if isinstance(candidates, Sequence | Mapping | nn.ModuleList | nn.ModuleDict) or not callable(candidates):
        return copy.deepcopy(candidates)
    return candidates()


def check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        lowest = 2 if name in ("num_tensors", "max_num_nodes") else 1
        if not is_int(number) or number < lowest:
            raise ChoiceError(f"{name} is a number from {lowest} on, not {number!r}")
