"""Choices that run as a mixture: every candidate, weighted (DARTS, arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.plan import Plan
from supernet.nn import InputChoice, LayerChoice

__all__ = ["MixedInput", "MixedLayer", "mixed"]


class MixedLayer(nn.Module):
    """Stands in a `LayerChoice`'s place: `sum_k p_k o_k(x)`, p the plan's weights for the choice's label.

    Candidates may return a tensor, or tuples, lists and dicts of tensors and None; all the same structure.
    """

    def __init__(self, choice: LayerChoice, plan: Plan) -> None:
        super().__init__()
        self.label = str(choice.label)
        self.candidates = nn.ModuleDict(dict(choice.named_children()))
        self.plan = plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every candidate and mix what they return."""
        weights = self.plan[self.label]
        outputs = {name: candidate(*args, **kwargs) for name, candidate in self.candidates.items()}
        return mixed(outputs, weights, self.label)


class MixedInput(nn.Module):
    """Stands in an `InputChoice`'s place: `sum_i p_i x_i`, p the plan's weights for the choice's label.

    The mixture is the same for "sum" and "mean" and for any `n_chosen`: the weights sum to one. It cannot
    stand for "none", nor for "concat" of several inputs.

    Raises:
        ChoiceError: the choice's reduction is one that a mixture cannot stand for.
    """

    def __init__(self, choice: InputChoice, plan: Plan) -> None:
        super().__init__()
        self.label = str(choice.label)
        if choice.reduction == "none" or (choice.reduction == "concat" and choice.n_chosen != 1):
            raise ChoiceError(
                f"choice {self.label!r} reduces {choice.n_chosen or 'any number of'} inputs by {choice.reduction!r}, "
                "for which a mixture of all inputs cannot stand; use 'sum' or 'mean', or n_chosen=1 with 'concat', "
                "or a trainer that samples"
            )
        self.names = [str(i) for i in range(choice.n_candidates)] if choice.choose_from is None else choice.choose_from
        self.by_name = choice.choose_from is not None
        self.plan = plan

    def forward(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Mix the inputs: a list of tensors, or a dict of them where the choice names its inputs."""
        weights = self.plan[self.label]
        return mixed(self._named(inputs), weights, self.label)

    def _named(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        if self.by_name:
            if not isinstance(inputs, Mapping) or not all(name in inputs for name in self.names):
                raise ChoiceError(f"choice {self.label!r} is called with a dict of {', '.join(self.names)}")
            return {name: inputs[name] for name in self.names}
        if isinstance(inputs, Mapping) or len(inputs) != len(self.names):
            raise ChoiceError(
                f"choice {self.label!r} is called with a list of {len(self.names)}, not {len(inputs)} tensors"
            )
        return dict(zip(self.names, inputs, strict=True))


def mixed(outputs: Mapping[str, Any], weights: torch.Tensor, label: str) -> Any:
    """Return `sum_k weights[k] * outputs[k]`, in each tensor of the structure that all outputs have.

    Args:
        outputs: name -> tensor, or tuple, list or dict of tensors; shapes (...) equal.
        weights: (K,).
        label: the choice's, for errors.

    Raises:
        ChoiceError: two outputs differ in shape or structure.
    """
    names, values = list(outputs), list(outputs.values())
    first = values[0]
    for name, value in zip(names, values, strict=True):
        if _shape(value) != _shape(first):
            raise ChoiceError(
                f"the outputs of choice {label!r} differ in shape, so they cannot be mixed: "
                f"{names[0]!r} gives {_shape(first)}, {name!r} gives {_shape(value)}"
            )
    if isinstance(first, torch.Tensor):
        # Added one by one: stacking them would hold every output twice.
        total = weights[0] * first
        for k in range(1, len(values)):
            total = total + weights[k] * values[k]
        return total
    if first is None:  # such as the weights that attention was not asked for
        return None
    if isinstance(first, Mapping):
        return {key: mixed({n: v[key] for n, v in outputs.items()}, weights, label) for key in first}
    if isinstance(first, tuple | list):
        parts = [mixed({n: v[i] for n, v in outputs.items()}, weights, label) for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise ChoiceError(f"the outputs of choice {label!r} are {type(first).__name__}, which cannot be mixed")


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: _shape(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_shape(inner) for inner in value]
    return type(value).__name__
