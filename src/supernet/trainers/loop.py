"""The loop that our trainers share: data, device, epochs, metrics, files. An algorithm adds its steps."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from supernet.errors import NonFiniteError, TrainingError
from supernet.execution import Plan, replace_input_choice, replace_layer_choice, restore
from supernet.execution.memory_format import channels_last_inputs, choose_memory_format
from supernet.execution.replace import check_not_taken
from supernet.nn import InputChoice, LayerChoice
from supernet.space import SearchSpace
from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.data import Data, first_batch, loaders_of_two_parts, repeated, split_batch
from supernet.trainers.fabric import new_fabric
from supernet.trainers.metrics import Meter, Metrics
from supernet.trainers.progress import ProgressBar, written
from supernet.trainers.run_directory import RunDirectory
from supernet.trainers.state import Buffers, held, seeded

__all__ = ["LoopOptions", "SupernetTrainer"]

logger = logging.getLogger("supernet")


class LoopOptions(TypedDict, total=False):
    """The keyword arguments of `SupernetTrainer`, which every trainer takes; they are described there."""

    valid_dataset: Data | None
    batch_size: int
    workers: int
    scheduler: LRScheduler | ReduceLROnPlateau | None
    grad_clip: float | None
    log_frequency: int | None
    device: str | torch.device | None
    precision: str
    seed: int
    run_dir: str | os.PathLike[str] | None
    progress: bool


class SupernetTrainer(BaseOneShotTrainer):
    """What our trainers inherit; a new algorithm is its plan, its steps and its read-off.

    A subclass calls `super().__init__`, which checks everything and leaves the model as it is; makes what it
    trains; and calls `take_over`. It writes `train_step` (or `train_epoch`, where its steps alternate
    otherwise), in which it calls `forward`, `measure` and `descend`, and it writes `export`.

    Args:
        model: a module with choices.
        loss: `(output, target) -> tensor`, one number.
        metrics: `(output, target) -> number or dict of numbers`, a torchmetrics `Metric` or
            `MetricCollection`, or None.
        optimizer: of the model's parameters.
        num_epochs: how many times `fit` goes over the training part.
        dataset: a torch Dataset or DataLoader. A random half, drawn by the seed, trains the weights and the
            other half the architecture, unless `valid_dataset` is given.
        valid_dataset: what trains the architecture. Default: half of `dataset`.
        batch_size: samples a batch, where `dataset` is not a loader. Default: 64.
        workers: processes that load data. Default: 0.
        scheduler: of the optimizer's learning rate, stepped once an epoch.
        grad_clip: the largest norm of the weights' gradient; None does not clip. Default: 5.
        log_frequency: steps between log lines. Default: a line an epoch.
        device: such as "cpu" or "cuda:1". Default: an accelerator where there is one.
        precision: as Lightning Fabric names it, such as "bf16-mixed". Default: "32-true", which computes in
            the model's own dtype.
        seed: of the split, the order of the data, the architecture parameters, and all that is drawn
            during `fit`. Default: 0.
        run_dir: a directory for metrics, the architecture, the network's weights and plots.
        progress: whether to show a bar where there is a terminal.

    Attributes:
        space: the model's `SearchSpace`.
        history: one dict an epoch, as in `metrics.jsonl`.

    Raises:
        TrainingError: the model has no choices, the optimizer lacks parameters of it, or an argument cannot be.
        TakenOverError: another trainer has taken the model over.
        DataError: the data cannot be split or read.
        SpaceError: one label means two different choices.
            After any of these the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        valid_dataset: Data | None = None,
        batch_size: int = 64,
        workers: int = 0,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        grad_clip: float | None = 5.0,
        log_frequency: int | None = None,
        device: str | torch.device | None = None,
        precision: str = "32-true",
        seed: int = 0,
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.space = SearchSpace(model)
        check_not_taken(model)
        if not self.space:
            raise TrainingError(
                f"{type(model).__name__} has no choices to search; mark some by LayerChoice or InputChoice, or train "
                "it as it is by supernet.train"
            )
        check_optimizer(optimizer, model)
        for name, number in {"num_epochs": num_epochs, "batch_size": batch_size}.items():
            if not isinstance(number, int) or number < 1:
                raise TrainingError(f"{name} is a number from 1 on, not {number!r}")
        self.fabric = new_fabric(device, precision)
        self.device = self.fabric.device
        self.model = model
        self.loss = loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.num_epochs = num_epochs
        self.scheduler = scheduler
        self.grad_clip = grad_clip
        self.log_frequency = log_frequency
        self.seed = seed
        self.progress = progress
        self.meters = {part: Meter(metrics, self.device) for part in ("train", "valid")}
        self.history: list[dict[str, Any]] = []
        self.nas_modules: list[tuple[str, nn.Module]] = []
        self.epoch = self.step = 0
        self._plan = Plan()
        self._channels_last = False
        self._given_optimizer = optimizer  # what Fabric wraps
        train_loader, valid_loader = loaders_of_two_parts(
            dataset, valid_dataset, batch_size=batch_size, workers=workers, seed=seed
        )
        self._trial_X, self._trial_y = self.fabric.to_device(split_batch(first_batch(train_loader)))
        self.train_loader: Any
        self.valid_loader: Any
        self.train_loader, self.valid_loader = self.fabric.setup_dataloaders(train_loader, valid_loader)
        self._run = None if run_dir is None else RunDirectory(run_dir)

    def take_over(
        self,
        layer: Callable[[LayerChoice, Plan], nn.Module],
        input: Callable[[InputChoice, Plan], nn.Module],
        plan: dict[str, Any],
    ) -> None:
        """Put modules that run in the place of the model's choices, and try them on a batch.

        Args:
            layer: makes what stands in a `LayerChoice`'s place and follows the plan.
            input: the same for an `InputChoice`.
            plan: one that the trial can follow.

        Raises:
            SupernetError: a choice cannot run so. What the model and the loss themselves raise is passed on.
                After either the model is as it was.
        """
        was_training = self.model.training
        try:
            replace_layer_choice(self.model, lambda choice: layer(choice, self._plan), self.nas_modules)
            replace_input_choice(self.model, lambda choice: input(choice, self._plan), self.nas_modules)
            self.fabric.to_device(self.model)
            self._buffers = Buffers(self.model)
            self._plan.update(plan)
            self._channels_last = choose_memory_format(self.model, self._trial_X, self._trial)
            self.weights = [p for p in self.model.parameters() if p.requires_grad]
            self._module, self.optimizer = self.fabric.setup(self.model, self._given_optimizer)
        except BaseException:
            restore(self.model)
            raise
        finally:
            self.model.train(was_training)
            del self._trial_X, self._trial_y

    def _trial(self, X: Any) -> Any:
        """Run model and loss as a training step would, and return the output in eval form, leaving no trace."""
        with seeded(self.seed, self.device), self._buffers.kept(), torch.no_grad():
            output = self.model.train()(X)
            loss = self.loss(output, self._trial_y)
            output = self.model.eval()(X)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise TrainingError(
                f"loss must return a tensor of one number, but it returned {what}; reduce it, say by .mean()"
            )
        return output

    def fit(self) -> None:
        """Train the supernet and search.

        Raises:
            NonFiniteError: a loss or an architecture parameter is NaN or infinite; names epoch and step.
        """
        self.model.train()
        self._broken = torch.tensor(math.inf, device=self.device)
        self._bar = ProgressBar(type(self).__name__, self.num_epochs, shown=self.progress)
        with seeded(self.seed, self.device), self._bar:
            for epoch in range(self.num_epochs):
                self.epoch = epoch
                began = time.perf_counter()
                self._bar.begin_epoch(self.epoch, length_of(self.train_loader))
                self.train_epoch()
                self._end_epoch(time.perf_counter() - began)
        if self._run is not None:
            self._run.write_result(self.model, self.export(), self.space, self.history)

    def train_epoch(self) -> None:
        """Go once over the training part, each step with a batch of the validation part beside it."""
        valid_batches = repeated(self.valid_loader)
        for step, batch in enumerate(self.train_loader):
            self.step = step
            self.train_step(*split_batch(batch), *split_batch(next(valid_batches)))
            self._end_step()

    def train_step(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Take one step of everything that is trained."""
        raise NotImplementedError(f"{type(self).__name__} defines neither train_step nor train_epoch")

    def probabilities(self) -> dict[str, list[float]]:
        """Return label -> the present probability of each candidate or input, for the record; none by default."""
        return {}

    def forward(self, X: Any, plan: dict[str, Any]) -> Any:
        """Run the supernet on a batch, its choices following the plan."""
        self._plan.update(plan)
        return self._module(channels_last_inputs(X) if self._channels_last else X)

    def measure(self, part: str, output: Any, target: Any) -> torch.Tensor:
        """Return the loss, and take it and the metrics into the epoch's means of "train" or "valid"."""
        loss = self.loss(output, target)
        self.check_finite(loss, f"the loss on the {part} part")
        self.meters[part].update(loss, output, target)
        return loss

    def descend(self, loss: torch.Tensor, optimizer: Any, *, clip: float | None = None) -> None:
        """Take one step of an optimizer down the gradient of the loss."""
        optimizer.zero_grad()
        self.fabric.backward(loss)
        if clip is not None:
            self.fabric.clip_gradients(self._module, optimizer, max_norm=clip, error_if_nonfinite=False)
        optimizer.step()

    def gradients(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor | None]:
        """Return the loss's gradient of each parameter, None where it does not depend; `.grad` is left alone."""
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        self.fabric.backward(loss)
        result = [p.grad for p in parameters]
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
        return result

    @contextmanager
    def weights_held(self) -> Iterator[None]:
        """Compute no gradient of the weights in this context, and bring running statistics back after it.

        What an architecture step stands in: validation data moves nothing on the weights' side.
        """
        with held(self.weights), self._buffers.kept():
            yield

    def check_finite(self, tensor: torch.Tensor, what: str) -> None:
        """Stop if the tensor has a NaN or an infinity.

        On a CPU at once. Elsewhere asking would make the step wait for the device, so the first bad step is
        noted there and asked for at log lines and at the end of the epoch.

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

    def _end_step(self) -> None:
        self._bar.step()
        if self.log_frequency and (self.step + 1) % self.log_frequency == 0:
            self._check_noted()
            steps = length_of(self.train_loader) or "?"
            where = f"Epoch [{self.epoch + 1}/{self.num_epochs}] Step [{self.step + 1}/{steps}]"
            logger.info("%s  %s", where, written(self._read_meters()))

    def _end_epoch(self, seconds: float) -> None:
        self._check_noted()
        metrics = self._read_meters()
        if "train_loss" not in metrics:
            raise TrainingError(
                "an epoch had no step: the training part has fewer samples than one batch; lower batch_size"
            )
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(metrics.get("valid_loss", metrics["train_loss"]))
        elif self.scheduler is not None:
            self.scheduler.step()
        self._bar.end_epoch(self.epoch, metrics)
        record = {
            "epoch": self.epoch + 1,
            **metrics,
            "seconds": seconds,
            "probabilities": self.probabilities(),
        }
        self.history.append(record)
        if self._run is not None:
            self._run.append_epoch(record)
        for meter in self.meters.values():
            meter.reset()

    def _read_meters(self) -> dict[str, float]:
        return {f"{part}_{name}": v for part, meter in self.meters.items() for name, v in meter.read().items()}


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise `TrainingError` unless the optimizer has every parameter of the model that is to be trained."""
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(f"optimizer is a torch.optim.Optimizer, not {type(optimizer).__name__}")
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in present]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise TrainingError(
            f"the optimizer lacks parameters of the model: {shown}; make it from model.parameters(), and set "
            "requires_grad=False on those that are to stay as they are"
        )


def length_of(loader: Any) -> int | None:
    """Return how many batches a loader has, None where it cannot say (a stream)."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None
