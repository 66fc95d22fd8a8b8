"""The files that a run leaves behind, and goes on from.

run.json                    what was run, with what, and how it ended
metrics.jsonl               a line an epoch
checkpoints/*.safetensors   the last ones, and the best
architecture.json           the result,
network.safetensors         the frozen network's weights,
*.png, *.svg                and plots of both
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from torch import nn

from supernet.checks import check_counts, check_numbers
from supernet.errors import FileFormatError, MissingExtraError, TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.files.encoding import UnknownClassError
from supernet.files.weights import save_weights
from supernet.reports import plot_architecture, plot_probabilities
from supernet.space import Architecture, SearchSpace, load_architecture, save_architecture
from supernet.space.files import (
    DIGITS,
    digest_of_json,
    has_digest,
    parsed_json,
    read_json,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    import torch

    from supernet.processes.messages import Processes

__all__ = ["Checkpointing"]

logger = logging.getLogger("supernet")

RERUN = "SUPERNET_RERUN"  # where `supernet rerun` has all run directories made instead
RERUN_ONLY = "SUPERNET_RERUN_ONLY"  # the run directory whose run it is about: its command may have made several
DESCRIPTION, LOCK = "run.json", ".lock"
FORMAT, VERSION = "supernet/run", 1
WEIGHTS = "network.safetensors"

_CHECKPOINT = re.compile(r"step-\d{12}\.safetensors")
# What a process that died can have left: of a file that is written whole, or of a look whether all see one directory.
_UNFINISHED = re.compile(
    r"\.(step-\d{12}\.safetensors|run\.json|metrics\.jsonl|architecture\.json|network\.safetensors)(\.\d+)?\.tmp"
    r"|\.processes-[0-9a-f]{16}"
)


@dataclass(frozen=True)
class Checkpointing:
    """When a checkpoint is written, and which are kept.

    One is written at the end of a search, too.

    Args:
        every_epochs: Number of epochs between checkpoints; None for none at the end of an epoch. Default: 1.
        every_steps: Number of steps of an epoch between checkpoints. Default: none inside an epoch.
        every_minutes: Minutes between checkpoints. Default: none by time.
        keep_last: Number of checkpoints that stay, besides the one with the least loss on the validation part. Default:
            2.

    >>> Checkpointing(every_epochs=10, every_minutes=30)  # whichever comes first
    Checkpointing(every_epochs=10, every_steps=None, every_minutes=30, keep_last=2)
    """

    every_epochs: int | None = 1
    every_steps: int | None = None
    every_minutes: float | None = None
    keep_last: int = 2

    def __post_init__(self) -> None:
        due = {"every_epochs": self.every_epochs, "every_steps": self.every_steps}
        check_counts(**{name: count for name, count in due.items() if count is not None}, keep_last=self.keep_last)
        if self.every_minutes is not None:
            check_numbers(every_minutes=self.every_minutes)


class RunDirectory:
    """A run's directory. It is made when a run begins in it.

    Which one it is, is decided here: neither a later `os.chdir` nor a symbolic link that comes to lead elsewhere moves
    it.

    Raises:
        TrainingError: The path leads through a file, or can be none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = self._first = Path(path).resolve()
            self.path.exists()
        except (OSError, ValueError, TypeError, RuntimeError) as error:  # too long, a null byte, links in a circle
            raise TrainingError(f"run_dir {path!r} can be no directory: {error}") from error
        if base := os.environ.get(RERUN):
            self.path = redirected(self.path, Path(base))
        self._metrics = self.path / "metrics.jsonl"
        self._checkpoints = self.path / "checkpoints"
        self._best: tuple[float, str] | None = None
        self._digest = ""  # of the last line of metrics.jsonl
        self._broken: set[str] = set()  # checkpoints that were found so
        present = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not present.is_dir():
            raise TrainingError(f"run_dir {self.path} cannot be made, for {present} is no directory")

    def ends_a_rerun(self) -> bool:
        """Say whether `supernet rerun` is about the run here, so that nothing after it is of interest."""
        return os.environ.get(RERUN_ONLY) == str(self._first)

    def stands_aside(self) -> RunDirectory | None:
        """Return where the run here has finished already, if `supernet rerun` is about another run; else None."""
        if RERUN_ONLY not in os.environ or self.ends_a_rerun():
            return None
        first = copy.copy(self)
        first.path, first._checkpoints = self._first, self._first / "checkpoints"
        return first if first.is_finished() and first.newest_checkpoint() is not None else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the operating system lets go of it however this one ends.

        Raises:
            TrainingError: Another live process runs here, or the directory cannot be made or written to.
        """
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0.5)  # whoever asks whether a process lives here holds it for a moment
        except Timeout as error:
            raise TrainingError(f"{self.path} is in use by another live process; choose another run_dir") from error
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written to: {error}") from error
        try:
            self._remove_unfinished()
            yield
        finally:
            lock.release()

    def _remove_unfinished(self) -> None:
        """Remove what processes that died in a write have left; with the lock held, no other is in one here."""
        for path in (*self.path.glob(".*"), *self._checkpoints.glob(".*")):
            if _UNFINISHED.fullmatch(path.name):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise TrainingError(f"{path}, which a process has left, cannot be removed: {error}") from error

    def _own_checkpoints(self) -> list[Path]:
        """Return the checkpoints, those of earlier steps first. Other files there are not ours.

        Raises:
            TrainingError: It cannot be known now which there are.
        """
        try:
            with os.scandir(self._checkpoints) as entries:  # `Path.glob` would take what it cannot read for empty
                names = [entry.name for entry in entries if _CHECKPOINT.fullmatch(entry.name) and entry.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot_be_read_now(self._checkpoints, error) from error
        return [self._checkpoints / name for name in sorted(names)]

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint of the latest step, None where there is none."""
        return max(self._own_checkpoints(), default=None)

    def newest_whole_checkpoint(
        self, processes: Processes, classes: Iterable[type] = (), device: torch.device | str = "cpu"
    ) -> tuple[Path, dict[str, Any]] | None:
        """Return the latest checkpoint that is whole, and its state; None where there is none at all.

        The first process chooses; all read the same file. All must call it together.

        Args:
            processes: The processes of the run, all of which call this together.
            classes: Classes that may be made, as `read_checkpoint` takes them.
            device: Device of the tensors, as `read_checkpoint` takes it.

        Raises:
            FileFormatError: There are checkpoints, and none is whole; names the latest. Or what is whole holds
                something of a class that may not be made.
            TrainingError: One that may be whole cannot be read now, or a process does not see the file that the first
                one reads.
        """
        found = self._read_newest_whole(classes, device) if processes.rank == 0 else None
        name = processes.first("the checkpoint to go on from", found and found[0].name)
        if name is None or found is not None:
            return found
        path = self._checkpoints / name
        try:
            return path, read_checkpoint(path, classes, device)
        except FileNotFoundError as error:
            raise TrainingError(
                f"process {processes.rank} does not see {path}, from which the first process goes on; let all "
                "processes see one directory"
            ) from error
        except OSError as error:
            raise _cannot_be_read_now(path, error) from error

    def _read_newest_whole(
        self, classes: Iterable[type], device: torch.device | str
    ) -> tuple[Path, dict[str, Any]] | None:
        broken: list[FileFormatError] = []
        for path in reversed(self._own_checkpoints()):
            try:
                state = read_checkpoint(path, classes, device)
            except UnknownClassError:  # it is whole, and an older one would not help
                raise
            except FileFormatError as error:
                broken.append(error)
                self._broken.add(path.name)
                continue
            except OSError as error:  # it may be whole: an older one is no reason to do without it
                raise _cannot_be_read_now(path, error) from error
            if broken:
                what = "; ".join(map(str, broken))
                logger.warning("goes on from %s, since no newer checkpoint is whole: %s", path, what)
            return path, state
        if broken:
            older = f"; nor is any older one in {self._checkpoints}" if len(broken) > 1 else ""
            raise FileFormatError(
                f"no checkpoint is whole to go on from: {broken[0]}{older}; begin anew in another run_dir"
            ) from broken[0]
        return None

    def write_checkpoint(self, state: dict[str, Any], global_step: int, keep_last: int, loss: float | None) -> Path:
        """Write a checkpoint, and remove those that are neither among the last nor the best.

        Args:
            state: The tree that is written.
            global_step: Number of steps so far, of all epochs; it orders the files.
            keep_last: Number of checkpoints that stay.
            loss: Loss of the validation part at the end of an epoch, by which the best is known. Default: not the end
                of an epoch.
        """
        self._check_there()
        path = self._checkpoints / _name(global_step)
        if loss is not None and not math.isnan(loss) and (self._best is None or loss < self._best[0]):
            self._best = loss, path.name
        write_checkpoint(path, {**state, "best": self._best})
        others = self._own_checkpoints()
        position = others.index(path)
        # The run went on from an earlier one than those that are broken.
        broken = [other for other in others[position + 1 :] if other.name in self._broken]
        for other in others[: max(0, position + 1 - keep_last)] + broken:
            if self._best is None or other.name != self._best[1]:
                other.unlink(missing_ok=True)
        return path

    def begin(self) -> None:
        """Begin anew."""
        self._best, self._digest = None, ""
        with self._writing(self._metrics.name):
            write_atomically(self._metrics, "")

    def check_empty(self) -> None:
        """Raise `TrainingError` if a run is here already."""
        if self._metrics.exists() or self.newest_checkpoint() is not None:
            raise TrainingError(
                f"{self.path} holds a run already; go on with it by resume='auto', choose another run_dir, or "
                "move it away"
            )

    def check_not_beyond(self, global_step: int) -> None:
        """Raise `TrainingError` if another process has gone on with the run here, beyond that step."""
        newest = self.newest_checkpoint()
        if newest is not None and newest.name > _name(global_step):
            raise TrainingError(
                f"{self.path} has been gone on with elsewhere, up to {newest.name}, and this trainer stands at step "
                f"{global_step}; go on from there by fit(resume='auto')"
            )

    def resume(self, state: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
        """Go on from a state: files say what it knows, and no more.

        Raises:
            FileFormatError: What it knows of this directory is not what is written there.
        """
        try:
            self._best = None if state["best"] is None else (float(state["best"][0]), str(state["best"][1]))
            self._digest = ""
            lines = [self._line(record) for record in history]
        except (LookupError, ValueError, TypeError) as error:
            raise FileFormatError(f"a checkpoint of {self.path} tells of no run: {error}") from error
        with self._writing(self._metrics.name):
            write_atomically(self._metrics, "".join(lines))

    def is_finished(self) -> bool:
        """Say whether the run here has finished."""
        try:
            return read_description(self.path).get("status") == "finished"
        except FileFormatError:
            return False

    def finished_architecture(self, space: SearchSpace) -> Architecture | None:
        """Return what the run here has found, if it is finished; else None."""
        if not self.is_finished():
            return None
        try:
            return load_architecture(self.path / "architecture.json", space)
        except (FileFormatError, FileNotFoundError) as error:
            logger.warning("%s has no result that can be kept, so it is written anew: %s", self.path, error)
            return None

    def append_epoch(self, record: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with self._writing(self._metrics.name), self._metrics.open("a", encoding="utf-8") as file:
            file.write(self._line(record))

    def _line(self, record: Mapping[str, Any]) -> str:
        """Return the next line of `metrics.jsonl`, with a digest of it and of the line before it."""
        self._digest = digest_of_json(record, self._digest)[:DIGITS]
        return json.dumps({**record, "digest": self._digest}) + "\n"

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        with self._writing(DESCRIPTION):
            write_json(self.path / DESCRIPTION, FORMAT, VERSION, description)

    def write_architecture(self, architecture: Architecture, space: SearchSpace) -> None:
        """Write `architecture.json`."""
        with self._writing("architecture.json", f"; the search has found {dict(architecture)}"):
            save_architecture(architecture, self.path / "architecture.json", space)

    def write_network(self, network: Callable[[], nn.Module]) -> None:
        """Write `network.safetensors`: the weights of what the function returns."""
        with failing_softly(f"{self.path / WEIGHTS} is not written"):
            save_weights(network(), self.path / WEIGHTS)

    def write_plots(
        self, model: nn.Module, architecture: Architecture, space: SearchSpace, history: list[dict[str, Any]]
    ) -> None:
        """Write plots as PNG and SVG."""
        with failing_softly(f"{self.path} holds no picture of the architecture"):
            plot_architecture(model, architecture, self.path / "architecture")
        with failing_softly(f"{self.path} holds no plot of the probabilities"):
            plot_probabilities(space, history, self.path / "probabilities")

    @contextmanager
    def _writing(self, name: str, more: str = "") -> Iterator[None]:
        """Turn what the system says where a file cannot be written into an error that names it."""
        self._check_there(more)
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self.path / name} cannot be written: {error}{more}") from error

    def _check_there(self, more: str = "") -> None:
        if not self.path.is_dir():
            raise TrainingError(f"{self.path} has been removed or renamed while the run was going on{more}")


def is_in_use(directory: Path) -> bool:
    """Say whether a live process runs in a run directory; where that cannot be known, it is taken to."""
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except (Timeout, OSError, RuntimeError):  # held by another process, or not to be had, or held by this one
        return True


def _name(global_step: int) -> str:
    """Return the name of the checkpoint of a step; names are in the order of steps."""
    return f"step-{global_step:012d}.safetensors"


def _cannot_be_read_now(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{path} cannot be read now: {error}; it is as it was, so try again once it can be")


@contextmanager
def failing_softly(consequence: str) -> Iterator[None]:
    """Turn an error into a warning in this context: what a finished run can be without must not fail it."""
    try:
        yield
    except MissingExtraError as error:
        logger.warning("%s: %s", consequence, error)
    except Exception as error:  # whatever it is, days of training are worth more
        logger.warning("%s: %s: %s", consequence, type(error).__name__, error, exc_info=True)


def redirected(path: Path, base: Path) -> Path:
    """Return where `supernet rerun` has the run directory `path` made: below `base`, each under its whole path."""
    return base.joinpath(*path.resolve().parts[1:])


def read_description(directory: Path) -> dict[str, Any]:
    """Read a directory's `run.json`.

    Raises:
        FileFormatError: It is missing, broken, or of another format; names the file.
    """
    try:
        return read_json(directory / DESCRIPTION, FORMAT, VERSION, "does not describe a run")
    except FileNotFoundError as error:
        raise FileFormatError(f"{directory} is no run directory: it has no {DESCRIPTION}") from error


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Read a directory's `metrics.jsonl`.

    A last line without its end is one that a kill has cut off, or that is being written: it is left out.

    Raises:
        FileFormatError: A line of it is broken, or is not the one that followed the line before it; names the file
            and the line.
    """
    path = directory / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    records, before = [], ""
    knows_digests = False
    for number, line in enumerate(lines, 1):
        record = _record(path, number, line)
        digest = record.pop("digest", None)
        if number == 1:
            # Older files have none in any line, and no text at the end, as a digest by another name would be.
            knows_digests = digest is not None or isinstance([None, *record.values()][-1], str)
        if not (has_digest(record, digest, before) if knows_digests else digest is None):
            raise FileFormatError(
                f"{path}, line {number} does not have the digest that it was written with after the line before it: "
                "one of them has been changed or removed, or was damaged"
            )
        records.append(record)
        before = digest or ""
    return records


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = parsed_json(line)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}, line {number}: not a whole JSON object: {error}") from error
    if not isinstance(record, dict):
        raise FileFormatError(f"{path}, line {number}: not a JSON object")
    return record
