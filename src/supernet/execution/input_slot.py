"""How an `InputChoice` runs in a supernet: some inputs, a mixture of all (DARTS), or sets of them with gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError, MixtureError
from supernet.execution.expected_mean import weights_of_mean
from supernet.execution.fast.candidates import can_be_fast
from supernet.execution.fast.shared import Shared
from supernet.execution.fast.weighted_sum import Term, fused_weighted_sum
from supernet.execution.mixing import weighted
from supernet.execution.plan import Plan
from supernet.execution.selection import Selection, check_weights, positions_of, selection_of
from supernet.execution.slot import Slot, weighted_sum
from supernet.nn import InputChoice
from supernet.nn.domain import in_words

__all__ = ["InputSlot"]


class InputSlot(Slot):
    """Stands in an `InputChoice`'s place, and makes of its inputs what the plan has for its label: see `Selection`.

    A set of inputs (a decision, a list of positions) is picked and reduced as the choice says. Several sets, as gates
    have them, are added up by their weights. Single inputs by their positions are a mixture: a fixed number k of them
    has probabilities p that sum to one, and the mixture is `sum_i p_i x_i` for "sum" and "mean" alike; any other number
    has a probability of each input, chosen on its own, and the mixture is the mean of what the choice gives then, where
    nothing chosen counts as zeros. Where absent inputs are zeros, a mixture stands for "concat" and "none" too: each
    input weighted (by k p_i, so that they add up to k, where the number is fixed).

    Args:
        choice: The choice in whose place it stands.
        plan: The plan that it follows.
    """

    def __init__(self, choice: InputChoice, plan: Plan) -> None:
        super().__init__(choice, plan)
        self._choice = (choice,)  # which is no child of what stands in its place
        self._decided: dict[tuple[int, ...], nn.Module] = {}  # holds no state, so it is no child
        has_zeros, number = choice.absent == "zeros", choice.n_chosen if isinstance(choice.n_chosen, int) else None
        keeps_each = choice.reduction == "none" or (choice.reduction == "concat" and (has_zeros or number != 1))
        self._reduction = choice.reduction if keeps_each else "sum"
        self._takes_mean = choice.reduction == "mean" and number is None and not has_zeros
        self._factor = 1.0
        if keeps_each:
            self._factor = float(number or 1)
        elif choice.reduction == "mean" and has_zeros:
            self._factor = (number or 1) / choice.n_candidates
        self.names = [str(i) for i in range(choice.n_candidates)] if choice.choose_from is None else choice.choose_from
        self.by_name = choice.choose_from is not None

    def check(self, entry: Any) -> None:
        """Raise unless the choice can run as a plan's entry says.

        Raises:
            ChoiceError: Its reduction is one that no mixture, or no gates, can stand for; says what can.
        """
        selection, (choice,) = selection_of(entry), self._choice
        if selection.weights is None or choice.absent == "zeros":
            return
        low, high = choice.bounds
        if not isinstance(selection.active[0], int):  # sets of inputs
            if low == 0 or (low < high and choice.reduction in ("concat", "none")):
                what, mend = f"which are reduced by {choice.reduction!r}", "a number n_chosen"
                if low == 0:
                    what, mend = "none included", f"n_chosen as a number or bounds such as (1, {high})"
                raise ChoiceError(
                    f"choice {self.label!r} takes {in_words(choice.n_chosen)} of its inputs, {what}, and a gate cannot "
                    f"stand for none or for fewer; give it absent='zeros', or {mend}, or use another trainer"
                )
        elif self._reduction != "sum":
            raise MixtureError(
                f"choice {self.label!r} reduces {in_words(choice.n_chosen)} of its inputs by {choice.reduction!r}, "
                "for which a mixture of all inputs cannot stand; use 'sum' or 'mean', or absent='zeros', or n_chosen=1 "
                "with 'concat', or a trainer that samples"
            )

    def decided(self, positions: Sequence[int]) -> nn.Module:
        """Return the module that picks and reduces the inputs at these positions."""
        chosen = tuple(positions)
        if chosen not in self._decided:
            self._decided[chosen] = self._choice[0].resolve(list(chosen))
        return self._decided[chosen]

    def forward(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Make of the inputs, a list or where the choice names them a dict of tensors, what is selected."""
        selection = selection_of(self.entry)
        if selection.weights is None:
            return self.decided(selection.active[0])(inputs)
        if not isinstance(selection.active[0], int):
            return self._gated(selection, selection.weights, inputs)
        return self._mixture(selection, selection.weights, inputs)

    def _gated(self, selection: Selection, weights: torch.Tensor, inputs: Any) -> Any:
        check_weights(weights, len(selection.active), self.label)
        active = len(selection.active) - selection.detached
        outputs = {str(chosen): self.decided(chosen)(inputs) for chosen in selection.active[:active]}
        if torch.is_grad_enabled():
            with torch.no_grad():
                outputs |= {str(chosen): self.decided(chosen)(inputs) for chosen in selection.active[active:]}
        return weighted_sum(outputs, weights[: len(outputs)], self.label)

    def _mixture(self, selection: Selection, weights: torch.Tensor, inputs: Any) -> Any:
        self.check(selection)
        every = self._named(inputs)
        named = {self.names[i]: every[self.names[i]] for i in positions_of(selection, self.names, self.label)}
        tensors = list(named.values())
        if self._takes_mean:
            weights = weights_of_mean(weights)
        if self._factor != 1:
            weights = weights * self._factor
        if self._reduction != "sum":
            parts = [weighted(weight, x) for weight, x in zip(weights.unbind(), tensors, strict=True)]
            return torch.cat(parts, 1) if self._reduction == "concat" else parts
        if self.fast and all(can_be_fast(x, weights) and x.shape == tensors[0].shape for x in tensors):
            return fused_weighted_sum(weights, [Term(k, x) for k, x in enumerate(tensors)], Shared())
        return weighted_sum(named, weights, self.label)

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
