"""How a choice of any kind runs: what each decision makes of it, alone or several of them weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError, MixtureError
from supernet.execution.apart import Apart
from supernet.execution.beginnings import Beginnings
from supernet.execution.plan import Plan
from supernet.execution.selection import check_weights, is_mixture, selection_of
from supernet.execution.slot import Slot, weighted_sum
from supernet.execution.structure import mapped
from supernet.nn import Choice

__all__ = ["ChoiceSlot"]


class ChoiceSlot(Slot):
    """Stands in the place of a choice of a kind of its own, and runs what it becomes by what the plan has: `Selection`.

    Weights alone (K,) are a mixture of what each option makes of the choice, or where it takes sets of them, what its
    `mixed` gives; in a `Selection` stand decisions.
    Parameters, buffers and children are the choice's own, under the same names.

    Args:
        choice: The choice in whose place it stands.
        plan: The plan that it follows.
    """

    def __init__(self, choice: Choice, plan: Plan) -> None:
        super().__init__(choice, plan)
        self._parameters, self._buffers = choice._parameters, choice._buffers  # the very same, wherever they are moved
        self._modules.update(choice._modules)
        self._domain, self._resolve, self._kind = choice.domain(), choice.resolve, type(choice).__name__
        mixes_sets = self._domain.is_set and type(choice).mixed is not Choice.mixed
        self._mixed = choice.mixed if mixes_sets else None
        # Positions -> the module, and what of it the choice has made, which does not follow `train` by itself.
        self._resolved: dict[Any, tuple[nn.Module, list[nn.Module]]] = {}
        self._apart = Apart(self.label, self._domain.options)  # what is inside may be another path each time
        self._beginnings = Beginnings(choice.branches(), self.label) if choice.is_sequence else None

    def resolved(self, decision: Any) -> nn.Module:
        """Return the module that stands here where a decision has been made, in the form that this one is in."""
        key = self._domain.positions(decision)
        if key not in self._resolved:
            module, inside = self._resolve(self._domain.decision(key)), {id(inner) for inner in self.modules()}
            self._check_weights(module)
            self._resolved[key] = module, [inner for inner in module.modules() if id(inner) not in inside]
        module, made = self._resolved[key]
        for inner in made:
            inner.training = self.training
        return module

    def _check_weights(self, module: nn.Module) -> None:
        known = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        new = [name for name, t in (*module.named_parameters(), *module.named_buffers()) if id(t) not in known]
        if new:
            raise ChoiceError(
                f"choice {self.label!r} makes new weights in resolve() ({', '.join(new[:3])}), which no search could "
                "train; make them in its constructor, and let resolve() put them together"
            )

    def check(self, entry: Any) -> None:
        """Raise unless the choice can run as a plan's entry says.

        Raises:
            ChoiceError: It is a set, of which no mixture is known; or `resolve` makes weights.
        """
        every = range(len(self._domain.options))
        for option in every:  # each once, with as many others as there must be
            others = [other for other in every if other != option][: max(self._domain.bounds[0], 1) - 1]
            self.resolved(self._domain.decision([option, *others]))
        self._check_mixture(entry)

    def _check_mixture(self, entry: Any) -> None:
        if self._domain.is_set and self._mixed is None and isinstance(entry, torch.Tensor):
            raise MixtureError(
                f"choice {self.label!r} takes {self._domain}, of which no mixture is known; use a trainer that samples"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what is selected."""
        entry = self.entry
        selection = selection_of(entry)
        if selection.weights is None:
            return self.resolved(selection.active[0])(*args, **kwargs)
        self._check_mixture(entry)
        if self._mixed is not None and isinstance(entry, torch.Tensor):
            check_weights(entry, len(self._domain.options), self.label)
            return self._mixed(entry, *args, **kwargs)
        decisions = list(self._domain) if isinstance(entry, torch.Tensor) else selection.active
        check_weights(selection.weights, len(decisions), self.label)
        num_active = len(decisions) - selection.detached
        if not torch.is_grad_enabled():
            decisions = decisions[:num_active]
        if self._beginnings is None:
            outputs = self._side_by_side(decisions, num_active, args, kwargs)
        else:
            positions = [self._domain.positions(decision)[0] for decision in decisions]
            outputs = dict(
                zip(map(str, decisions), self._beginnings.outputs(positions, num_active, *args, **kwargs), strict=True)
            )
        return weighted_sum(outputs, selection.weights[: len(outputs)], self.label)

    def _side_by_side(self, decisions: Sequence[Any], num_active: int, args: Any, kwargs: Any) -> dict[str, Any]:
        running = {str(decision): self.resolved(decision) for decision in decisions}
        names = list(running)
        with torch.no_grad():
            outputs = {name: self._apart.run(name, running[name], args, kwargs) for name in names[num_active:]}
        outputs = mapped(outputs, torch.Tensor.detach)
        return {name: self._apart.run(name, running[name], args, kwargs) for name in names[:num_active]} | outputs

    def explain(self) -> str:
        """Return what the choice takes, and how it runs."""
        is_mixed = is_mixture(self.plan.get(self.label))
        how = "what each decision makes of it is mixed" if is_mixed else "what the decision makes of it"
        if is_mixed and self._beginnings is not None:
            how = "each module runs once, and what comes out after each option is mixed"
        return f"  {self._kind} ({self._domain}): {how}, as it is"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resolved": {}}  # a copy has modules of its own
