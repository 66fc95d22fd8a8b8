"""The loop that our trainers share: epochs and steps. An algorithm adds what a step is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from supernet.training.config import LoopOptions
from supernet.training.preparation import Preparation
from supernet.training.progress import formatted
from supernet.training.run_directory import RunDirectory
from supernet.training.steps import SkippedStep

__all__ = ["LoopOptions", "TrainingLoop"]

logger = logging.getLogger("supernet")


class TrainingLoop(Preparation):
    """The loop itself, which knows no choices: data, devices, epochs, steps, metrics, stopping, files, exact resume.

    A subclass says what a step is by `train_step` or `train_epoch`, and what is left at the end by `_conclude`. The
    arguments are those of `SupernetTrainer`. What a step is made of stands in `steps.py`, what is made before in
    `preparation.py`, and what surrounds the loop in `run.py`.
    """

    def fit(self, resume: str | os.PathLike[str] | None = None) -> None:
        """Train the supernet and search.

        The model is in training form meanwhile, all but those parts of it that are in eval form before, while it itself
        is not: these stay so, such as a frozen backbone with its statistics. After it all is in the form it had.

        SIGTERM and SIGINT let the step finish, write a checkpoint where there is a `run_dir`, and raise `SystemExit`
        with 128 + the signal's number; without a `run_dir`, SIGINT raises `KeyboardInterrupt`. `fit()` again on this
        trainer goes on exactly.

        Args:
            resume: "auto" goes on from the newest checkpoint in `run_dir`, or begins where there is none; the path of a
                run directory goes on from that one's. Default: begin.

        Raises:
            NonFiniteError: A loss or an architecture parameter is NaN or infinite; names epoch and step.
            TrainingError: `run_dir` holds a run that is not resumed, is in use, or its checkpoint is of another
                search; processes have diverged.
            FileFormatError: The checkpoint is broken; names the file and what is wrong.
        """
        with self._run.started(resume):  # lock, signals, seed, what is resumed, callbacks; at the end the result
            while self.epoch < self.num_epochs and self.stopped is None and not self._run.stands_aside:
                self._run.begin_epoch()
                self.train_epoch()
                self._apply_waiting()
                self._run.end_steps()
                self._validate()
                self._run.end_epoch()  # record, scheduler, stopping rules, checkpoint

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
            self._run.call(callback, "step_ended")
        self.step += 1
        self.global_step += 1
        if self.log_frequency and self.step % self.log_frequency == 0:
            self._check_noted()
            last = {f"{part}_{name}": v for part, meter in self.meters.items() for name, v in meter.last().items()}
            logger.info("%s  %s", self.where(), formatted(self._read_meters(), last))
        if not self._steps.waiting():
            self._run.save_between_steps()

    # --- what an algorithm says of itself ----------------------------------------------------------------------

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

    def derive(self) -> Any:
        """Return the architecture that would be exported, where knowing it costs nothing; None by default."""
        return None

    # --- where the search is -----------------------------------------------------------------------------------

    def steps_of_an_epoch(self) -> int | None:
        """Return how many steps an epoch has; None where that is not known (a stream)."""
        return self.train_part.length

    def where(self) -> str:
        """Return how far the search is, for a log line."""
        return f"Epoch [{self.epoch + 1}/{self.num_epochs}] Step [{self.step}/{self.steps_of_an_epoch() or '?'}]"

    def _read_meters(self) -> dict[str, float]:
        summed = None if self.processes.count == 1 else self.processes.sums
        return {f"{part}_{name}": v for part, meter in self.meters.items() for name, v in meter.read(summed).items()}

    def save_between_steps(self) -> None:
        """Write a checkpoint if one is due, and leave if a signal has asked for it; outside of `fit` do nothing."""
        self._run.save_between_steps()

    def seconds(self) -> float:
        """Return how long the search has run so far, in earlier processes too, up to where they were saved."""
        return self._run.seconds()

    def note_state_loaded(self) -> None:
        """Note that a checkpoint's state takes the place of this trainer's own, so neither can begin here any more."""
        self._run.note_state_loaded()

    def note_other_num_epochs(self, before: int) -> None:
        """Note that the search which goes on had another `num_epochs`; nothing by default.

        Args:
            before: How many those were.
        """

    # --- what a kind of trainer adds ---------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure what an epoch has trained, where its steps do not; nothing by default."""

    def _record_of_choices(self) -> dict[str, Any]:
        """Return what is recorded of an epoch beside figures of the training; nothing by default."""
        return {}

    def _standing_result(self, run: RunDirectory) -> Any:
        """Return what a finished run has left, which stays as it is; None where it has not finished."""
        return run.is_finished() or None

    def _conclude(self) -> None:
        """Find the result, in all processes."""

    def _about_result(self) -> dict[str, Any]:
        """Return what `run.json` says of the result; nothing by default."""
        return {}

    def _write_result(self, run: RunDirectory) -> None:
        """Write the result."""

    def _write_plots(self, run: RunDirectory) -> None:
        """Draw the result, which may fail."""
