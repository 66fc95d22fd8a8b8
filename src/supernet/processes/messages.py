"""What the processes of a run tell each other beside gradients; and that none waits for one that is gone.

Messages go through a group of their own, as tensors on the CPU, so that they are never taken for gradients. Each says
what it is: processes that are at different points notice at their next message. Waiting ends after `process_timeout`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed

from supernet.errors import SupernetError, TrainingError
from supernet.execution.state import overwritten
from supernet.processes.interruption import Interruption
from supernet.processes.watch import Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []

logger = logging.getLogger("supernet")

NUMBERS = 6  # of one message, at most
MEND = "; where it is not stuck but takes longer, give a larger process_timeout"
SECONDS_BETWEEN_MESSAGES = 0.5  # of the steps, so that a signal is honoured within about a second

_OF_PROCESSES = "gloo|NCCL|timed out waiting|by peer|pair closure|application timeout"

_groups: dict[float, tuple[Any, Any]] = {}  # timeout -> the default group, and that of the messages


class Place(NamedTuple):
    """Which of how many processes this is, as a Fabric says it too."""

    global_rank: int = 0
    world_size: int = 1

    @classmethod
    def in_torch(cls) -> Place:
        """Return the place that `torch.distributed` gives this process; where it is not initialized, there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())


class Processes:
    """The processes of a run. All must call its methods together, and in the same order.

    Args:
        fabric: The Fabric that has launched them.
        timeout: Seconds that one waits for the others.

    Attributes:
        rank: Number of this process among them, from 0 on.
        count: Number of processes.
    """

    def __init__(self, fabric: Fabric | Place, timeout: float) -> None:
        several = fabric.world_size > 1 and distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (fabric.global_rank, fabric.world_size) if several else (0, 1)
        self._timeout = timeout
        self._watch: Watch | None = None
        self._waits_for: str | None = None
        self._first_only_for: str | None = None
        self._is_leaving = self._has_lost_others = self._is_undisturbed = False
        self._steps = self._steps_left = 1  # from one message to the next; until the next
        self._spoke_at = time.perf_counter()
        if several:
            with self._waiting("the first message"):
                self._group = _group_of_messages(timeout)

    # --- messages ------------------------------------------------------------------------------------------

    def exchange(self, what: str, *numbers: int) -> list[list[int]]:
        """Return the numbers that each process has given, in one message.

        Raises:
            TrainingError: Another process is at another message, or does not come.
        """
        if self.count == 1:
            return [list(numbers)]
        told = torch.zeros(2 + NUMBERS, dtype=torch.int64)
        told[: 2 + len(numbers)] = torch.tensor([_number_of(what), len(numbers), *numbers])
        with self._waiting(what):
            rows = torch.stack(self._all_gather(told)).tolist()
            if any(row[:2] != rows[0][:2] for row in rows):
                self._refuse_different_messages(what)
        return [row[2 : 2 + len(numbers)] for row in rows]

    def values(self, what: str, value: Any) -> list[Any]:
        """Return the values of all processes: whatever JSON can say."""
        if self.count == 1:
            return [value]
        text = json.dumps(value, default=str).encode()
        lengths = [length for (length,) in self.exchange(what, len(text))]
        with self._waiting(what):
            texts = self._all_gather(_padded(text, max(lengths)))
        return [json.loads(bytes(t.tolist())[:n]) for t, n in zip(texts, lengths, strict=True)]

    def all_gather_object(self, what: str, value: Any) -> list[Any]:
        """Return the values of all processes, which are pickled: for states, outside of steps."""
        self.exchange(what)
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._waiting(what):
            distributed.all_gather_object(values, value, group=self._group)
        return values

    def gather_object(self, what: str, value: Any) -> list[Any]:
        """Return the values of all processes in the first one, and in the others nothing; as `all_gather_object`."""
        self.exchange(what)
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._waiting(what):
            distributed.gather_object(value, values if self.rank == 0 else None, dst=0, group=self._group)
        return values

    def first(self, what: str, value: Any) -> Any:
        """Return the value of the first process, which decides for all: whatever JSON can say."""
        return self.values(what, value)[0]

    def mean(self, what: str, number: float) -> float:
        """Return the mean of a number over the processes."""
        bits = [bits for (bits,) in self.exchange(what, _bits_of(number))]
        return sum(struct.unpack("d", struct.pack("q", bits))[0] for bits in bits) / self.count

    def sums(self, names: Sequence[str], numbers: torch.Tensor) -> torch.Tensor:
        """Return sums over the processes of numbers that have names.

        Raises:
            TrainingError: The processes have different ones.
        """
        what = "the means over batches"
        if len({told for (told,) in self.exchange(what, _number_of(json.dumps(list(names))))}) > 1:
            self.compare({"the loss and metrics": list(names)}, "the processes have measured different things")
        if self.count > 1:
            with self._waiting(what):
                distributed.all_reduce(numbers, group=self._group)
        return numbers

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give all processes the first one's values of these tensors."""
        with torch.no_grad(), self._waiting("the first process's weights"):
            for tensor in tensors if self.count > 1 else ():
                values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
                # As bytes, for gloo does not know every dtype.
                distributed.broadcast(values.flatten().view(torch.uint8), src=0, group=self._group)
                overwritten(tensor, values)

    def compare(self, told: Mapping[str, Any], finding: str = "the processes differ") -> None:
        """Raise, in all processes, unless each tells the same.

        Args:
            told: Name -> what JSON can say.
            finding: What the error says of them if they do not tell the same.

        Raises:
            TrainingError: Names what differs, and which process has which.
        """
        every = self.values(f"a comparison, whether {finding}", told)
        names = dict.fromkeys(name for one in every for name in one)
        lines = [_difference(name, [one.get(name) for one in every]) for name in names]
        lines = [line for line in lines if line]
        if lines:
            more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise TrainingError(f"{finding}: {'; '.join(lines[:5])}{more}; all must have the same")

    def compare_digests(self, told: Mapping[str, Any], finding: str, at: str) -> None:
        """Raise as `compare` does; one small message where all is well.

        Args:
            told, finding: The same as `compare` takes.
            at: What is to be compared, for the error where it does not come to that.
        """
        if len({one for (one,) in self.exchange(at, _number_of(json.dumps(told)))}) > 1:
            self.compare(told, finding)

    def between_steps(self, number: int, wish: bool, position: Sequence[int]) -> tuple[int, bool]:
        """Return the largest number and whether any process wishes: asked after each step, told now and then.

        Where nothing is told, that is 0 and no. How many steps there are from one message to the next is agreed in the
        message, so that it comes about twice a second.

        Args:
            number: Number of a signal; 0 for none.
            wish: Whether this process wishes to save.
            position: Up to three numbers that must be the same in all processes.
        """
        if self.count == 1:
            return number, wish
        self._steps_left -= 1
        if self._steps_left > 0:
            return 0, False
        microseconds = int((time.perf_counter() - self._spoke_at) * 1e6)
        told = self.exchange("a message between two steps", number, int(wish), microseconds, *position)
        if any(one[3:] != told[0][3:] for one in told):
            self.compare(
                {"[step, all steps, backward passes]": list(position)}, "the processes have not taken the same steps"
            )
        step = max(one[2] for one in told) / self._steps
        self._steps = max(1, min(2 * self._steps, int(SECONDS_BETWEEN_MESSAGES * 1e6 / max(step, 1))))
        self._steps_left, self._spoke_at = self._steps, time.perf_counter()
        return max(one[0] for one in told), any(one[1] for one in told)

    def speak_next(self) -> None:
        """Let the next step end with a message: where steps begin that may take another time."""
        self._steps = self._steps_left = 1
        self._spoke_at = time.perf_counter()

    def leave_together(self, what: str) -> None:
        """Wait until all are about to end as they should."""
        if self.count > 1:
            self._is_leaving = True
            self.exchange(what)

    def check_same_files(self, directory: Path) -> None:
        """Raise unless all processes see the same directory under the names that they have for it."""
        if self.count == 1:
            return
        mine = directory / f".processes-{secrets.token_hex(8)}"
        try:
            if self.rank == 0:
                mine.touch()
            name = self.first("the run directory", mine.name)
            sought, until = directory / name, time.monotonic() + min(5.0, self._timeout / 2)
            while not (found := sought.exists()) and time.monotonic() < until:  # a network's file systems lag behind
                time.sleep(0.05)
            every = self.values("the run directory", [str(directory.absolute()), found])
        finally:
            if self.rank == 0:
                mine.unlink(missing_ok=True)
        lacking = [f"{path} of process {rank}" for rank, (path, found) in enumerate(every) if not found]
        if lacking:
            raise TrainingError(
                f"run_dir is not one directory that all processes see: {every[0][0]} of process 0 is not "
                f"{', nor '.join(lacking[:3])}; give all the same, on a file system that they share, by a name without "
                "the time or the number of a process"
            )

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        every = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(every, tensor, group=self._group)
        return every

    def _refuse_different_messages(self, what: str) -> None:
        whole = _padded(f"{what} ({self._watch.where() if self._watch else 'before fit'})".encode(), 500)
        texts = [bytes(text.tolist()).rstrip(b"\0").decode(errors="replace") for text in self._all_gather(whole)]
        at = "; ".join(f"process {rank} is at {text}" for rank, text in enumerate(texts))
        raise TrainingError(
            f"the processes do not do the same: {at}; they need as many batches, and code that does the same in all"
        )

    # --- waiting for the others, and not in vain -----------------------------------------------------------

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        if self._first_only_for is not None:
            raise TrainingError(
                f"{self._first_only_for} runs in the first process only, but what it calls takes all of them ({what}); "
                "do that after fit(), in all processes"
            )
        self._waits_for = what
        try:
            with self.errors_named():
                yield
        finally:
            self._waits_for = None

    @contextmanager
    def errors_named(self, noticed: Interruption | None = None) -> Iterator[None]:
        """Turn what torch raises where another process is gone into an error that says which, and why.

        Args:
            noticed: Where a signal is noted, which is forgotten if another process is gone: whatever has launched the
                processes ends them all then. Default: none.
        """
        try:
            yield
        except SupernetError:
            raise
        except RuntimeError as error:
            if self.count == 1 or not is_about_processes(error):
                raise
            raise self._lost(error) from error
        finally:
            if noticed is not None and self._has_lost_others:
                noticed.signal = None

    @contextmanager
    def first_process_only(self, what: str) -> Iterator[None]:
        """Refuse messages in this context, which other processes do not come to."""
        if self.count == 1:
            yield
            return
        self._first_only_for = what
        try:
            yield
        finally:
            self._first_only_for = None

    @contextmanager
    def watched(self, where: Callable[[], str]) -> Iterator[None]:
        """Let the others know in this context how this process is, and end it soon where another has ended.

        Args:
            where: A function that says how far this process is.
        """
        if self.count == 1:
            yield
            return
        self._is_leaving = self._has_lost_others = False
        with self._waiting("the beginning of fit"):
            self._watch = Watch(self, where, min(0.5, self._timeout / 4), self._timeout)
        try:
            self.exchange("the beginning of fit")
            self._watch.start()
            with self._watch.interrupting():
                yield
        except BaseException as error:
            if not self._is_leaving:
                self._watch.tell(failure=_said(error))
            raise
        finally:
            self._watch.stop()
            self._watch = None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Do not let this process be interrupted in this context where another has failed."""
        self._is_undisturbed = True
        try:
            yield
        finally:
            self._is_undisturbed = False

    def _lost(self, error: RuntimeError) -> TrainingError:
        """Return the error for what torch has raised while this process waited."""
        self._has_lost_others = True
        timed_out = re.search("timed?[ -]?out", str(error), re.IGNORECASE) is not None
        what = self._waits_for or "the gradients, or what else a step shares"
        here = f" in {self._watch.where()}" if self._watch else ""
        others = self._watch.of_others() if self._watch else self._unknown()
        if not timed_out:
            return TrainingError(f"process {self.rank} was waiting{here} for {what}, and lost the connection: {others}")
        return TrainingError(
            f"process {self.rank} has waited {self._timeout:g} seconds{here} for {what}: {others}{MEND}"
        )

    def _unknown(self) -> str:
        which = f"process {1 - self.rank}" if self.count == 2 else "one of the other processes"
        return f"{which} has ended or hangs; its own output may say why"

    def state(self) -> dict[str, Any]:
        """Return what is told of this process."""
        return {"waits for": self._waits_for}

    def end_by(self, failure: str, where: str) -> TrainingError:
        """Return the error that ends this process for another one has failed."""
        self._has_lost_others = True
        return TrainingError(f"{failure}; process {self.rank} was in {where}")

    @property
    def is_leaving(self) -> bool:
        """Whether this process is about to end as it should."""
        return self._is_leaving

    @property
    def is_undisturbed(self) -> bool:
        """Whether this process is not to be interrupted."""
        return self._is_leaving or self._is_undisturbed


def is_about_processes(error: RuntimeError) -> bool:
    """Say whether torch has raised this since another process is gone, or does not come."""
    kinds = getattr(distributed, "DistError", ())
    return isinstance(error, kinds) or re.search(_OF_PROCESSES, str(error), re.IGNORECASE) is not None


def set_timeout(seconds: float) -> None:
    """Let the default group wait no longer, whoever has made it."""
    if distributed.is_available() and distributed.is_initialized():
        # NCCL ends the process itself, by its watchdog: later, so that ours can say before what is wrong.
        seconds *= 2 if distributed.get_backend() == "nccl" else 1
        distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), distributed.group.WORLD)


def _group_of_messages(timeout: float) -> Any:
    world = distributed.group.WORLD
    known = _groups.get(timeout)
    if known is None or known[0] is not world:
        set_timeout(timeout)
        known = world, distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        _groups[timeout] = known
    return known[1]


def _number_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _bits_of(number: float) -> int:
    return int(struct.unpack("q", struct.pack("d", float(number)))[0])


def _padded(text: bytes, length: int) -> torch.Tensor:
    return torch.tensor(list(text[:length].ljust(length, b"\0")), dtype=torch.uint8)


def _difference(name: str, values: list[Any]) -> str:
    """Return which processes have which value; nothing where all have the same."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(json.dumps(value, sort_keys=True), []).append(rank)
    if len(ranks) == 1:
        return ""
    said = [f"{_shortened(text)} in {_processes(which)}" for text, which in ranks.items()]
    return f"{name} is {', '.join(said)}"


def _processes(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    return f"processes {', '.join(map(str, ranks[:8]))}{', ...' if len(ranks) > 8 else ''}"


def _shortened(text: str) -> str:
    return "nothing" if text == "null" else text if len(text) <= 100 else f"{text[:97]}..."


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).removesuffix(MEND)}"[:1_000]
