"""What is called while a search runs: a bar, files, TensorBoard, and whatever a user adds."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.errors import MissingExtraError
from supernet.training.progress import ProgressBar, numbers_of
from supernet.training.run_directory import failing_softly

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__ = ["Callback", "CsvFile", "ShowProgress", "TensorBoard"]

logger = logging.getLogger("supernet")


class Callback:
    """Called while a search runs, in the first process only. Override what you need; each does nothing by default.

    A record is a dict of an epoch's figures, as in `metrics.jsonl`.

    >>> class Losses(Callback):
    ...     def epoch_ended(self, trainer, record):
    ...         print(f"epoch {record['epoch']}: {record['train_loss']:.2f}")
    >>> network, data = nn.Linear(1, 1), TensorDataset(torch.ones(8, 1), torch.ones(8, 1))
    >>> task = network, nn.MSELoss(), None, SGD(network.parameters(), 0.1), 2, data
    >>> history = train(*task, callbacks=[Losses()])  # as any trainer takes them
    epoch 1: ...
    epoch 2: ...
    """

    def fit_began(self, trainer: TrainingLoop) -> None:
        """Called before the first step; `trainer.history` has the epochs that a resumed search brings along."""

    def epoch_began(self, trainer: TrainingLoop) -> None:
        """Called before each epoch, `trainer.epoch` (from 0), and where one is gone on with, from `trainer.step`."""

    def step_ended(self, trainer: TrainingLoop) -> None:
        """Called after each step, `trainer.step` (from 0) of the epoch."""

    def epoch_ended(self, trainer: TrainingLoop, record: Mapping[str, Any]) -> None:
        """Called after each epoch. An error ends the search.

        The epoch is saved before; of several processes, only where a checkpoint is due.
        """

    def fit_ended(self, trainer: TrainingLoop) -> None:
        """Called at the end, also where an error or a signal ends the search; an error in it is a warning."""


class ShowProgress(Callback):
    """A bar with a line of metrics an epoch, where there is a terminal; a log line an epoch everywhere."""

    def fit_began(self, trainer: TrainingLoop) -> None:
        """Start the bar."""
        self._bar = ProgressBar(type(trainer).__name__, trainer.num_epochs, shown=trainer.progress)
        self._bar.__enter__()

    def epoch_began(self, trainer: TrainingLoop) -> None:
        """Start an epoch at the step where it is entered."""
        self._bar.begin_epoch(trainer.epoch, trainer.steps_of_an_epoch(), trainer.step)

    def step_ended(self, trainer: TrainingLoop) -> None:
        """Move the bar."""
        self._bar.advance()

    def epoch_ended(self, trainer: TrainingLoop, record: Mapping[str, Any]) -> None:
        """Show and log the metrics."""
        self._bar.end_epoch(trainer.epoch, numbers_of(record))

    def fit_ended(self, trainer: TrainingLoop) -> None:
        """Take the bar down."""
        self._bar.__exit__(None, None, None)


class CsvFile(Callback):
    """A table of all numbers of each epoch, a row an epoch.

    Args:
        path: Path of the file, which is written anew when a search begins, with the epochs that it brings along.

    >>> network, data = nn.Linear(1, 1), TensorDataset(torch.ones(8, 1), torch.ones(8, 1))
    >>> task = network, nn.MSELoss(), None, SGD(network.parameters(), 0.1), 2, data
    >>> history = train(*task, callbacks=[CsvFile("epochs.csv")])  # as any trainer takes them
    >>> with open("epochs.csv") as file:
    ...     [line.split(",")[0] for line in file]
    ['epoch', '1', '2']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # wherever the script goes
        self._columns: list[str] = []

    def fit_began(self, trainer: TrainingLoop) -> None:
        """Write the epochs that there are."""
        self._columns = []
        self.path.write_text("", encoding="utf-8")
        for record in trainer.history:
            self.epoch_ended(trainer, record)

    def epoch_ended(self, trainer: TrainingLoop, record: Mapping[str, Any]) -> None:
        """Write a row."""
        row = flat(record)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            if not self._columns:
                self._columns = list(row)
                csv.writer(file).writerow(self._columns)
            csv.DictWriter(file, self._columns, restval="", extrasaction="ignore").writerow(row)


class TensorBoard(Callback):
    """All numbers of each epoch as scalars of TensorBoard.

    Args:
        directory: Directory of the event files.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("TensorBoard needs tensorboard: pip install 'supernet[tensorboard]'") from error
        self._new_writer = SummaryWriter
        self.directory = Path(directory).absolute()  # wherever the script goes

    def fit_began(self, trainer: TrainingLoop) -> None:
        """Open an event file that replaces what comes after the epochs that there are."""
        self._writer = self._new_writer(str(self.directory), purge_step=len(trainer.history) + 1)

    def epoch_ended(self, trainer: TrainingLoop, record: Mapping[str, Any]) -> None:
        """Write the scalars."""
        for name, value in flat(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def fit_ended(self, trainer: TrainingLoop) -> None:
        """Close the event file."""
        self._writer.close()


@contextmanager
def called(callbacks: Sequence[Callback], call: Callable[[Callback, str], None]) -> Iterator[None]:
    """Let `fit_began` of each be called, and after this context, however it ends, `fit_ended` of those that began."""

    def end(callback: Callback) -> None:
        with failing_softly(f"{type(callback).__name__}.fit_ended failed, which leaves the search as it is"):
            call(callback, "fit_ended")

    with ExitStack() as stack:
        for callback in callbacks:
            stack.callback(end, callback)
            call(callback, "fit_began")
        yield


def each(callbacks: Sequence[Callback], do: Callable[[Callback], None]) -> None:
    """Do something with each, also where it fails with another one; the last failure is passed on."""
    with ExitStack() as stack:
        for callback in reversed(callbacks):
            stack.callback(do, callback)


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return all numbers of a record, inner ones as "outer/inner"; decisions are no numbers."""
    result: dict[str, float] = {}
    for name, value in record.items():
        if name == "architecture":
            continue
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            result |= flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            result[f"{prefix}{name}"] = value
    return result
