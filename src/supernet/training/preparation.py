"""What is made before the loop runs: devices, data, the books, the model with its choices replaced; and options."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from supernet.checks import check_counts
from supernet.data.loaders import Data, batch_size_of, derive_seed, first_batch, length_of
from supernet.data.split import DataSplit
from supernet.errors import TrainingError
from supernet.execution import Plan, restore
from supernet.execution.replace import check_initialized
from supernet.execution.state import Forms, seeded
from supernet.execution.structure import copied, is_as_noted, noted
from supernet.execution.supernet import Supernet
from supernet.nn import InputChoice, LayerChoice
from supernet.processes.messages import Processes
from supernet.training.agreement import share_initial_values, some_samples, what_is_given
from supernet.training.arguments import NOTED, Noted, noting_arguments, with_options
from supernet.training.callbacks import ShowProgress
from supernet.training.config import FIELDS, TrainingConfig, unknown_argument
from supernet.training.description import as_json, schedule, settings
from supernet.training.distillation import DistilledLoss, TaughtMeter, Teaching, check_is_taught
from supernet.training.distributed import DistributedSupernet
from supernet.training.forward import Forward, ForwardFn, LossFn, check_judged, checked_loss
from supernet.training.metrics import Means, Meter, Metrics
from supernet.training.named_state import NamedState
from supernet.training.optimizers import check_optimizer, check_scheduler
from supernet.training.options import FREE
from supernet.training.run import Run
from supernet.training.steps import OptimizerSteps, Steps

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []


class Preparation(Steps):
    """What a trainer is made from: the constructor, what it is given, and a first trial of the model.

    The loop inherits it. The arguments are those of `SupernetTrainer`.
    """

    free_options: ClassVar[frozenset[str]] = frozenset()  # besides those of the bases: see `options`
    leaves_parameters_unused = False  # whether a step may give some weights no gradient, as one of a path does
    measures_in_eval_form = False  # whether the search itself does
    supernet_kind: ClassVar[type[Supernet]] = Supernet

    # What is not there before `_set_up`, or the end.
    nas_modules: list[tuple[str, nn.Module]]
    _found: Any
    _ours: set[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = noting_arguments(cls)  # type: ignore[method-assign]

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        valid_dataset: Data | None = None,
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        config: TrainingConfig | None = None,
        **options: Any,
    ) -> None:
        arguments: Noted = vars(self).pop(NOTED, Noted())
        set_before = dict(vars(self))  # by a subclass
        if unknown := [name for name in options if name not in FIELDS]:
            known = dict.fromkeys([*[*inspect.signature(type(self).__init__).parameters][1:], *FIELDS])
            raise TypeError(unknown_argument(type(self).__name__, unknown, known))
        self.config = config = TrainingConfig.of(config, **options)
        task = {
            **{"loss": loss, "metrics": metrics, "num_epochs": num_epochs, "dataset": dataset},
            **{"valid_dataset": valid_dataset, "forward_fn": forward_fn, "loss_fn": loss_fn},
            "scheduler_interval": scheduler_interval,
        }
        self._check_model(model)
        check_initialized(model)
        loss = checked_loss(loss, loss_fn)
        taught = None if config.distillation is None else DistilledLoss(loss, config.distillation)
        loss = loss if taught is None else taught
        self._forward = Forward(model, forward_fn, loss_fn)
        check_optimizer(optimizer, model, loss)
        check_counts(num_epochs=num_epochs)
        self.fabric = config.fabric.launched(unused_parameters=self.leaves_parameters_unused)
        self.processes = Processes(self.fabric, float(config.fabric.process_timeout))
        self.device = self.fabric.device
        self.model, self._forms = model, Forms(model)
        self.loss: Any = loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.given_optimizer = optimizer  # what Fabric wraps
        self.num_epochs = int(num_epochs)
        self.scheduler, self.scheduler_interval = scheduler, scheduler_interval
        self.grad_clip = config.grad_clip or None
        self.accumulate, self.seed = config.accumulate, config.seed
        self.log_frequency, self.progress = config.log_frequency, config.progress
        self.precision = config.fabric.precision
        self.callbacks = [ShowProgress(), *config.callbacks] if self.fabric.is_global_zero else []
        self.stop_when, self.on_nonfinite = config.stop_when, config.on_nonfinite
        # A loss scaler looks at the gradients itself, and must be asked to step.
        self._skips_gradients = self.on_nonfinite == "skip" and self.precision != "16-mixed"
        self.metrics = metrics
        self.meters = {part: Meter(metrics, self.device) for part in ("train", "valid")}
        if taught is not None:
            self.meters["train"] = TaughtMeter(metrics, self.device, taught)
        self.means = Means()
        self.history: list[dict[str, Any]] = []
        self.epoch = self.step = self.global_step = self.skipped_steps = 0
        self.stopped: str | None = None
        self._broken = torch.tensor(math.inf, device=self.device)  # the first bad step that was noted
        among: dict[str, Any] = {"rank": self.fabric.global_rank, "world_size": self.fabric.world_size}
        how: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "seed": self.seed}
        train_loader, valid_loader = self._loaders(dataset, valid_dataset, **how, **among)
        self.train_loader, self.valid_loader = train_loader, valid_loader
        check_scheduler(
            scheduler, scheduler_interval, self.num_epochs, length_of(train_loader), self.accumulate, optimizer
        )
        split = self._forward.split
        self.train_part = DataSplit(train_loader, self.fabric.to_device, self.seed, split, **among)
        self.valid_part = DataSplit(valid_loader, self.fabric.to_device, derive_seed(self.seed, 1), split, **among)
        self._trial_X, self._trial_y = split(self.fabric.to_device(first_batch(train_loader)))
        self._recalibration_part = self.train_part.unsharded(shuffle=True)
        self._evaluation_part = self.valid_part.unsharded(shuffle=False)
        self._loss_changes_targets = False  # found by the trial
        self.teaching = None if config.distillation is None else Teaching(config.distillation, self)
        self.given_options: dict[str, Any] = {
            **{name: arguments.given[name] for name in arguments.given if name in arguments.ours},
            **{name: as_json(option) for name, option in {**task, **config.flat()}.items()},
            **{"optimizer": settings(optimizer), "scheduler": schedule(scheduler)},
            "batch_size": [batch_size_of(train_loader), batch_size_of(valid_loader)],
        }
        self._noted = arguments
        self._free_options = {
            *FREE,
            *(name for cls in type(self).__mro__ for name in vars(cls).get("free_options", ())),
        }
        loop = cast("TrainingLoop", self)
        self._run, self.named_state = Run(loop, config), NamedState(loop)
        its_own = {name for name, value in set_before.items() if vars(self)[name] is value}
        later = (*Preparation.__annotations__, *Steps.__annotations__)
        self._ours = {*vars(self), *later} - its_own  # all other attributes are the algorithm's

    def note_options(self, *, free: bool = False, **options: Any) -> None:
        """Note options as they were given; deprecated, for they are noted by themselves: see `options`.

        Args:
            free: Whether they may be given otherwise where a search goes on, for what has been trained does not depend
                on them. Default: a search goes on with the same only.
            options: Options by the names that the constructor has for them.
        """
        warnings.warn(
            "note_options is not needed any more, and goes in the next version: what a constructor is given is noted, "
            f"and may be given otherwise at a resume where {type(self).__name__}.free_options names it",
            DeprecationWarning,
            stacklevel=2,
        )
        self.given_options |= {name: as_json(option) for name, option in options.items()}
        self._free_options |= set(options) if free else set()

    def _check_model(self, model: nn.Module) -> None:
        """Raise if the model is none that this loop can train."""

    def _loaders(self, dataset: Data, valid_dataset: Data | None, **how: Any) -> tuple[Any, Any]:
        """Return loaders of the training part and of the validation part."""
        raise NotImplementedError

    def _set_up(
        self,
        layer: Callable[[LayerChoice, Plan], nn.Module],
        input: Callable[[InputChoice, Plan], nn.Module],
        plan: dict[str, Any],
    ) -> None:
        """Make the model run on its device and among the processes: see `SupernetTrainer.build_supernet`."""
        if self.processes.count > 1:
            given = {**what_is_given(self), **some_samples(self)}
            self.processes.compare(given, "the processes are given different things")
            share_initial_values(self)
        self.supernet = self.supernet_kind(self.model, layer=layer, input=input)
        try:
            for label, entry in plan.items():
                self.supernet.check(label, entry)
            self.distributed = DistributedSupernet(
                *(self.supernet, self.fabric, plan, self.given_optimizer, self._trial, self._trial_X),
                run=self._forward,
                forms=self._forms,
                loss=self.loss,
            )
        except BaseException:
            restore(self.model)
            raise
        self._forwards = None if self._forward.gives_x_itself(self._trial_X) else self._forward
        self._steps = OptimizerSteps(self.fabric, self.distributed, self.accumulate, self._skips_gradients)
        self.nas_modules, self.weights = self.supernet.replaced, self.distributed.weights
        self.optimizer = self.distributed.optimizer
        with seeded(self.seed, self.device), self._forms.preserve():
            self._forms.train()
            self.distributed.settle_order_of_sums(
                lambda: self.loss_of(self.forward(self._trial_X, _detached(plan)), self._trial_y)
            )
        del self._trial_X, self._trial_y
        if self.teaching is not None:
            self.teaching.begin()

    def _trial(self, X: Any) -> tuple[Any, Any]:
        """Run model and loss as a training step would, and return the outputs in training and in eval form."""
        with seeded(self.seed, self.device), torch.no_grad():
            self._forms.train()
            untouched, before = copied(X), noted(X)
            trained = self._forward(self.model, X)
            if not is_as_noted(X, before):
                X = untouched
            if self.teaching is None:
                check_is_taught(self._trial_y)
            else:
                self._trial_y = self.teaching.first(X, self._trial_y, trained)
            target = copied(self._trial_y)
            before = noted(target)
            loss = self.loss(trained, target)
            self._loss_changes_targets |= not is_as_noted(target, before)
            needed_by = type(self).__name__ if self.measures_in_eval_form else None
            evaluated = self._forward.in_eval_form(self.model, X, trained, needed_by)
        check_judged(trained, metrics=self.metrics, reward_function=getattr(self, "reward_function", None))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise TrainingError(
                f"loss must return a tensor of one number, but it returned {what}; reduce it, say by .mean()"
            )
        return trained, evaluated

    def teacher_in_place(self, teacher: Any) -> dict[str, Any]:
        """Return the architecture that teaches, of a supernet; a plain network has none, and that is refused."""
        raise TrainingError(
            f"teacher={teacher!r} is an architecture of a supernet, and {type(self.model).__name__} is none; give a "
            "module, or 'stored'"
        )

    def identity(self) -> dict[str, Any]:
        """Return what two runs must have in common for one to go on where the other ended."""
        return {
            **({} if self.teaching is None else self.teaching.identity),
            "trainer": type(self).__name__,
            "data": [self.train_part.digest(), self.valid_part.digest()],
            "seed": self.seed,
            "processes": self.fabric.world_size,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "grad_clip": self.grad_clip,
            "optimizer": type(self.given_optimizer).__name__,
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "options": self._fixed_options(),
        }

    def parameters_outside(self) -> list[nn.Parameter]:
        """Return the optimizer's parameters that are neither the model's nor those of a loss that is a module."""
        modules = [self.model, *([self.loss] if isinstance(self.loss, nn.Module) else [])]
        inside = {id(p) for module in modules for p in module.parameters()}
        return [p for group in self.given_optimizer.param_groups for p in group["params"] if id(p) not in inside]

    def _fixed_options(self) -> dict[str, Any]:
        """Return the options that must be the same where a search goes on, the optimizer's group by group."""
        options = dict(self._run.compared_options())
        groups, scheduler = options.pop("optimizer"), options.pop("scheduler")
        groups = [{name: value for name, value in group.items() if name != "parameters"} for group in groups]
        return {**options, "optimizer settings": groups, "scheduler settings": scheduler}


Preparation.__init__.__signature__ = with_options(inspect.signature(Preparation.__init__), FIELDS)  # type: ignore


def _detached(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {label: entry.detach() if isinstance(entry, torch.Tensor) else entry for label, entry in plan.items()}
