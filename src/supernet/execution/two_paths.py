"""Choices that run as one path with binary gates around it (arXiv 1812.00332).

A gate multiplies a candidate's output: 1 for the active one, 0 for the others. What is wanted of the others is
the gate's gradient only, `<dL/dm, o_j(x)>`, so they run without a graph: none of their activations is held but
the output, and none of their weights has a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from supernet.execution.mixture import mixed
from supernet.execution.path import PathInput, PathLayer

__all__ = ["GatedInput", "GatedLayer", "Gates"]


class Gates(NamedTuple):
    """What a plan has for a choice that runs with gates: the active decision first, and each one's gate."""

    decisions: tuple[Any, ...]
    weights: torch.Tensor  # (len(decisions),): 1, 0, ...


class GatedLayer(PathLayer):
    """Stands in a `LayerChoice`'s place: `sum_k g_k o_k(x)` over the candidates in the plan's `Gates`.

    Where no gradient is computed (inside a candidate that is itself inactive, too), the active one runs alone, times
    its gate: the gates of the others are 0. Where the plan has a candidate's name, that one runs as it is.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active candidate, and the others for their outputs only."""
        gates = self.plan[self.label]
        if not isinstance(gates, Gates):
            return super().forward(*args, **kwargs)
        active, *others = gates.decisions
        outputs = {active: self.candidates[active](*args, **kwargs)}
        if torch.is_grad_enabled():
            with torch.no_grad():
                outputs |= {other: self.candidates[other](*args, **kwargs) for other in others}
        return mixed(outputs, gates.weights[: len(outputs)], self.label)


class GatedInput(PathInput):
    """Stands in an `InputChoice`'s place: the same, over what each of its decisions makes of the inputs."""

    def forward(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Reduce the inputs by each decision, and add up those results by their gates."""
        gates = self.plan[self.label]
        if not isinstance(gates, Gates):
            return super().forward(inputs)
        active, *others = gates.decisions
        outputs = {str(active): self.decided(active)(inputs)}
        if torch.is_grad_enabled():
            with torch.no_grad():
                outputs |= {str(other): self.decided(other)(inputs) for other in others}
        return mixed(outputs, gates.weights[: len(outputs)], self.label)
