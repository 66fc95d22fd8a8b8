"""From the losses of batches to steps of optimizers: gradients are added up, averaged, clipped and applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from supernet.execution.supernet import Supernet

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []


@dataclass
class _Pending:
    """An optimizer's gradients that have not been applied yet."""

    optimizer: Any
    clip: float | None
    batches: int = 0


class OptimizerSteps:
    """Takes the gradients of `accumulate` batches into one step, for each optimizer on its own.

    It alone calls `zero_grad`, `backward` and `step`, so that a batch that was skipped leaves no stale gradient.

    Args:
        fabric: of the processes.
        supernet: whose weights and architecture parameters are trained.
        accumulate: batches a step.

    Attributes:
        passes: backward passes so far.
    """

    def __init__(self, fabric: Fabric, supernet: Supernet, accumulate: int) -> None:
        self._fabric, self._supernet, self._accumulate = fabric, supernet, accumulate
        self._pending: dict[int, _Pending] = {}
        self.passes = 0

    def add(self, loss: torch.Tensor, optimizer: Any, clip: float | None) -> None:
        """Add the gradient of one batch's loss; a loss without one counts as a batch that moves nothing."""
        if id(optimizer) not in self._pending:
            optimizer.zero_grad()
            self._pending[id(optimizer)] = _Pending(optimizer, clip)
        pending = self._pending[id(optimizer)]
        pending.clip, pending.batches = clip, pending.batches + 1
        if loss.requires_grad:
            self.passes += 1
            self._supernet.backward(loss / self._accumulate if self._accumulate > 1 else loss)

    def apply(self, optimizer: Any, *, synced: bool = True, finite_only: bool = False) -> torch.Tensor:
        """Take the optimizer's step, and return the norm of its gradient before clipping.

        Args:
            optimizer: one whose gradients have been added.
            synced: whether the last backward pass has averaged the weights' gradients over the processes.
            finite_only: whether the step is not taken where the norm is NaN or infinite.
        """
        pending = self._pending.pop(id(optimizer))
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        outside = parameters if not synced else [p for p in parameters if id(p) not in self._supernet.synced]
        self._supernet.average([p.grad for p in outside])
        if pending.batches < self._accumulate:  # the last group of an epoch is smaller, or a batch was skipped
            for p in parameters:
                p.grad.mul_(self._accumulate / pending.batches)
        supernet = self._supernet
        norm = supernet.norm(optimizer) if pending.clip is None else supernet.clip(optimizer, pending.clip)
        if not finite_only or torch.isfinite(norm):
            optimizer.step()
        return norm.detach()

    def waiting(self) -> list[Any]:
        """Return the optimizers whose gradients have not been applied."""
        return [pending.optimizer for pending in self._pending.values()]

    def clear(self) -> None:
        """Forget gradients that have not been applied."""
        self._pending.clear()
