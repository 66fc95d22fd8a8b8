"""LayerChoice and InputChoice as Retiarii had them: automatic labels, and arguments that were deprecated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

import supernet.nn as ours
from supernet.nn import Choice
from supernet.nn.input_choice import chosen_inputs
from supernet.retiarii.labels import next_labels, put_labels_of_cell_right

__all__ = ["Cell", "ChosenInputs", "InputChoice", "LayerChoice", "NasBench101Cell", "NasBench201Cell"]


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


class Retiariis(Choice):
    """What all choices of Retiarii have beside ours: an automatic label, and a prior where none is given."""

    label_of_2_6: str | None = None  # where the label is automatic

    @property
    def prior(self) -> list[float]:
        """The prior, which is uniform where none is given."""
        return self._prior or [1 / self._count()] * self._count()

    def _count(self) -> int:
        raise NotImplementedError

    def _warn_of_running(self, gives: str = "its first") -> None:
        warnings.warn(
            f"{self.description()} runs undecided, so it gives {gives}, as in NNI; search by a trainer, or fix it",
            stacklevel=3,
        )


class LayerChoice(Retiariis, ours.LayerChoice):
    """`supernet.LayerChoice` with an automatic label. Run as it is, it runs its first candidate, with a warning."""

    def __init__(
        self,
        candidates: Iterable[nn.Module] | Mapping[str, nn.Module],
        *,
        prior: Sequence[float] | None = None,
        label: str | None = None,
        **deprecated: Any,
    ) -> None:
        label = without_deprecated(label, deprecated, ["return_mask", "reduction"])
        automatic, later = (None, None) if label else next_labels()
        ours.LayerChoice.__init__(self, candidates, label=label or automatic, prior=prior)
        self.label_of_2_6, self._are_named = later, isinstance(candidates, Mapping | nn.ModuleDict)

    def _count(self) -> int:
        return len(self)

    @property
    def candidates(self) -> list[nn.Module] | dict[str, nn.Module]:
        """The candidates, in a list or by name as they were given."""
        return dict(self._candidates()) if self._are_named else list(self)

    def resolve(self, decision: Any) -> nn.Module:
        """Return the candidate of that name or position, or of the one in a list."""
        if isinstance(decision, list) and len(decision) == 1:
            (decision,) = decision
        return super().resolve(decision)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the first candidate, with a warning."""
        self._warn_of_running()
        return self[0](*args, **kwargs)

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


class InputChoice(Retiariis, ours.InputChoice):
    """`supernet.InputChoice` with an automatic label; called with a list, or a dict in the inputs' order.

    Run as it is, it gives its first input, with a warning.
    """

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
        automatic, later = (None, None) if label else next_labels()
        ours.InputChoice.__init__(
            self, n_candidates, n_chosen, reduction, absent=absent, label=label or automatic, prior=prior
        )
        self.label_of_2_6 = later

    def _count(self) -> int:
        return self.n_candidates

    def resolve(self, decision: Any) -> ChosenInputs:
        """Return what picks and reduces the inputs at these positions, of which NNI's trainers gave any number."""
        chosen = replace(self.domain(), arity=None, prior=None).positions(decision)
        return ChosenInputs(chosen, self.reduction, self.n_candidates if self.absent == "zeros" else None)

    def forward(self, inputs: Any) -> Any:
        """Return the first input, with a warning."""
        self._warn_of_running()
        return as_list(inputs)[0]


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
        later: str | None = None
        if not label:
            label, later = next_labels()
        self.label_of_2_6 = later
        put_labels_of_cell_right(label, later, num_predecessors)
        super().__init__(op_candidates, num_nodes, num_ops_per_node, num_predecessors, merge_op, label)


class NasBench101Cell(ours.NasBench101Cell):
    """`supernet.nn.NasBench101Cell` with an automatic label."""

    def __init__(
        self,
        op_candidates: Any,
        in_features: int,
        out_features: int,
        projection: Any,
        max_num_nodes: int = 7,
        max_num_edges: int = 9,
        label: str | None = None,
    ) -> None:
        later: str | None = None
        if not label:
            label, later = next_labels()
        super().__init__(
            op_candidates, in_features, out_features, projection, max_num_nodes, max_num_edges, label=label
        )
        for choice in self.choices() if later else ():
            choice.label_of_2_6 = str(choice.label).replace(label, str(later), 1)  # type: ignore[assignment]


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
        later: str | None = None
        if not label:
            label, later = next_labels()
        self.label_of_2_6 = later
        put_labels_of_cell_right(label, later, 0)
        super().__init__(op_candidates, in_features, out_features, num_tensors, label)
