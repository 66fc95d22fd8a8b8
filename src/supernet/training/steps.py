"""What an algorithm's steps are made of: from a batch and a plan to a loss, and from losses to steps of optimizers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.data.split import DataSplit
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution.structure import copied
from supernet.execution.supernet import Supernet
from supernet.processes.messages import Processes
from supernet.training.distributed import DistributedSupernet
from supernet.training.metrics import Means, Meter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from supernet.training.distillation import Teaching

__all__: list[str] = []


class OptimizerSteps:
    """Takes the gradients of `accumulate` batches into one step, for each optimizer on its own.

    It alone calls `zero_grad`, `backward` and `step`, so that a batch that was skipped leaves no stale gradient; where
    gradients are there already, `step` alone.

    Args:
        fabric: The Fabric of the processes.
        distributed: The supernet whose weights and architecture parameters are trained.
        accumulate: Number of batches in a step.
        finite_only: Whether a step is not taken where the norm of its gradient is NaN or infinite.

    Attributes:
        around: Returns what a step of an optimizer stands in. Default: in nothing.
        losses: How many losses there were since `clear`, by their optimizer, and by whether they had a gradient.
    """

    def __init__(
        self, fabric: Fabric, distributed: DistributedSupernet, accumulate: int, finite_only: bool = False
    ) -> None:
        self._fabric, self._distributed, self._module = fabric, distributed, distributed.module
        self._accumulate, self._finite_only = accumulate, finite_only
        self._backward = distributed.backward if distributed.supernet.is_reentrant else fabric.backward
        self._averages = accumulate > 1 or fabric.world_size > 1
        self._has_scaler = getattr(fabric.strategy.precision, "scaler", None) is not None
        self._pending: dict[Any, tuple[float | None, int]] = {}  # optimizer -> its clip, and batches so far
        self.around: Callable[[Any], AbstractContextManager[None]] | None = None
        self.losses: Counter[tuple[Any, bool]] = Counter()

    def add(self, loss: torch.Tensor, optimizer: Any, clip: float | None) -> None:
        """Add the gradient of one batch's loss; a loss without one counts as a batch that moves nothing."""
        batches = self._pending[optimizer][1] if optimizer in self._pending else 0
        if optimizer not in self._pending:
            optimizer.zero_grad()
        self._pending[optimizer] = clip, batches + 1
        self.losses[optimizer, loss.requires_grad] += 1
        if loss.requires_grad:
            self._backward(loss if self._accumulate == 1 else loss / self._accumulate)

    def add_pass(self, loss: torch.Tensor, optimizer: Any) -> None:
        """Add the gradient of a pass over a batch that has further passes; the last one's is added by `add`."""
        if optimizer not in self._pending:
            optimizer.zero_grad()
            self._pending[optimizer] = None, 0
        self.losses[optimizer, loss.requires_grad] += 1
        if loss.requires_grad:
            self._backward(loss if self._accumulate == 1 else loss / self._accumulate)

    def drop(self, optimizer: Any) -> None:
        """Forget what has been added since the optimizer's last step."""
        self._pending.pop(optimizer, None)

    def apply(self, optimizer: Any, *, synced: bool = True) -> torch.Tensor:
        """Take the optimizer's step, and return the norm of its gradient before clipping.

        Args:
            optimizer: An optimizer whose gradients have been added.
            synced: Whether the last backward pass has averaged the weights' gradients over the processes.
        """
        clip, batches = self._pending.pop(optimizer)
        if self._averages:
            self._average(optimizer, batches, synced)
        return self._step(optimizer, self._clip(optimizer, clip))

    def apply_given(self, optimizer: Any, clip: float | None) -> torch.Tensor:
        """Take the optimizer's step by the gradients that its parameters have, and return their norm before clipping.

        They are whole: of no loss that was added, averaged over the processes, and of no scaler's scale.
        """
        if self._has_scaler and hasattr(optimizer, "optimizer"):  # Fabric wraps it, and would take out the scale
            raise TrainingError(
                "precision='16-mixed' scales the gradients of the optimizers that fabric.setup_optimizers returned, so "
                "such a one takes steps down losses only: use optimizer_step, or 'bf16-mixed'"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.losses[optimizer, bool(parameters)] += 1
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        return self._step(optimizer, norm)

    def _step(self, optimizer: Any, norm: Any) -> torch.Tensor:
        if not self._finite_only or torch.isfinite(norm):
            optimizer.step() if self.around is None else self._step_inside(optimizer)
        return norm.detach()

    def _step_inside(self, optimizer: Any) -> None:
        assert self.around is not None, "asked before"
        with self.around(optimizer):
            optimizer.step()

    def _clip(self, optimizer: Any, clip: float | None) -> Any:
        """Clip the gradient, where that is asked for, and return its norm before."""
        if clip is not None:
            return self._fabric.clip_gradients(self._module, optimizer, max_norm=clip, error_if_nonfinite=False)
        if self._has_scaler:
            self._distributed.unscale(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def _average(self, optimizer: Any, batches: int, synced: bool) -> None:
        """Average gradients over the processes, and over the batches of which they are the sums."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        outside = [p for p in parameters if not synced or id(p) not in self._distributed.synced]
        self._distributed.average([p.grad for p in outside if p.grad is not None])
        if batches < self._accumulate:  # the last group of an epoch is smaller, or a batch was skipped
            for p in parameters:
                p.grad.mul_(self._accumulate / batches)

    @property
    def passes(self) -> int:
        """How many backward passes there were since `clear`."""
        return sum(count for (_, has_gradient), count in self.losses.items() if has_gradient)

    def waiting(self) -> list[Any]:
        """Return the optimizers whose gradients have not been applied."""
        return list(self._pending)

    def clear(self) -> None:
        """Forget gradients that have not been applied, and what there was before."""
        self._pending.clear()
        self.losses.clear()


class SkippedStep(Exception):
    """Leaves a step whose loss is not finite, where the user asked for that."""


class Steps:
    """What an algorithm's steps are made of: `forward`, `compute_loss`, `optimizer_step`, and what these stand in.

    Our loop inherits it, and sets the attributes.
    """

    device: torch.device
    processes: Processes
    supernet: Supernet
    distributed: DistributedSupernet
    loss: Any
    optimizer: Any
    scheduler: Any
    scheduler_interval: str
    weights: list[nn.Parameter]
    train_part: DataSplit
    valid_part: DataSplit
    meters: dict[str, Meter]
    means: Means
    teaching: Teaching | None
    accumulate: int
    on_nonfinite: str
    epoch: int
    step: int
    skipped_steps: int
    weights_moved: bool = False  # since somebody set it back
    _more_passes: bool = False  # over the batch, whose gradients are of the same step
    _steps: OptimizerSteps
    _forwards: Callable[[Any, Any], Any] | None  # how the model is called with X, where that is not model(X)
    _loss_changes_targets: bool
    _skips_gradients: bool
    _broken: torch.Tensor  # the first bad step that was noted

    def forward(self, X: Any, plan: Mapping[str, Any]) -> Any:
        """Run the supernet on a batch, its choices following the plan."""
        self.distributed.inputs = X
        X = self.distributed.prepared(X) if self.distributed.prepares else X
        with self.supernet.following(plan), nullcontext() if self.processes.count == 1 else self._syncing():
            return self.distributed.module(X) if self._forwards is None else self._forwards(self.distributed.module, X)

    def _syncing(self) -> AbstractContextManager[None]:
        """Let a pass take part in averaging the weights' gradients over the processes only if it gives them."""
        gives_gradients = any(w.requires_grad for w in self.weights[:1])
        return self.distributed.no_grad_sync(not (gives_gradients and self._completes_a_step()))

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
            self._skip_unless_finite(loss)
        else:
            self.check_finite(loss, f"the loss on the {part} part")
        share = 1.0 if self.processes.count == 1 else self._part(part).share
        self.meters[part].update(loss, output, target, self.distributed.inputs, counts=share > 0)
        return loss if share == 1.0 else self.shared(part, loss)

    def _skip_unless_finite(self, loss: torch.Tensor) -> None:
        finite = self.processes.exchange("whether a loss is finite", int(torch.isfinite(loss).all()))
        if not all(of_one for (of_one,) in finite):
            raise SkippedStep

    def optimizer_step(self, loss: torch.Tensor, optimizer: Any, *, clip: float | None = None) -> None:
        """Take one step of an optimizer down the gradient of the loss; of `accumulate` losses, if that is not 1.

        A loss without a gradient (of a path without parameters, or where stochastic depth left out all that has
        some) is a batch that moves nothing.
        """
        self._steps.add(loss, optimizer, clip)
        if self.accumulate == 1 or self._completes_a_step():
            self._end_step(optimizer, self._steps.apply(optimizer))

    @contextmanager
    def more_passes_follow(self) -> Iterator[None]:
        """Let passes in this context be some of a batch, after which others follow: see `add_gradient`."""
        self._more_passes = True
        try:
            yield
        finally:
            self._more_passes = False

    def add_gradient(self, loss: torch.Tensor, optimizer: Any) -> None:
        """Add the gradient of one pass over a batch to the step that `optimizer_step` takes by the last pass over it.

        It stands, as its forward pass does, in `more_passes_follow`. The step is down the sum of these losses.
        """
        self._steps.add_pass(loss, optimizer)

    def apply_gradients(self, optimizer: Any, *, clip: float | None = None) -> None:
        """Take one step of an optimizer by the gradients that its parameters have, which come from no `optimizer_step`.

        They must be the same in all processes. All else is as in `optimizer_step`: the step is skipped where
        `on_nonfinite="skip"` and they are not finite, and their norm is recorded.
        """
        self._end_step(optimizer, self._steps.apply_given(optimizer, clip))

    def losses_without_gradient(self) -> dict[str, int]:
        """Return what is to be trained -> how many losses there were, where none of them had a gradient for it."""
        losses, found = self._steps.losses, {}
        for optimizer, has_gradient in losses:
            if not has_gradient and not losses[optimizer, True]:
                what = "weights" if optimizer is self.optimizer else "architecture parameters"
                found[what] = losses[optimizer, False]
        if not self.weights:  # all are to stay as they are
            found.pop("weights", None)
        return found

    def _end_step(self, optimizer: Any, norm: torch.Tensor) -> None:
        if self._skips_gradients and not torch.isfinite(norm):
            self.skipped_steps += 1
            return
        self.weights_moved |= optimizer is self.optimizer
        self.means.update(f"{'weight' if optimizer is self.optimizer else 'architecture'}_gradient_norm", norm)
        if optimizer is self.optimizer and self.scheduler is not None and self.scheduler_interval == "step":
            self.scheduler.step()  # no plateau: that was refused

    def _apply_waiting(self) -> None:
        """Take the steps whose last batch was skipped, or did not come."""
        for optimizer in self._steps.waiting():
            self._end_step(optimizer, self._steps.apply(optimizer, synced=False))

    def _completes_a_step(self) -> bool:
        """Say whether this batch is the last of those whose gradients make one step."""
        is_last = (self.step + 1) % self.accumulate == 0 or self.step + 1 == self.train_part.length
        return is_last and not self._more_passes

    def frozen_weights(self) -> AbstractContextManager[None]:
        """Compute no gradient of the weights in this context, and bring running statistics back after it.

        What an architecture step stands in: validation data moves nothing on the weights' side.
        """
        return self.supernet.frozen_weights()

    def mean_over_processes(self, number: Any, part: str | None = None) -> float:
        """Return the mean of a number, or of a tensor of one, over all processes; this waits for the device.

        Args:
            number: The number as this process has it.
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
            NonFiniteError: Names what it is, the epoch and the step.
        """
        if self.device.type != "cpu":
            self._note_unless_finite(tensor)
        elif not torch.isfinite(tensor).all():
            raise self._non_finite(what, self.step)

    def _note_unless_finite(self, tensor: torch.Tensor) -> None:
        bad = torch.isfinite(tensor.detach()).all().logical_not()
        self._broken = torch.where(bad, self._broken.clamp(max=self.step), self._broken)

    def _check_noted(self) -> None:
        step = float(self._broken)
        if step < math.inf:
            raise self._non_finite("the loss, a term or an architecture parameter", int(step))

    def _non_finite(self, what: str, step: int) -> NonFiniteError:
        return NonFiniteError(
            f"{what} is not finite (NaN or infinite) in epoch {self.epoch + 1}, step {step + 1}; "
            f"{self._why_not_finite()}"
        )

    def _why_not_finite(self) -> str:
        if self.teaching is not None and (of_teacher := self.teaching.why_not_finite()) is not None:
            return of_teacher
        if labels := ", ".join(map(repr, self.supernet.labels_not_finite())):
            return f"so are the weights that the plan has for choice {labels}, which is where to look first"
        return "the learning rate may be too high, or the data may hold such values"
