"""Whether an optimizer and its scheduler can train what they are given for."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from supernet.errors import TrainingError

__all__: list[str] = []

logger = logging.getLogger("supernet")


def check_optimizer(optimizer: Optimizer, model: nn.Module, loss: Any = None) -> None:
    """Raise `TrainingError` unless the optimizer has every parameter of model and loss that is to be trained."""
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(f"optimizer is a torch.optim.Optimizer, not {type(optimizer).__name__}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TrainingError(
            f"{type(optimizer).__name__} evaluates the loss several times a step, by a closure, which no step here "
            "gives it; use an optimizer whose step() needs none, such as SGD or Adam"
        )
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    of_loss = loss.named_parameters() if isinstance(loss, nn.Module) else ()
    named = [*model.named_parameters(), *((f"loss.{name}", p) for name, p in of_loss)]
    lacking = [name for name, p in named if p.requires_grad and id(p) not in present]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise TrainingError(
            f"the optimizer lacks parameters of the model or the loss: {shown}; make it from model.parameters() (and "
            "loss.parameters()), and set requires_grad=False on those that are to stay as they are"
        )


def check_scheduler(
    scheduler: LRScheduler | ReduceLROnPlateau | None,
    interval: str,
    num_epochs: int,
    batches: int | None,
    accumulate: int = 1,
    optimizer: Optimizer | None = None,
) -> None:
    """Raise `TrainingError` unless the scheduler can be stepped so, and warn if its own length speaks against it."""
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise TrainingError(f"scheduler is one of torch.optim.lr_scheduler or None, not {scheduler!r}")
    if optimizer is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise TrainingError(
            f"the {type(scheduler).__name__} was made for another optimizer, whose learning rate trains nothing here; "
            "make it from the optimizer that is given"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != "min":
        raise TrainingError(
            f"ReduceLROnPlateau is shown the loss, which is to fall, but its mode is {scheduler.mode!r}; give 'min'"
        )
    if interval not in ("epoch", "step"):
        raise TrainingError(f"scheduler_interval is 'epoch' or 'step', not {interval!r}")
    if isinstance(scheduler, ReduceLROnPlateau) and interval == "step":
        raise TrainingError("ReduceLROnPlateau waits for the loss of an epoch; give scheduler_interval='epoch'")
    if isinstance(scheduler, OneCycleLR) and interval == "step" and batches is not None:
        steps_taken = num_epochs * -(-batches // accumulate)
        what = f"OneCycleLR is made for total_steps={scheduler.total_steps}, and {num_epochs} epochs have {steps_taken}"
        if scheduler.total_steps < steps_taken:  # its own error would come in the middle
            raise TrainingError(f"{what}; give it total_steps={steps_taken}")
        if scheduler.total_steps > steps_taken + 1:
            logger.warning("%s, so that it does not come to its end; did you mean total_steps=%d?", what, steps_taken)
        return
    lengths = (getattr(scheduler, name, None) for name in ("total_steps", "T_max", "total_iters"))
    length = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if length is None or batches is None:
        return
    steps = {"epoch": num_epochs, "step": num_epochs * -(-batches // accumulate)}
    other = "step" if interval == "epoch" else "epoch"
    if abs(math.log(length / steps[other])) < abs(math.log(length / steps[interval])):
        logger.warning(
            "%s is made for %d steps, and scheduler_interval=%r steps it %d times in %d epochs; did you mean %r (%d)?",
            *(type(scheduler).__name__, length, interval, steps[interval], num_epochs, other, steps[other]),
        )
