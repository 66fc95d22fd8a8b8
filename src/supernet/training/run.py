"""What surrounds the loop: the lock, signals, the seed, what is resumed, records, checkpoints, and the end."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.data.loaders import derive_seed
from supernet.errors import TrainingError
from supernet.execution.state import RandomState, preserve_random_numbers, seeded
from supernet.processes.interruption import SECONDS_OF_GRACE, Interruption, noticing_signals
from supernet.training.agreement import what_has_come_out, what_is_given
from supernet.training.callbacks import Callback, ShowProgress, called, each
from supernet.training.config import TrainingConfig
from supernet.training.description import as_json, surroundings
from supernet.training.record import close_books, record_of
from supernet.training.run_directory import RunDirectory, failing_softly
from supernet.training.running import Rest, end_described, old_objects_left_alone
from supernet.training.snapshot import check_own_state, checked, digest, load_state, snapshot
from supernet.training.stopping import StoppingRules

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []

logger = logging.getLogger("supernet")


class Run:
    """A run of a trainer's loop: how it begins or goes on, what is written meanwhile, and how it ends.

    The loop says where it is (`started`, `begin_epoch`, `end_steps`, `end_epoch`), and this does what is
    due there. It knows no algorithm.

    Args:
        trainer: Whose loop it is.
        config: The trainer's options.

    Attributes:
        directory: Where the run is written; None if nothing is.
        signals: What has come of signals; None outside of `fit`.
        standing: The result of a finished run, which stays as it is; None where there is none.
        has_begun: Whether the trainer's state is no longer the one that it was made in.
        stands_aside: Whether the whole run is one that has finished elsewhere.
        seconds_before: How long earlier processes have run.
    """

    def __init__(self, trainer: TrainingLoop, config: TrainingConfig) -> None:
        self._trainer = trainer
        self.directory = None if config.run_dir is None else RunDirectory(config.run_dir)
        self._checkpointing, self._saved_at = config.checkpointing, time.monotonic()
        self._stopping = StoppingRules(config.stop_when)
        self.signals: Interruption | None = None
        self.standing: Any = None
        self.has_begun = self.stands_aside = False
        self.seconds_before, self._began = 0.0, time.perf_counter()
        self._rest: Rest | None = None  # where `fit` was left, if it was left between two steps
        self._describes = False  # whether run.json is this run's, and it has not finished
        self._looked_at = 0  # the last step of the epoch at which a checkpoint may have been due
        self._epoch_began, self._first_step, self._epoch_seconds = 0.0, 0, 0.0
        self._options: dict[str, Any] | None = None  # what `options` said before the first step
        self._given_attributes: dict[str, Any] = {}  # what a subclass has set to begin with, and may not have noted

    # --- the beginning -----------------------------------------------------------------------------------------

    @contextmanager
    def started(self, resume: str | os.PathLike[str] | None) -> Iterator[None]:
        """Let the loop run in this context, from its beginning or from where a checkpoint says, and end the run.

        Args:
            resume: Where the run goes on, as `fit` has it.
        """
        if resume is not None and not isinstance(resume, str | os.PathLike):
            raise TrainingError(f"resume is 'auto', the path of a run directory, or None, not {resume!r}")
        trainer = self._trainer
        grace = SECONDS_OF_GRACE if trainer.processes.count > 1 else 0.0
        with noticing_signals(as_keyboard=self.directory is None, grace=grace) as signals:
            if not self.has_begun:
                self._options = None
                self._options = self.compared_options()
            trainer.named_state.begin()
            finished = None if self.directory is None else self.directory.stands_aside()
            self.stands_aside = finished is not None and self._takes_state_of(finished)
            if self.stands_aside:
                yield
                return
            with self._surrounded(signals, resume):
                self._begin(resume)
                self.leave_if_asked()
                with called(trainer.callbacks, self.call):
                    yield
                    self._finish()
        if self.directory is not None and self.directory.ends_a_rerun():
            raise SystemExit(0)

    @contextmanager
    def _surrounded(self, signals: Interruption, resume: Any) -> Iterator[None]:
        """What a run stands in: its directory is its own, so are its random numbers, and `run.json` is true."""
        trainer, self._describes = self._trainer, False
        with ExitStack() as stack:
            stack.enter_context(trainer.processes.watched(self._place))
            if trainer.processes.count > 1:
                given = {**what_is_given(trainer), "resume": as_json(resume)}
                trainer.processes.compare(given, "the processes are given different things")
            if self.directory is not None and trainer.fabric.is_global_zero:
                stack.enter_context(self.directory.locked())
            if self.directory is not None:
                trainer.processes.check_same_files(self.directory.path)
            rank = trainer.fabric.global_rank
            # What each process draws, such as dropout's noise, is its own.
            seed = derive_seed(trainer.seed, rank) if rank else trainer.seed
            stack.enter_context(seeded(seed, trainer.device))
            stack.enter_context(trainer._forms.preserve())
            stack.enter_context(trainer.distributed.laid_out())
            stack.enter_context(end_described(self._describe, signals, trainer.processes.undisturbed))
            stack.enter_context(trainer.processes.errors_named(signals))
            stack.enter_context(old_objects_left_alone())
            self.signals = signals
            stack.callback(setattr, self, "signals", None)
            stack.callback(trainer.valid_part.leave)
            yield

    def _takes_state_of(self, finished: RunDirectory) -> bool:
        """Be as after a run that has finished elsewhere, without a step or a file; say whether it is the same one."""
        trainer, found = self._trainer, self._newest_checkpoint_of(finished)
        assert found is not None, "a finished run has one"
        try:
            checked(trainer, found[1], found[0])
        except TrainingError as error:
            logger.warning("%s has to be run again too: %s", finished.path, error)
            return False
        with preserve_random_numbers(trainer.device):
            load_state(trainer, found[1], found[0])
        trainer.stopped = self._stopping.begin(trainer.history)
        logger.info("%s is not the run that is run again; its result is taken as it is", finished.path)
        return True

    def _newest_checkpoint_of(self, run: RunDirectory) -> tuple[Path, dict[str, Any]] | None:
        trainer = self._trainer
        return run.newest_whole_checkpoint(trainer.processes, trainer.named_state.classes(), trainer.device)

    def _begin(self, resume: str | os.PathLike[str] | None) -> None:
        """Begin at the first epoch, or where the trainer was left, or where a checkpoint says."""
        trainer = self._trainer
        for rule in trainer.stop_when:
            if getattr(rule, "needs_architecture", False) and trainer.derive() is None:
                raise TrainingError(
                    f"{type(rule).__name__} asks for the architecture of each epoch, which {type(trainer).__name__} "
                    "does not know before its search has ended; give a rule on figures of the record, such as "
                    "valid_loss"
                )
        if resume is None and self._rest is not None:
            self._go_on(self._rest)
            return
        if not self.has_begun:
            self._given_attributes = trainer.named_state.unnoted_options()
        trainer._forms.note()
        trainer._forms.train()
        trainer._steps.clear()
        trainer.stopped = None
        trainer._broken = torch.tensor(math.inf, device=trainer.device)
        self.seconds_before, self._began, self.standing = 0.0, time.perf_counter(), None
        source = self._source(resume)
        found = None if source is None or resume is None else self._newest_checkpoint_of(source)
        if self.directory is not None:
            check_own_state(trainer)
        if found is None:
            self._begin_anew(resume)
        else:
            self._resume(source, *found)
        self._compare_processes(f"the processes begin differently, after {self._position()}", "the beginning")
        self._describe("running")
        self.has_begun, self._looked_at = True, trainer.step
        self.come_to_rest()

    def _source(self, resume: str | os.PathLike[str] | None) -> RunDirectory | None:
        """Return the directory that is gone on from."""
        own = self.directory
        source = own if resume is None or str(resume) == "auto" else RunDirectory(resume)
        if source is None and resume is not None:
            raise TrainingError("resume='auto' goes on from run_dir, but the trainer has none; give run_dir")
        is_own = own is not None and source is not None and source.path.resolve() == own.path.resolve()
        return own if is_own else source  # its own may be named by its path

    def _begin_anew(self, resume: str | os.PathLike[str] | None) -> None:
        trainer = self._trainer
        if resume is not None and str(resume) != "auto":
            hint = "; did you mean 'auto'?" if get_close_matches(str(resume).lower(), ["auto"]) else ""
            raise TrainingError(f"{resume} holds no checkpoint to go on from{hint}")
        if self.has_begun:
            raise TrainingError(
                f"this {type(trainer).__name__} has trained already, up to epoch {trainer.epoch + 1}, step "
                f"{trainer.step}: a second fit() could neither begin anew nor go on exactly, unless the first was "
                "interrupted between two steps; make model, optimizer and trainer anew, or give a run_dir and go on "
                "from its checkpoint by fit(resume='auto')"
            )
        if self.directory is not None and trainer.fabric.is_global_zero:
            if resume is None:  # one that is resumed and was killed before its first checkpoint has left files too
                self.directory.check_empty()
            self._describes = True
            self.directory.begin()
        trainer.epoch = trainer.step = trainer.global_step = trainer.skipped_steps = 0
        trainer.history = []
        trainer.valid_part.enter(0, 0)
        self._stopping.begin([])
        close_books(trainer)

    def _resume(self, source: RunDirectory | None, checkpoint: Path, state: dict[str, Any]) -> None:
        trainer = self._trainer
        if self.directory is not None and source is not self.directory:
            self.directory.check_empty()
        load_state(trainer, state, checkpoint)
        reason = trainer.processes.first("the answer of the stopping rules", self._stopping.begin(trainer.history))
        trainer.stopped = None if trainer.step else reason  # rules are asked at the end of an epoch
        logger.info("goes on from %s, after %s", checkpoint, self._position())
        is_done = trainer.step == 0 and (trainer.epoch >= trainer.num_epochs or trainer.stopped is not None)
        if self.directory is not None and source is self.directory and is_done:
            self.standing = trainer._standing_result(self.directory)
        if self.standing is not None:
            logger.info("%s holds a finished run, which stays as it is", checkpoint.parent.parent)
        elif self.directory is not None and trainer.fabric.is_global_zero:
            self._describes = True
            self.directory.resume(state, trainer.history)

    def _go_on(self, rest: Rest) -> None:
        """Go on where this trainer was left between two steps."""
        trainer = self._trainer
        if self.directory is not None and trainer.fabric.is_global_zero:
            self.directory.check_not_beyond(trainer.global_step)
        trainer._forms.note()
        trainer._forms.train()
        for part, state in zip((trainer.train_part, trainer.valid_part), rest.data, strict=True):
            part.load_state_dict(state)
        rest.random.put_back()
        self.seconds_before, self._began = rest.seconds, time.perf_counter()
        self._describes = True
        logger.info("goes on after %s", self._position())
        self._describe("running")

    def note_state_loaded(self) -> None:
        """Note that a checkpoint's state takes the place of the trainer's own, so neither can begin here any more."""
        self.has_begun, self._rest = True, None

    def come_to_rest(self) -> None:
        """Note that the trainer stands between two steps, so that a `fit()` after this one can go on exactly."""
        trainer = self._trainer
        data = copy.deepcopy((trainer.train_part.state_dict(), trainer.valid_part.state_dict()))
        self._rest = Rest(RandomState(trainer.device), self.seconds(), data)

    # --- epochs and steps --------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Begin an epoch, or what is left of it."""
        self._epoch_began, self._first_step = time.perf_counter(), self._trainer.step
        self._rest = None  # until the epoch's end, or a signal
        for callback in self._trainer.callbacks:
            self.call(callback, "epoch_began")
        self._trainer.processes.speak_next()

    def end_steps(self) -> None:
        """End an epoch's steps: the processes have come to the same."""
        trainer = self._trainer
        at = f"the end of epoch {trainer.epoch + 1}, after {trainer.step} steps"
        self._compare_processes(f"the processes have diverged in epoch {trainer.epoch + 1}", at)
        self._epoch_seconds = time.perf_counter() - self._epoch_began

    def end_epoch(self) -> None:
        """End an epoch: it is recorded, and saved if that is due, and whoever may stop the run is asked."""
        trainer = self._trainer
        record = record_of(trainer, self._epoch_seconds, trainer.step - self._first_step)
        trainer.history.append(record)
        if self.directory is not None and trainer.fabric.is_global_zero:
            self.directory.append_epoch(record)
        reason = self._stopping.ask(record)  # all are asked, and may have read a clock
        trainer.stopped = trainer.processes.first("the answer of the stopping rules", reason)
        if trainer.stopped:
            logger.info("stopped after epoch %d: %s", record["epoch"], trainer.stopped)
        close_books(trainer)
        failure = None
        try:
            each(trainer.callbacks, lambda callback: self.call(callback, "epoch_ended", record))
        except Exception as error:  # it ends the search, and the epoch is saved before
            failure = error
        trainer.epoch, trainer.step, self._looked_at = trainer.epoch + 1, 0, 0
        every = self._checkpointing.every_epochs
        due = bool(every and (trainer.epoch % every == 0 or trainer.epoch == trainer.num_epochs or trainer.stopped))
        if due or (failure is not None and trainer.fabric.world_size == 1):  # of several, one cannot save alone
            self.save(record.get("valid_loss", record["train_loss"]))
        self.come_to_rest()
        if failure is not None:
            raise failure
        self.leave_if_asked(is_saved=due)

    def call(self, callback: Callback, name: str, *arguments: Any) -> None:
        """Call a callback; where it fails, the other processes end too."""
        with self._trainer.processes.first_process_only(f"{type(callback).__name__}.{name}"):
            getattr(callback, name)(self._trainer, *arguments)

    def _compare_processes(self, finding: str, at: str) -> None:
        """Raise, in all processes, unless they have come to the same."""
        if self._trainer.processes.count > 1:
            self._trainer.processes.compare_digests(what_has_come_out(self._trainer), finding, at)

    def _place(self) -> str:
        """Return which step is under way, or comes next, for a message."""
        return f"step {self._trainer.step + 1} of epoch {self._trainer.epoch + 1}"

    def _position(self) -> str:
        """Return what has been done last, for a message."""
        trainer = self._trainer
        return f"step {trainer.step} of epoch {trainer.epoch + 1}" if trainer.step else f"epoch {trainer.epoch}"

    # --- checkpoints, and leaving ------------------------------------------------------------------------------

    def save_between_steps(self) -> None:
        """Write a checkpoint if one is due, and leave if a signal has asked for it; outside of `fit` do nothing."""
        if self.signals is None:
            return
        trainer, due, number = self._trainer, self._checkpointing, int(self.signals.signal or 0)
        minutes = (time.monotonic() - self._saved_at) / 60
        is_late = due.every_minutes is not None and minutes >= due.every_minutes
        passes = trainer._steps.passes if trainer.accumulate == 1 else 0  # processes finish different steps meanwhile
        place = trainer.step, trainer.global_step, passes
        number, save = trainer.processes.between_steps(number, is_late, place)
        save |= bool(due.every_steps and trainer.step // due.every_steps > self._looked_at // due.every_steps)
        self._looked_at = trainer.step
        if number:
            self._leave(number)
        if save:
            self.save(None)

    def is_asked_to_leave(self) -> bool:
        """Say whether a signal has come, where this process alone decides."""
        return self._trainer.fabric.world_size == 1 and self.signals is not None and self.signals.signal is not None

    def leave_if_asked(self, *, is_saved: bool = False) -> None:
        """Leave `fit` here, between two steps, if a signal has asked for it."""
        assert self.signals is not None, "within fit"
        asked = self._trainer.processes.exchange("the signals", int(self.signals.signal or 0))
        number = max(number for (number,) in asked)
        if number:
            self._leave(number, is_saved=is_saved)

    def _leave(self, number: int, *, is_saved: bool = False) -> None:
        """Leave `fit` here, between two steps, as a signal has asked: of all processes, if it came to one of them."""
        assert self.signals is not None, "within fit"
        self.signals.signal = Signals(number)
        if self.standing is None and not is_saved:
            self.save(None)
        self.come_to_rest()
        how = "fit()" if self.directory is None else "resume='auto'"
        message = f"stopped by signal {number} after {self._position()}; {how} goes on from there"
        if self.directory is not None:
            logger.warning("%s", message)
        self._trainer.processes.leave_together("the end after a signal")
        raise self.signals.exit(message)

    def save(self, loss: float | None, *, softly: bool = False) -> None:
        """Write a checkpoint; all processes take part, the first one writes.

        Args:
            loss: Loss by which the best is known; None of a checkpoint that is not one of an epoch's end.
            softly: Whether a failing write is a warning. Default: an error.
        """
        if self.directory is None:
            return
        trainer = self._trainer
        trainer._check_noted()
        state = snapshot(trainer)
        self._saved_at = time.monotonic()
        if not trainer.fabric.is_global_zero:
            return
        with failing_softly("the last checkpoint is not written") if softly else nullcontext():
            self.directory.write_checkpoint(state, trainer.global_step, self._checkpointing.keep_last, loss)

    # --- the end -----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Let the trainer find its result, and write it."""
        trainer = self._trainer
        of_loss = trainer.loss.parameters() if isinstance(trainer.loss, nn.Module) else ()
        trained = [*trainer.model.parameters(), *of_loss, *trainer.parameters_outside()]
        result = {"weights": digest(trained)}
        with failing_softly("run.json has no digest of the trainer's state, so a rerun cannot compare it"):
            result["named_state"] = trainer.named_state.digest()
        for callback in trainer.callbacks:
            if isinstance(callback, ShowProgress):
                callback.fit_ended(trainer)  # a search by evaluations has a bar of its own
        trainer._conclude()
        directory = self.directory if trainer.fabric.is_global_zero else None
        if directory is not None:
            trainer._write_result(directory)
        if self.standing is None:
            self.save(None, softly=True)  # with what has been found out at the end
        with failing_softly("run.json does not say that the search has finished"):
            self._describe("finished", result=result, stopped=trainer.stopped, **trainer._about_result())
        self._describes, self._rest = False, None  # whatever comes now, all is done
        if directory is not None:
            trainer._write_plots(directory)
        trainer.processes.leave_together("the end of the search")

    def seconds(self) -> float:
        """Return how long the run has taken so far, in earlier processes too, up to where they were saved."""
        return self.seconds_before + time.perf_counter() - self._began

    def compared_options(self) -> dict[str, Any]:
        """Return what `options` says, or said before the first step, for a search may change what it is made from."""
        if self._options is not None:
            return self._options
        options = type(self._trainer).options(self._trainer)  # an attribute of a subclass may have that name
        return {name: as_json(option) for name, option in options.items()}

    def _describe(self, status: str, **result: Any) -> None:
        trainer = self._trainer
        if self.directory is None or not trainer.fabric.is_global_zero or not self._describes:
            return
        options = {**trainer._noted.given, **self._given_attributes, **self.compared_options(), **trainer.given_options}
        hyperparameters = {**options, "num_epochs": trainer.num_epochs}
        identity = {name: value for name, value in trainer.identity().items() if name != "options"}
        about = {"status": status, **surroundings(trainer.device), **identity, "hyperparameters": hyperparameters}
        self.directory.describe({**about, "seconds": self.seconds(), **result})
