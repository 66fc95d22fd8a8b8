"""From the losses of batches to steps of optimizers: gradients are added up, averaged, clipped and applied."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.data.split import DataSplit
from supernet.errors import NonFiniteError
from supernet.execution.structure import copied
from supernet.execution.supernet import Supernet
from supernet.processes.messages import Processes
from supernet.training.metrics import Means, Meter

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


class SkippedStep(Exception):
    """Leaves a step whose loss is not finite, where the user asked for that."""


class Steps:
    """What an algorithm's steps are made of: `forward`, `compute_loss`, `optimizer_step`, and what these stand in.

    Our loop inherits it, and sets the attributes.
    """

    device: torch.device
    processes: Processes
    supernet: Supernet
    loss: Any
    optimizer: Any
    scheduler: Any
    scheduler_interval: str
    weights: list[nn.Parameter]
    train_part: DataSplit
    valid_part: DataSplit
    meters: dict[str, Meter]
    means: Means
    accumulate: int
    on_nonfinite: str
    epoch: int
    step: int
    skipped_steps: int
    _steps: OptimizerSteps
    _without_gradient: dict[str, int]  # what is trained -> losses so far, if none of them had a gradient
    _loss_changes_targets: bool
    _skips_gradients: bool
    _broken: torch.Tensor  # the first bad step that was noted

    def loss_of(self, output: Any, target: Any) -> torch.Tensor:
        """Return the loss, and leave the target as it is."""
        return self.loss(output, copied(target) if self._loss_changes_targets else target)

    def shared(self, part: str, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss, its gradient times this process's share of the batch of "train" or "valid".

        So the mean of the processes' gradients is that of the mean over all their samples, where some have fewer.
        """
        share = self._part(part).share
        return loss if share == 1.0 else loss + (share - 1.0) * (loss - loss.detach())

    def _part(self, name: str) -> DataSplit:
        return self.train_part if name == "train" else self.valid_part

    def compute_loss(self, part: str, output: Any, target: Any) -> torch.Tensor:
        """Return the loss, and take it and the metrics into the epoch's means of "train" or "valid".

        Its gradient is that of `shared`.
        """
        loss = self.loss_of(output, target)
        if self.on_nonfinite == "skip":
            finite = self.processes.exchange("whether a loss is finite", int(torch.isfinite(loss).all()))
            if not all(of_one for (of_one,) in finite):
                raise SkippedStep
        else:
            self.check_finite(loss, f"the loss on the {part} part")
        self.meters[part].update(loss, output, target, self.supernet.inputs, counts=self._part(part).share > 0)
        return self.shared(part, loss)

    def optimizer_step(self, loss: torch.Tensor, optimizer: Any, *, clip: float | None = None) -> None:
        """Take one step of an optimizer down the gradient of the loss; of `accumulate` losses, if that is not 1.

        A loss without a gradient (of a path without parameters, or where stochastic depth left out all that has
        some) is a batch that moves nothing.
        """
        self._steps.add(loss, optimizer, clip)
        what = "weights" if optimizer is self.optimizer else "architecture parameters"
        expects_none = optimizer is self.optimizer and not self.weights  # all are to stay as they are
        has_gradient = loss.requires_grad or expects_none or self._without_gradient.get(what) == 0
        self._without_gradient[what] = 0 if has_gradient else self._without_gradient.get(what, 0) + 1
        if self._completes_a_step():
            self._apply(optimizer)

    def _apply(self, optimizer: Any, *, synced: bool = True) -> None:
        norm = self._steps.apply(optimizer, synced=synced, finite_only=self._skips_gradients)
        if self._skips_gradients and not torch.isfinite(norm):
            self.skipped_steps += 1
            return
        if optimizer is not self.optimizer:
            self.means.update("architecture_gradient_norm", norm)
            return
        self.means.update("weight_gradient_norm", norm)
        if self.scheduler is not None and self.scheduler_interval == "step":
            self.scheduler.step()  # no plateau: that was refused

    def _apply_waiting(self) -> None:
        """Take the steps whose last batch was skipped, or did not come."""
        for optimizer in self._steps.waiting():
            self._apply(optimizer, synced=False)

    def _completes_a_step(self) -> bool:
        """Say whether this batch is the last of those whose gradients make one step."""
        return (self.step + 1) % self.accumulate == 0 or self.step + 1 == self.train_part.length

    def frozen_weights(self) -> AbstractContextManager[None]:
        """Compute no gradient of the weights in this context, and bring running statistics back after it.

        What an architecture step stands in: validation data moves nothing on the weights' side.
        """
        return self.supernet.frozen_weights()

    def mean_over_processes(self, number: Any, part: str | None = None) -> float:
        """Return the mean of a number, or of a tensor of one, over all processes; this waits for the device.

        Args:
            number: of this process.
            part: "train" or "valid" where it is a mean over samples of that part's batch: then the result is the mean
                over the samples of all.
        """
        share = 1.0 if part is None else self._part(part).share
        value = float(torch.as_tensor(number).detach()) * share if share else 0.0
        return self.processes.mean("the mean of a number", value)

    def check_finite(self, tensor: torch.Tensor, what: str) -> None:
        """Stop if the tensor has a NaN or an infinity.

        On a CPU at once. Elsewhere asking would make the step wait for the device, so the first bad step is
        noted there and asked for at log lines, before a checkpoint, and at the end of the epoch.

        Raises:
            NonFiniteError: names what it is, the epoch and the step.
        """
        if self.device.type == "cpu":
            if not torch.isfinite(tensor).all():
                raise self._non_finite(what, self.step)
        else:
            bad = torch.isfinite(tensor.detach()).all().logical_not()
            self._broken = torch.where(bad, self._broken.clamp(max=self.step), self._broken)

    def _check_noted(self) -> None:
        step = float(self._broken)
        if step < math.inf:
            raise self._non_finite("the loss or an architecture parameter", int(step))

    def _non_finite(self, what: str, step: int) -> NonFiniteError:
        return NonFiniteError(
            f"{what} is not finite (NaN or infinite) in epoch {self.epoch + 1}, step {step + 1}; the learning rate may "
            "be too high, or the data may hold such values"
        )
