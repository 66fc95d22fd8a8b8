"""Modules in the place of choices whose `alpha` scripts read, train and assign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from supernet.errors import TrainingError
from supernet.execution import Plan
from supernet.execution.activation_checkpoints import is_checkpointed
from supernet.execution.fast.shared import is_in_a_pass

__all__ = ["HasAlpha"]


class HasAlpha(nn.Module):
    """What a choice becomes that follows `alpha`, which is no parameter of the model: weights alone are in there.

    In a trainer of one's own each module has its own; in ours it is the trainer's. Ours computes what follows from it
    for all choices at once, for its own passes; in any other pass, such as `model(X)`, each module does so itself.
    """

    plan: Plan
    label: str
    tells_passes_apart = True

    def _take_alpha(self, count: int, plan: Plan | None) -> None:
        self.name = self.label
        self._alpha_of_trainer = plan is not None
        if plan is None:
            self.alpha: Any = nn.Parameter(1e-3 * torch.randn(count))

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "alpha":
            super().__setattr__(name, value)
        elif self._alpha_of_trainer and "alpha" in self.__dict__:
            raise TrainingError(
                f"alpha of choice {self.label!r} is the trainer's; assign it in place: module.alpha.data.copy_(values)"
            )
        else:
            self.__dict__["alpha"] = value

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        alpha = self.__dict__.get("alpha")
        if isinstance(alpha, torch.Tensor) and not self._alpha_of_trainer:
            alpha.data = alpha.data.to(fn(alpha.data).device)
        return self

    def _computes_its_own(self) -> bool:
        """Say whether no trainer of ours has computed what the pass that runs follows."""
        return not self._alpha_of_trainer or not (is_in_a_pass() or is_checkpointed())
