"""LayerChoice and InputChoice as Retiarii had them: automatic labels, and arguments that were deprecated."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

import supernet.nn as ours
from supernet.nn.input_choice import chosen_inputs, chosen_positions

__all__ = ["Cell", "ChosenInputs", "InputChoice", "LayerChoice", "NasBench201Cell"]

_numbers = itertools.count(1)


def reset_labels() -> None:
    """Begin with `_mutation_1` again."""
    global _numbers
    _numbers = itertools.count(1)


def label_or_next(label: str | None) -> str:
    """Return the label, or the next automatic one: `_mutation_1`, `_mutation_2`, ... in order of construction."""
    return label if label else f"_mutation_{next(_numbers)}"


def without_deprecated(label: str | None, deprecated: Mapping[str, Any], ignored: Sequence[str]) -> str | None:
    """Return the label, taken from `key` where that is how it is called; warn about what is ignored."""
    for name, value in deprecated.items():
        if name == "key":
            warnings.warn("key= is deprecated; use label=", DeprecationWarning, stacklevel=3)
            label = label or value
        elif name in ignored:
            warnings.warn(f"{name}= is deprecated and ignored", DeprecationWarning, stacklevel=3)
        else:
            raise TypeError(f"unexpected keyword argument {name!r}")
    return label


class LayerChoice(ours.LayerChoice):
    """`supernet.LayerChoice` with an automatic label."""

    def __init__(
        self,
        candidates: Iterable[nn.Module] | Mapping[str, nn.Module],
        *,
        prior: Sequence[float] | None = None,
        label: str | None = None,
        **deprecated: Any,
    ) -> None:
        label = without_deprecated(label, deprecated, ["return_mask", "reduction"])
        super().__init__(candidates, label=label_or_next(label), prior=prior)

    @property
    def choices(self) -> list[nn.Module]:
        """The candidates; `list(layer_choice)` is the way."""
        warnings.warn("choices is deprecated; use list(layer_choice)", DeprecationWarning, stacklevel=2)
        return list(self)

    @property
    def length(self) -> int:
        """The number of candidates; `len(layer_choice)` is the way."""
        warnings.warn("length is deprecated; use len(layer_choice)", DeprecationWarning, stacklevel=2)
        return len(self)


class InputChoice(ours.InputChoice):
    """`supernet.InputChoice` with an automatic label; called with a list, or a dict in the inputs' order."""

    def __init__(
        self,
        n_candidates: int,
        n_chosen: int | tuple[int, int] | None = 1,
        reduction: str = "sum",
        *,
        absent: str = "omitted",
        prior: Sequence[float] | None = None,
        label: str | None = None,
        **deprecated: Any,
    ) -> None:
        label = without_deprecated(label, deprecated, ["return_mask", "choose_from"])
        super().__init__(n_candidates, n_chosen, reduction, absent=absent, label=label_or_next(label), prior=prior)

    def decided(self, decision: Any) -> ChosenInputs:
        """Return what picks and reduces the inputs at these positions."""
        chosen = chosen_positions(decision, self.n_candidates, self.n_chosen, None, self.label)
        return ChosenInputs(chosen, self.reduction, self.n_candidates if self.absent == "zeros" else None)


class ChosenInputs(nn.Module):
    """What an InputChoice becomes once it is fixed: nothing chosen gives None, one gives that tensor unchanged.

    Where absent inputs are zeros, `n_with_zeros` says how many inputs there are.
    """

    def __init__(self, chosen: int | Sequence[int], reduction: str, n_with_zeros: int | None = None) -> None:
        super().__init__()
        self.chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        self.reduction = reduction
        self.picked = chosen_inputs(self.chosen, reduction, None, n_with_zeros)

    def forward(self, candidate_inputs: Any) -> Any:
        """Pick and reduce the inputs of a list, or of a dict in its order."""
        return self.picked(as_list(candidate_inputs))


def as_list(inputs: Any) -> Any:
    """Return the values of a dict in its order, and all else as it is."""
    return list(inputs.values()) if isinstance(inputs, Mapping) else inputs


class Cell(ours.Cell):
    """`supernet.nn.Cell` with an automatic label."""

    def __init__(
        self,
        op_candidates: Any,
        num_nodes: int,
        num_ops_per_node: int = 1,
        num_predecessors: int = 1,
        merge_op: str = "all",
        label: str | None = None,
    ) -> None:
        label = label_or_next(label)
        super().__init__(op_candidates, num_nodes, num_ops_per_node, num_predecessors, merge_op, label)


class NasBench201Cell(ours.NasBench201Cell):
    """`supernet.nn.NasBench201Cell` with an automatic label."""

    def __init__(
        self,
        op_candidates: Any,
        in_features: int,
        out_features: int,
        num_tensors: int = 4,
        label: str | None = None,
    ) -> None:
        super().__init__(op_candidates, in_features, out_features, num_tensors, label_or_next(label))
