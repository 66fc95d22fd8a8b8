"""Choices that run as one path with binary gates around it (arXiv 1812.00332).

A gate multiplies a candidate's output: 1 for the active one, 0 for the others. What is wanted of the others is
the gate's gradient only, `<dL/dm, o_j(x)>`, so they run without a graph: none of their activations is held but
the output, and none of their weights has a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from supernet.errors import ChoiceError
from supernet.execution.apart import Apart
from supernet.execution.mixture import mixed
from supernet.execution.path import PathInput, PathLayer
from supernet.execution.plan import Plan
from supernet.execution.structure import copied, mapped
from supernet.nn import InputChoice, LayerChoice
from supernet.nn.domain import in_words

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

    def __init__(self, choice: LayerChoice, plan: Plan) -> None:
        super().__init__(choice, plan)
        # What runs inside a candidate is another path each time.
        with_paths = [n for n, c in self.candidates.items() if any(isinstance(m, PathLayer) for m in c.modules())]
        self._apart = Apart(self.label, with_paths)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active candidate, and the others for their outputs only."""
        gates = self.plan[self.label]
        if not isinstance(gates, Gates):
            return super().forward(*args, **kwargs)
        active, *others = gates.decisions
        candidates, apart = self.candidates, self._apart
        if not others or not torch.is_grad_enabled():
            self.plan.check_gradient(self.label)
            return mixed({active: candidates[active](*args, **kwargs)}, gates.weights[:1], self.label)
        # Before the active one, which may change the input, as it does where it runs alone.
        with torch.no_grad():
            of_others = {other: apart.run(other, candidates[other], args, kwargs) for other in others}
        of_others = mapped(of_others, torch.Tensor.detach)  # one of which may be the input itself
        if apart.may_change(active, candidates[active]):
            of_others = copied(of_others)
        outputs = {active: apart.run_last(active, candidates[active], args, kwargs), **of_others}
        return mixed(outputs, gates.weights, self.label)


class GatedInput(PathInput):
    """Stands in an `InputChoice`'s place: the same, over what each of its decisions makes of the inputs.

    Raises:
        ChoiceError: the choice's decisions make things that cannot be added up: None, or more or fewer channels.
    """

    def __init__(self, choice: InputChoice, plan: Plan) -> None:
        super().__init__(choice, plan)
        low, high = choice.bounds
        if choice.absent == "omitted" and (low == 0 or (low < high and choice.reduction in ("concat", "none"))):
            what, mend = f"which are reduced by {choice.reduction!r}", "a number n_chosen"
            if low == 0:
                what, mend = "none included", f"n_chosen as a number or bounds such as (1, {high})"
            raise ChoiceError(
                f"choice {self.label!r} takes {in_words(choice.n_chosen)} of its inputs, {what}, and a gate cannot "
                f"stand for none or for fewer; give it absent='zeros', or {mend}, or use another trainer"
            )

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
