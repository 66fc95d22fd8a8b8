"""Choices that run as one path: the decided candidate or inputs only (arXiv 1904.00420)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from supernet.execution.plan import Plan
from supernet.execution.slot import LayerSlot
from supernet.nn import InputChoice

__all__ = ["PathInput", "PathLayer"]


class PathLayer(LayerSlot):
    """Stands in a `LayerChoice`'s place: runs the candidate whose name the plan has for the choice's label."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decided candidate."""
        return self._modules[self.plan[self.label]](*args, **kwargs)  # type: ignore[misc]


class PathInput(nn.Module):
    """Stands in an `InputChoice`'s place: reduces the inputs whose positions the plan has for the choice's label."""

    def __init__(self, choice: InputChoice, plan: Plan) -> None:
        super().__init__()
        self.label = str(choice.label)
        self.choice_decided = choice.resolve
        self.plan = plan
        self._decided: dict[tuple[int, ...], nn.Module] = {}  # holds no state, so it is no child

    def decided(self, positions: Sequence[int]) -> nn.Module:
        """Return the module that picks and reduces the inputs at these positions."""
        chosen = tuple(positions)
        if chosen not in self._decided:
            self._decided[chosen] = self.choice_decided(list(chosen))
        return self._decided[chosen]

    def forward(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Pick and reduce the decided inputs."""
        return self.decided(self.plan[self.label])(inputs)
