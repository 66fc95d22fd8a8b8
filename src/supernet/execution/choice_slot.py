"""How a choice of any kind runs: what each decision makes of it, alone or several of them weighted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.apart import Apart
from supernet.execution.mixture import mixed
from supernet.execution.plan import Plan
from supernet.execution.structure import mapped
from supernet.execution.two_paths import Gates
from supernet.nn import Choice

__all__ = ["ChoiceSlot"]


class ChoiceSlot(nn.Module):
    """Stands in the place of a choice of a kind of its own: runs what it becomes by the decision that the plan has.

    Where the plan has weights of the options (K,), what each option makes of the choice runs, and the outputs are
    mixed; where it has `Gates`, the active decision runs, and the others for their outputs only. Parameters, buffers
    and children are the choice's own, under the same names.

    Args:
        choice: in whose place it stands.
        plan: what it follows.
    """

    def __init__(self, choice: Choice, plan: Plan) -> None:
        super().__init__()
        self.label, self.plan = str(choice.label), plan
        self._parameters, self._buffers = dict(choice._parameters), dict(choice._buffers)
        self._modules.update(choice._modules)
        self._domain, self._resolve = choice.domain(), choice.resolve
        # Positions -> the module, and what of it the choice has made, which does not follow `train` by itself.
        self._resolved: dict[Any, tuple[nn.Module, list[nn.Module]]] = {}
        self._apart = Apart(self.label, self._domain.options)  # what is inside may be another path each time

    def resolved(self, decision: Any) -> nn.Module:
        """Return the module that stands here where a decision has been made, in the form that this one is in."""
        key = self._domain.positions(decision)
        if key not in self._resolved:
            module, inside = self._resolve(self._domain.decision(key)), {id(inner) for inner in self.modules()}
            self._resolved[key] = module, [inner for inner in module.modules() if id(inner) not in inside]
        module, made = self._resolved[key]
        for inner in made:
            inner.training = self.training
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what is decided, or what is weighted."""
        entry = self.plan[self.label]
        if isinstance(entry, torch.Tensor):
            return self._mixture(entry, args, kwargs)
        if isinstance(entry, Gates):
            return self._gated(entry, args, kwargs)
        return self.resolved(entry)(*args, **kwargs)

    def _mixture(self, weights: torch.Tensor, args: Any, kwargs: Any) -> Any:
        if self._domain.is_set:
            raise ChoiceError(
                f"choice {self.label!r} takes {self._domain}, of which no mixture is known; use a trainer that samples"
            )
        decisions = list(self._domain)
        outputs = {str(d): self._apart.run(str(d), self.resolved(d), args, kwargs) for d in decisions}
        return mixed(outputs, weights, self.label)

    def _gated(self, gates: Gates, args: Any, kwargs: Any) -> Any:
        active, *others = gates.decisions
        if not torch.is_grad_enabled():
            others = []
        with torch.no_grad():
            of_others = {str(d): self._apart.run(str(d), self.resolved(d), args, kwargs) for d in others}
        of_others = mapped(of_others, torch.Tensor.detach)
        outputs = {str(active): self._apart.run(str(active), self.resolved(active), args, kwargs), **of_others}
        return mixed(outputs, gates.weights[: len(outputs)], self.label)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resolved": {}}  # a copy has modules of its own
