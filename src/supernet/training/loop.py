"""The loop that our trainers share: data, devices, epochs, metrics, files. An algorithm adds its steps."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from supernet.checks import check_counts
from supernet.data.loaders import (
    Data,
    batch_size_of,
    derive_seed,
    first_batch,
    length_of,
)
from supernet.data.split import DataSplit
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution import Plan, restore
from supernet.execution.replace import check_initialized
from supernet.execution.slot import Slot
from supernet.execution.state import Forms, RandomState, preserve_random_numbers, seeded
from supernet.execution.structure import copied, is_as_noted, noted
from supernet.execution.supernet import Supernet
from supernet.nn import InputChoice, LayerChoice
from supernet.processes.interruption import SECONDS_OF_GRACE, Interruption, noticing_signals
from supernet.processes.messages import Processes
from supernet.training.agreement import share_initial_values, some_samples, what_has_come_out, what_is_given
from supernet.training.arguments import NOTED, Noted, noting_arguments, with_options
from supernet.training.callbacks import Callback, ShowProgress, called, each
from supernet.training.config import FIELDS, LoopOptions, TrainingConfig, unknown_argument
from supernet.training.description import as_json, schedule, settings, surroundings
from supernet.training.distributed import DistributedSupernet
from supernet.training.forward import Forward, ForwardFn, LossFn, check_judged, checked_loss
from supernet.training.health import peak_memory
from supernet.training.metrics import Means, Meter, Metrics
from supernet.training.named_state import NamedState
from supernet.training.options import FREE
from supernet.training.progress import formatted
from supernet.training.run_directory import RunDirectory, failing_softly
from supernet.training.running import Rest, end_described, old_objects_left_alone
from supernet.training.snapshot import check_own_state, checked, digest, load_state, snapshot
from supernet.training.steps import OptimizerSteps, SkippedStep, Steps
from supernet.training.stopping import StoppingRules

__all__ = ["LoopOptions", "TrainingLoop"]

logger = logging.getLogger("supernet")


MANY_LOSSES = 20  # that all are without a gradient is then no chance of stochastic depth


class TrainingLoop(Steps):
    """The loop itself, which knows no choices: data, devices, epochs, steps, metrics, stopping, files, exact resume.

    A subclass says what a step is by `train_step` or `train_epoch`, and what is left at the end by `_conclude`. The
    arguments are those of `SupernetTrainer`.
    """

    free_options: ClassVar[frozenset[str]] = frozenset()  # besides those of the bases: see `options`
    leaves_parameters_unused = False  # whether a step may give some weights no gradient, as one of a path does
    measures_in_eval_form = False  # whether the search itself does

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
        noted: Noted = vars(self).pop(NOTED, Noted())
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
        self._stopping = StoppingRules(config.stop_when)
        self.metrics = metrics
        self.meters = {part: Meter(metrics, self.device) for part in ("train", "valid")}
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
        self._run = None if config.run_dir is None else RunDirectory(config.run_dir)
        self._checkpointing, self._saved_at = config.checkpointing, time.monotonic()
        self._signals: Interruption | None = None  # during `fit`
        self._rest: Rest | None = None  # where `fit` was left, if it was left between two steps
        self._describes = False  # whether run.json is this search's, and it has not finished
        self._looked_at = 0  # the last step of the epoch at which a checkpoint may have been due
        self._loss_changes_targets = False  # found by the trial
        self._has_begun = False
        self.seconds_before, self._began = 0.0, time.perf_counter()  # of earlier processes; when this one began
        self._standing: Any = None  # the result of a finished run, which stays as it is
        self.given_options: dict[str, Any] = {
            **{name: noted.given[name] for name in noted.given if name in noted.ours},
            **{name: as_json(option) for name, option in {**task, **config.flat()}.items()},
            **{"optimizer": settings(optimizer), "scheduler": schedule(scheduler)},
            "batch_size": [batch_size_of(train_loader), batch_size_of(valid_loader)],
        }
        self._noted = noted
        self._free_options = {
            *FREE,
            *(name for cls in type(self).__mro__ for name in vars(cls).get("free_options", ())),
        }
        self._options: dict[str, Any] | None = None  # what `options` said before the first step
        self._given_attributes: dict[str, Any] = {}  # what a subclass has set to begin with, and may not have noted
        self.named_state = NamedState(self)
        its_own = {name for name, value in set_before.items() if vars(self)[name] is value}
        self._ours = {
            *vars(self),
            *TrainingLoop.__annotations__,
            *Steps.__annotations__,
        } - its_own  # all other attributes are the algorithm's

    def options(self) -> dict[str, Any]:
        """Return name -> option that must have been given alike where a search goes on, as JSON has it.

        A resume with another one is refused. They are what the constructors of a trainer of the form
        `__init__(self, *task, its_own=..., **config)` are given, but for those that a class names in `free_options`:
        these may be given otherwise, since what has been trained does not depend on them. A trainer of another form
        adds its own: `return {**super().options(), "temperature": self.temperature}`. It is asked before the first
        step. All options are in `run.json`.
        """
        added = {name: value for name, value in self._noted.given.items() if name in self._noted.added}
        return {name: v for name, v in {**added, **self.given_options}.items() if name not in self._free_options}

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

    def stateful(self) -> dict[str, Any]:
        """Return name -> what a checkpoint holds of the algorithm, beside what the loop itself holds.

        The loop itself holds the model, the loss, the optimizer, its scheduler, the metrics, all global random numbers,
        and where in the data it is. A trainer adds its own: `return {**super().stateful(), "alphas": self.alphas}`.

        A value is an object with `state_dict` and `load_state_dict`, a generator of random numbers of Python, NumPy or
        torch, a tensor, an array, a number, a text, a dataclass, an enum, or containers of all these. At a resume each
        object is brought back in place, so that whoever else holds it has it too. What cannot change in place (numbers,
        texts, None, tuples) is set as an attribute, so its name is that of the attribute that holds it. The names are
        the same all the time: what there is only later is None before.

        What cannot be saved is refused at the start of `fit`.
        """
        return {}

    def upgraded_state(self, named: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state that an older checkpoint has, name -> state, by the names that `stateful` gives now."""
        return named

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
        self.supernet = Supernet(self.model, layer=layer, input=input)
        try:
            for label, slot in self.supernet.replaced:
                if label in plan and isinstance(slot, Slot):
                    slot.check(plan[label])
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
        self._without_gradient = {}
        self.nas_modules, self.weights = self.supernet.replaced, self.distributed.weights
        self.optimizer = self.distributed.optimizer
        with seeded(self.seed, self.device), self._forms.preserve():
            self._forms.train()
            self.distributed.settle_order_of_sums(
                lambda: self.loss_of(self.forward(self._trial_X, _detached(plan)), self._trial_y)
            )
        del self._trial_X, self._trial_y

    def _trial(self, X: Any) -> tuple[Any, Any]:
        """Run model and loss as a training step would, and return the outputs in training and in eval form."""
        with seeded(self.seed, self.device), torch.no_grad():
            self._forms.train()
            untouched, before = copied(X), noted(X)
            trained = self._forward(self.model, X)
            if not is_as_noted(X, before):
                X = untouched
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

    # --- the loop ------------------------------------------------------------------------------------------

    def fit(self, resume: str | os.PathLike[str] | None = None) -> None:
        """Train the supernet and search.

        The model is in training form meanwhile, all but those parts of it that are in eval form before, while it itself
        is not: these stay so, such as a frozen backbone with its statistics. After it all is in the form it had.

        SIGTERM and SIGINT let the step finish, write a checkpoint where there is a `run_dir`, and raise `SystemExit`
        with 128 + the signal's number; without a `run_dir`, SIGINT raises `KeyboardInterrupt`. `fit()` again on this
        trainer goes on exactly.

        Args:
            resume: "auto" goes on from the newest checkpoint in `run_dir`, or begins where there is none; the
                path of a run directory goes on from that one's. Default: begin.

        Raises:
            NonFiniteError: a loss or an architecture parameter is NaN or infinite; names epoch and step.
            TrainingError: `run_dir` holds a run that is not resumed, is in use, or its checkpoint is of another
                search; processes have diverged.
            FileFormatError: the checkpoint is broken; names the file and what is wrong.
        """
        if resume is not None and not isinstance(resume, str | os.PathLike):
            raise TrainingError(f"resume is 'auto', the path of a run directory, or None, not {resume!r}")
        grace = SECONDS_OF_GRACE if self.processes.count > 1 else 0.0
        with noticing_signals(as_keyboard=self._run is None, grace=grace) as signals:
            if not self._has_begun:
                self._options = None
                self._options = self._compared_options()
            self.named_state.begin()
            finished = None if self._run is None else self._run.stands_aside()
            if finished is not None and self._takes_state_of(finished):
                return
            with self._surrounded(signals, resume):
                self._begin(resume)
                self._leave_if_asked()
                with called(self.callbacks, self._call):
                    while self.epoch < self.num_epochs and self.stopped is None:
                        self._fit_epoch()
                    self._finish()
        if self._run is not None and self._run.ends_a_rerun():
            raise SystemExit(0)

    @contextmanager
    def _surrounded(self, signals: Interruption, resume: Any) -> Iterator[None]:
        """What a search stands in: its directory is its own, so are its random numbers, and `run.json` is true."""
        self._describes = False
        with ExitStack() as stack:
            stack.enter_context(self.processes.watched(self._place))
            if self.processes.count > 1:
                given = {**what_is_given(self), "resume": as_json(resume)}
                self.processes.compare(given, "the processes are given different things")
            if self._run is not None and self.fabric.is_global_zero:
                stack.enter_context(self._run.locked())
            if self._run is not None:
                self.processes.check_same_files(self._run.path)
            stack.enter_context(seeded(self._own_seed(), self.device))
            stack.enter_context(self._forms.preserve())
            stack.enter_context(self.distributed.laid_out())
            stack.enter_context(end_described(self._describe, signals, self.processes.undisturbed))
            stack.enter_context(self.processes.errors_named(signals))
            stack.enter_context(old_objects_left_alone())
            self._signals = signals
            stack.callback(setattr, self, "_signals", None)
            stack.callback(self.valid_part.leave)
            yield

    def _takes_state_of(self, finished: RunDirectory) -> bool:
        """Be as after a run that has finished elsewhere, without a step or a file; say whether it is the same one."""
        found = self._newest_checkpoint_of(finished)
        assert found is not None, "a finished run has one"
        try:
            checked(self, found[1], found[0])
        except TrainingError as error:
            logger.warning("%s has to be run again too: %s", finished.path, error)
            return False
        with preserve_random_numbers(self.device):
            load_state(self, found[1], found[0])
        self.stopped = self._stopping.begin(self.history)
        logger.info("%s is not the run that is run again; its result is taken as it is", finished.path)
        return True

    def _call(self, callback: Callback, name: str, *arguments: Any) -> None:
        with self.processes.in_one_alone(f"{type(callback).__name__}.{name}"):
            getattr(callback, name)(self, *arguments)

    def _begin(self, resume: str | os.PathLike[str] | None) -> None:
        """Begin at the first epoch, or where a checkpoint says."""
        for rule in self.stop_when:
            if getattr(rule, "needs_architecture", False) and self.derive() is None:
                raise TrainingError(
                    f"{type(rule).__name__} asks for the architecture of each epoch, which {type(self).__name__} does "
                    "not know before its search has ended; give a rule on figures of the record, such as valid_loss"
                )
        if resume is None and self._rest is not None:
            self._go_on(self._rest)
            return
        if not self._has_begun:
            self._given_attributes = self.named_state.plain()
        self._forms.note()
        self._forms.train()
        self._steps.clear()
        self._without_gradient = {}
        self.stopped = None
        self._broken = torch.tensor(math.inf, device=self.device)
        self.seconds_before, self._began, self._standing = 0.0, time.perf_counter(), None
        source = self._run if resume is None or str(resume) == "auto" else RunDirectory(resume)
        if self._run is not None and source is not None and source.path.resolve() == self._run.path.resolve():
            source = self._run  # named by its path
        if source is None and resume is not None:
            raise TrainingError("resume='auto' goes on from run_dir, but the trainer has none; give run_dir")
        found = None if source is None or resume is None else self._newest_checkpoint_of(source)
        if self._run is not None:
            check_own_state(self)
        if found is None:
            if resume is not None and str(resume) != "auto":
                raise TrainingError(f"{resume} holds no checkpoint to go on from")
            if self._has_begun:
                raise TrainingError(
                    f"this {type(self).__name__} has trained already, up to epoch {self.epoch + 1}, step {self.step}: "
                    "a second fit() could neither begin anew nor go on exactly, unless the first was interrupted "
                    "between two steps; make model, optimizer and trainer anew, or give a run_dir and go on from its "
                    "checkpoint by fit(resume='auto')"
                )
            if self._run is not None and self.fabric.is_global_zero:
                if resume is None:  # one that is resumed and was killed before its first checkpoint has left files too
                    self._run.check_empty()
                self._describes = True
                self._run.begin()
            self.epoch = self.step = self.global_step = self.skipped_steps = 0
            self.history = []
            self.valid_part.enter(0, 0)
            self._stopping.begin([])
            self._close_books()
        else:
            checkpoint, state = found
            if self._run is not None and source is not self._run:
                self._run.check_empty()
            load_state(self, state, checkpoint)
            reason = self.processes.first("the answer of the stopping rules", self._stopping.begin(self.history))
            self.stopped = None if self.step else reason  # rules are asked at the end of an epoch
            logger.info("goes on from %s, after %s", checkpoint, self._position())
            is_done = self.step == 0 and (self.epoch >= self.num_epochs or self.stopped is not None)
            if self._run is not None and source is self._run and is_done:
                self._standing = self._standing_result(self._run)
            if self._standing is not None:
                logger.info("%s holds a finished run, which stays as it is", checkpoint.parent.parent)
            elif self._run is not None and self.fabric.is_global_zero:
                self._describes = True
                self._run.resume(state, self.history)
        self._compare_processes(f"the processes begin differently, after {self._position()}", "the beginning")
        self._describe("running")
        self._has_begun, self._looked_at = True, self.step
        self._come_to_rest()

    def _go_on(self, rest: Rest) -> None:
        """Go on where this trainer was left between two steps."""
        if self._run is not None and self.fabric.is_global_zero:
            self._run.check_not_beyond(self.global_step)
        self._forms.note()
        self._forms.train()
        for part, state in zip((self.train_part, self.valid_part), rest.data, strict=True):
            part.load_state_dict(state)
        rest.random.put_back()
        self.seconds_before, self._began = rest.seconds, time.perf_counter()
        self._describes = True
        logger.info("goes on after %s", self._position())
        self._describe("running")

    def is_brought_back(self) -> None:
        """Note that a checkpoint's state takes the place of this trainer's own, so neither can begin here any more."""
        self._has_begun, self._rest = True, None

    def _come_to_rest(self) -> None:
        """Note that the trainer stands between two steps, so that a `fit()` after this one can go on exactly."""
        data = copy.deepcopy((self.train_part.state_dict(), self.valid_part.state_dict()))
        self._rest = Rest(RandomState(self.device), self.seconds(), data)

    def _newest_checkpoint_of(self, run: RunDirectory) -> tuple[Path, dict[str, Any]] | None:
        return run.newest_whole_checkpoint(self.processes, self.named_state.classes(), self.device)

    def _fit_epoch(self) -> None:
        began = time.perf_counter()
        first_step = self.step
        self._rest = None  # until the epoch's end, or a signal
        for callback in self.callbacks:
            self._call(callback, "epoch_began")
        self.processes.speak_next()
        self.train_epoch()
        self._apply_waiting()
        at = f"the end of epoch {self.epoch + 1}, after {self.step} steps"
        self._compare_processes(f"the processes have diverged in epoch {self.epoch + 1}", at)
        seconds = time.perf_counter() - began
        self._validate()
        record = self._end_epoch(seconds, self.step - first_step)
        failure = None
        try:
            each(self.callbacks, lambda callback: self._call(callback, "epoch_ended", record))
        except Exception as error:  # it ends the search, and the epoch is saved before
            failure = error
        self.epoch, self.step, self._looked_at = self.epoch + 1, 0, 0
        every = self._checkpointing.every_epochs
        due = bool(every and (self.epoch % every == 0 or self.epoch == self.num_epochs or self.stopped))
        if due or (failure is not None and self.fabric.world_size == 1):  # of several processes one cannot save alone
            self._save(record.get("valid_loss", record["train_loss"]))
        self._come_to_rest()
        if failure is not None:
            raise failure
        self._leave_if_asked(is_saved=due)

    def _validate(self) -> None:
        """Measure what an epoch has trained, where its steps do not; nothing by default."""

    def _record_of_choices(self) -> dict[str, Any]:
        """Return what is recorded of an epoch beside figures of the training; nothing by default."""
        return {}

    def train_epoch(self) -> None:
        """Go once over the training part from `step` on, each step with a batch of the validation part beside it."""
        training = self.train_part.batches(self.epoch, self.step)
        validation = self.valid_part.cycle()
        for (trn_X, trn_y), (val_X, val_y) in zip(training, validation, strict=False):
            with self.one_step():
                self.train_step(trn_X, trn_y, val_X, val_y)

    def train_step(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Take one step of everything that is trained."""
        raise NotImplementedError(f"{type(self).__name__} defines neither train_step nor train_epoch")

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """What a step stands in: it is counted, logged, and where it is time, saved."""
        try:
            with self.supernet.preserve_buffers(SkippedStep) if self.on_nonfinite == "skip" else nullcontext():
                yield
        except SkippedStep:
            self.skipped_steps += 1
            if self._completes_a_step():
                self._apply_waiting()
        for callback in self.callbacks:
            self._call(callback, "step_ended")
        self.step += 1
        self.global_step += 1
        if self.log_frequency and self.step % self.log_frequency == 0:
            self._check_noted()
            last = {f"{part}_{name}": v for part, meter in self.meters.items() for name, v in meter.last().items()}
            logger.info("%s  %s", self.where(), formatted(self._read_meters(), last))
        if not self._steps.waiting():
            self.save_between_steps()

    def steps_of_an_epoch(self) -> int | None:
        """Return how many steps an epoch has; None where that is not known (a stream)."""
        return self.train_part.length

    def where(self) -> str:
        """Return how far the search is, for a log line."""
        return f"Epoch [{self.epoch + 1}/{self.num_epochs}] Step [{self.step}/{self.steps_of_an_epoch() or '?'}]"

    def _place(self) -> str:
        """Return which step is under way, or comes next, for a message."""
        return f"step {self.step + 1} of epoch {self.epoch + 1}"

    def _compare_processes(self, finding: str, at: str) -> None:
        """Raise, in all processes, unless they have come to the same."""
        if self.processes.count > 1:
            self.processes.compare_digests(what_has_come_out(self), finding, at)

    def _position(self) -> str:
        """Return what has been done last, for a message."""
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def save_between_steps(self) -> None:
        """Write a checkpoint if one is due, and leave if a signal has asked for it; outside of `fit` do nothing."""
        if self._signals is None:
            return
        due, number = self._checkpointing, int(self._signals.signal or 0)
        minutes = (time.monotonic() - self._saved_at) / 60
        is_late = due.every_minutes is not None and minutes >= due.every_minutes
        place = self.step, self.global_step, self._steps.passes if self.accumulate == 1 else 0
        number, save = self.processes.between_steps(number, is_late, place)  # they finish different steps meanwhile
        save |= bool(due.every_steps and self.step // due.every_steps > self._looked_at // due.every_steps)
        self._looked_at = self.step
        if number:
            self._leave(number)
        if save:
            self._save(None)

    def _is_asked_to_leave(self) -> bool:
        """Say whether a signal has come, where this process alone decides."""
        return self.fabric.world_size == 1 and self._signals is not None and self._signals.signal is not None

    def _leave_if_asked(self, *, is_saved: bool = False) -> None:
        """Leave `fit` here, between two steps, if a signal has asked for it."""
        assert self._signals is not None, "within fit"
        number = max(number for (number,) in self.processes.exchange("the signals", int(self._signals.signal or 0)))
        if number:
            self._leave(number, is_saved=is_saved)

    def _leave(self, number: int, *, is_saved: bool = False) -> None:
        """Leave `fit` here, between two steps, as a signal has asked: of all processes, if it came to one of them."""
        assert self._signals is not None, "within fit"
        self._signals.signal = Signals(number)
        if self._standing is None and not is_saved:
            self._save(None)
        self._come_to_rest()
        how = "fit()" if self._run is None else "resume='auto'"
        message = f"stopped by signal {number} after {self._position()}; {how} goes on from there"
        if self._run is not None:
            logger.warning("%s", message)
        self.processes.leave_together("the end after a signal")
        raise self._signals.exit(message)

    def _save(self, loss: float | None, *, softly: bool = False) -> None:
        """Write a checkpoint; all processes take part, the first one writes.

        Args:
            loss: by which the best is known.
            softly: whether a failing write is a warning.
        """
        if self._run is None:
            return
        self._check_noted()
        state = snapshot(self)
        self._saved_at = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        with failing_softly("the last checkpoint is not written") if softly else nullcontext():
            self._run.write_checkpoint(state, self.global_step, self._checkpointing.keep_last, loss)

    def _end_epoch(self, seconds: float, steps: int) -> dict[str, Any]:
        """Close the epoch's books, and return its record."""
        self._check_noted()
        metrics = self._read_meters()
        if "train_loss" not in metrics and steps:
            raise NonFiniteError(
                f"the loss of each step of epoch {self.epoch + 1} is NaN or infinite, so all were skipped; the "
                "learning rate may be too high, or the data may hold such values"
            )
        if "train_loss" not in metrics:
            raise TrainingError(
                "an epoch had no step: the training part has fewer samples than one batch; lower batch_size"
            )
        is_last = self.epoch + 1 == self.num_epochs and steps == self.step  # and none of it ran in another process
        if self.on_nonfinite == "stop":  # a gradient of the last step may have been none that is finite
            for name, p in self.model.named_parameters():
                if p.requires_grad and not torch.isfinite(p).all():
                    raise self._non_finite(f"the weight {name}", self.step - 1)
        for what, count in self._without_gradient.items():
            if count >= MANY_LOSSES or (count and is_last):
                raise TrainingError(
                    f"no loss of this run had a gradient for the {what}, so nothing is trained; is the output "
                    "detached, or computed without a gradient?"
                )
        with warnings.catch_warnings():
            # In an epoch that was resumed after its training part, the optimizer has stepped in another process.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(metrics.get("valid_loss", metrics["train_loss"]))
            elif self.scheduler is not None and self.scheduler_interval == "epoch":
                self.scheduler.step()
        record = {
            "epoch": self.epoch + 1,
            **metrics,
            **self.means.read(),
            "skipped_steps": self.skipped_steps,
            "cost": {
                "seconds": seconds,
                "steps_per_second": steps / seconds,
                "peak_memory_mib": peak_memory(self.device),
            },
            **self._record_of_choices(),
        }
        self.history.append(record)
        if self._run is not None and self.fabric.is_global_zero:
            self._run.append_epoch(record)
        reason = self._stopping.ask(record)  # all are asked, and may have read a clock
        self.stopped = self.processes.first("the answer of the stopping rules", reason)
        if self.stopped:
            logger.info("stopped after epoch %d: %s", record["epoch"], self.stopped)
        self._close_books()
        return record

    def _close_books(self) -> None:
        for meter in self.meters.values():
            meter.reset()
        self.means = Means()

    def seconds(self) -> float:
        """Return how long the search has run so far, in earlier processes too, up to where they were saved."""
        return self.seconds_before + time.perf_counter() - self._began

    def _finish(self) -> None:
        """Write the result."""
        of_loss = self.loss.parameters() if isinstance(self.loss, nn.Module) else ()
        trained = [*self.model.parameters(), *of_loss, *self.parameters_outside()]
        result = {"weights": digest(trained)}
        with failing_softly("run.json has no digest of the trainer's state, so a rerun cannot compare it"):
            result["named_state"] = self.named_state.digest()
        for callback in self.callbacks:
            if isinstance(callback, ShowProgress):
                callback.fit_ended(self)  # a search by evaluations has a bar of its own
        self._conclude()
        run = self._run if self.fabric.is_global_zero else None
        if run is not None:
            self._write_result(run)
        if self._standing is None:
            self._save(None, softly=True)  # with what has been found out at the end
        with failing_softly("run.json does not say that the search has finished"):
            self._describe("finished", result=result, stopped=self.stopped)
        self._describes, self._rest = False, None  # whatever comes now, all is done
        if run is not None:
            self._write_plots(run)
        self.processes.leave_together("the end of the search")

    def _standing_result(self, run: RunDirectory) -> Any:
        """Return what a finished run has left, which stays as it is; None where it has not finished."""
        return run.is_finished() or None

    def _conclude(self) -> None:
        """Find the result, in all processes."""

    def _write_result(self, run: RunDirectory) -> None:
        """Write the result."""

    def _write_plots(self, run: RunDirectory) -> None:
        """Draw the result, which may fail."""

    def _describe(self, status: str, **result: Any) -> None:
        if self._run is not None and self.fabric.is_global_zero and self._describes:
            options = {**self._noted.given, **self._given_attributes, **self._compared_options(), **self.given_options}
            hyperparameters = {**options, "num_epochs": self.num_epochs}
            identity = {name: value for name, value in self.identity().items() if name != "options"}
            about = {"status": status, **surroundings(self.device), **identity, "hyperparameters": hyperparameters}
            self._run.describe({**about, "seconds": self.seconds(), **result})

    def identity(self) -> dict[str, Any]:
        """Return what two runs must have in common for one to go on where the other ended."""
        return {
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

    def _compared_options(self) -> dict[str, Any]:
        """Return what `options` says, or said before the first step, for a search may change what it is made from."""
        if self._options is not None:
            return self._options
        return {name: as_json(option) for name, option in type(self).options(self).items()}

    def _fixed_options(self) -> dict[str, Any]:
        """Return the options that must be the same where a search goes on, the optimizer's group by group."""
        options = dict(self._compared_options())
        groups, scheduler = options.pop("optimizer"), options.pop("scheduler")
        groups = [{name: value for name, value in group.items() if name != "parameters"} for group in groups]
        return {**options, "optimizer settings": groups, "scheduler settings": scheduler}

    # --- what an algorithm's steps are made of -------------------------------------------------------------

    def derive(self) -> Any:
        """Return the architecture that would be exported, where knowing it costs nothing; None by default."""
        return None

    def _read_meters(self) -> dict[str, float]:
        summed = None if self.processes.count == 1 else self.processes.sums
        return {f"{part}_{name}": v for part, meter in self.meters.items() for name, v in meter.read(summed).items()}

    def _own_seed(self) -> int:
        """Return the seed of what this process draws, such as dropout's noise: its own beside the first's."""
        rank = self.fabric.global_rank
        return derive_seed(self.seed, rank) if rank else self.seed


TrainingLoop.__init__.__signature__ = with_options(inspect.signature(TrainingLoop.__init__), FIELDS)  # type: ignore


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


def _detached(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {label: entry.detach() if isinstance(entry, torch.Tensor) else entry for label, entry in plan.items()}
