"""How a `ValueChoice` runs: modules that depend on it ask what the plan has; called by itself, it gives the value."""

from __future__ import annotations

from typing import Any

import torch

from supernet.errors import MixtureError
from supernet.execution.activation_checkpoints import check_gradient
from supernet.execution.plan import Plan
from supernet.execution.selection import Selection, check_weights, is_mixture
from supernet.execution.slot import Slot
from supernet.nn import ValueChoice
from supernet.nn.choice import Alternative

__all__ = ["ValueSlot"]


class ValueSlot(Slot):
    """Stands in a `ValueChoice`'s place, and says what the plan has for its label: see `Selection`.

    Args:
        choice: The choice in whose place it stands.
        plan: The plan that it follows.
    """

    pads_what_is_mixed = True

    def __init__(self, choice: ValueChoice, plan: Plan) -> None:
        super().__init__(choice, plan)
        self.candidates = self.values = tuple(choice.candidates)

    def alternatives(self) -> list[Alternative]:
        """Return the values that stand here now; several, each with its weight, in a mixture."""
        entry = self.entry
        if not isinstance(entry, (torch.Tensor, Selection)):
            return [Alternative(entry)]
        weights = entry.weights if isinstance(entry, Selection) else entry
        is_weighted = isinstance(weights, torch.Tensor) and weights.requires_grad
        if is_weighted and not torch.is_grad_enabled() and not self.bears_reentrant:
            check_gradient(self.label)
        if isinstance(entry, torch.Tensor):
            check_weights(entry, len(self.candidates), self.label)
            return [Alternative(value, weight) for value, weight in zip(self.candidates, entry.unbind(), strict=True)]
        if entry.weights is None:
            return [Alternative(entry.active[0])]
        num_active = len(entry.active) - entry.detached
        return [
            Alternative(value, weight, position >= num_active)
            for position, (value, weight) in enumerate(zip(entry.active, entry.weights.unbind(), strict=True))
        ]

    def forward(self) -> Any:
        """Return the value; the weighted sum of several numbers, in a mixture."""
        alternatives = self.alternatives()
        if alternatives[0].weight is None:
            return alternatives[0].decision
        total: Any = 0
        for value, weight, _ in alternatives:
            if not isinstance(value, int | float):
                raise MixtureError(
                    f"choice {self.label!r} is mixed, but {value!r} is no number that has a weighted sum; use a "
                    "trainer that samples, or a LayerChoice"
                )
            total = total + weight * value  # type: ignore[operator]  # where one has a weight, each has
        return total

    def explain(self) -> str:
        """Return the values, and how they run."""
        how = "weights of all values are mixed" if is_mixture(self.plan.get(self.label)) else "one value"
        return f"  ValueChoice ({', '.join(map(str, self.candidates))}): {how}"
