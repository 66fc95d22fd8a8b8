"""The record of an epoch: what its books say, and what they must not say."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from supernet.errors import NonFiniteError, TrainingError
from supernet.training.health import peak_memory
from supernet.training.metrics import Means

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []

MANY_LOSSES = 20  # that all are without a gradient is then no chance of stochastic depth


def record_of(trainer: TrainingLoop, seconds: float, steps: int) -> dict[str, Any]:
    """Return the record of the epoch that a trainer has trained, and step its scheduler.

    Args:
        trainer: At the end of the epoch.
        seconds: Seconds that its steps have taken.
        steps: Number of them, of this process.

    Raises:
        NonFiniteError: A loss or a weight is NaN or infinite.
        TrainingError: There was no step, or nothing was trained.
    """
    trainer._check_noted()
    metrics = trainer._read_meters()
    _check_epoch(trainer, metrics, steps)
    _step_scheduler(trainer, metrics)
    cost = {"seconds": seconds, "steps_per_second": steps / seconds, "peak_memory_mib": peak_memory(trainer.device)}
    return {
        "epoch": trainer.epoch + 1,
        **metrics,
        **trainer.means.read(),
        "skipped_steps": trainer.skipped_steps,
        "cost": cost,
        **trainer._record_of_choices(),
    }


def close_books(trainer: TrainingLoop) -> None:
    """Let the means of the next epoch begin."""
    for meter in trainer.meters.values():
        meter.reset()
    trainer.means = Means()


def _check_epoch(trainer: TrainingLoop, metrics: Mapping[str, float], steps: int) -> None:
    if "train_loss" not in metrics and steps and not trainer.skipped_steps:
        raise TrainingError(
            f"no step of epoch {trainer.epoch + 1} has computed a loss on the training part; let a step take it "
            'from compute_loss("train", output, y)'
        )
    if "train_loss" not in metrics and steps:
        raise NonFiniteError(
            f"the loss of each step of epoch {trainer.epoch + 1} is NaN or infinite, so all were skipped; "
            f"{trainer._why_not_finite()}"
        )
    if "train_loss" not in metrics:
        raise TrainingError(
            "an epoch had no step: the training part has fewer samples than one batch; lower batch_size"
        )
    if trainer.teaching is not None and "train_task_loss" not in metrics:
        raise TrainingError(
            f"no step of epoch {trainer.epoch + 1} was taught, though there is a distillation; let steps take batches "
            "from train_part, as `train_epoch` does, and their loss from compute_loss"
        )
    if trainer.on_nonfinite == "stop":  # a gradient of the last step may have been none that is finite
        for name, p in trainer.model.named_parameters():
            if p.requires_grad and not torch.isfinite(p).all():
                raise trainer._non_finite(f"the weight {name}", trainer.step - 1)
    is_last = trainer.epoch + 1 == trainer.num_epochs and steps == trainer.step  # and all of it ran in this process
    for what, count in trainer.losses_without_gradient().items():
        if count >= MANY_LOSSES or (count and is_last):
            raise TrainingError(
                f"no loss of this run had a gradient for the {what}, so nothing is trained; is the output "
                "detached, or computed without a gradient?"
            )


def _step_scheduler(trainer: TrainingLoop, metrics: Mapping[str, float]) -> None:
    with warnings.catch_warnings():
        # In an epoch that was resumed after its training part, the optimizer has stepped in another process.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        if isinstance(trainer.scheduler, ReduceLROnPlateau):
            trainer.scheduler.step(metrics.get("valid_loss", metrics["train_loss"]))
        elif trainer.scheduler is not None and trainer.scheduler_interval == "epoch":
            trainer.scheduler.step()
