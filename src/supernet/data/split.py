"""One part of the data: batches from any point on, and each process its share of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, cast

from torch.utils.data import DataLoader, Subset

from supernet.data.batches import batch_size, split_batch
from supernet.data.loaders import (
    Reseeded,
    first_batch,
    given_dataset,
    length_of,
    loader_in_rounds,
    options_of,
    rounds_of,
    stateful_dataset,
    without_dropping,
)
from supernet.data.order import Batches, GivenBatches, set_epoch, share_of
from supernet.data.seeding import derive_seed
from supernet.data.streams import Stream, StreamRound, digest_of
from supernet.errors import DataError, TrainingError

__all__: list[str] = []

logger = logging.getLogger("supernet")


class DataSplit:
    """One part of the data: this process's batches from any point on, on the device.

    Attributes:
        loader: The DataLoader behind it.
        share: Factor by which the loss of the batch that was given last counts in the mean of the processes' losses:
            the number of its samples over the mean number of the processes'. One process has 1.0. 0.0 where the process
            had none left, and is given some of another's.
        taught: Function of X and y that returns what stands in y's place; None where y does.
        round: Pass over the data that `cycle` is in, from 0 on.
        position: Number of batches of that round that `cycle` has given.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        to_device: Callable[[Any], Any],
        seed: int = 0,
        split: Callable[[Any], tuple[Any, Any]] = split_batch,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.loader, self._to_device, self._seed, self._split = loader, to_device, seed, split
        self._rank, self._world_size = rank, world_size
        self._rounds = rounds_of(loader)
        self._stream = Stream(loader, seed) if self._rounds is None else None
        self._begins_anew = False  # each round with what was given
        self._last: StreamRound | None = None
        self._progress: tuple[int, int, bool] | None = None  # round, batches that it has given, whether it is over
        self._entered: Mapping[str, Any] | None = None
        self.share = 1.0
        self.taught: Callable[[Any, Any], Any] | None = None
        self.enter(0, 0)

    @property
    def length(self) -> int | None:
        """How many batches a round has; None where that is not known (a stream)."""
        length = length_of(self.loader)
        return length if length is None or self._rounds is not None else -(-length // self._world_size)

    def batches(self, round: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield (X, y) of one round from its batch `start` on."""
        return self._batches(round, start, int)

    def _batches(self, round: int, start: int, seed_of: Callable[[int], int]) -> Iterator[tuple[Any, Any]]:
        entered, self._entered = self._entered, None
        if entered is not None and (entered["round"], entered["batch"]) != (round, start) and not entered["over"]:
            entered = None
        opened = self._opened_stream if self._rounds is None else self._opened_rounds
        given = 0
        for batch, self.share in opened(round, start, seed_of, entered):
            given += 1
            self._progress = round, start + given, False
            X, y = self._split(self._to_device(batch))
            yield X, y if self.taught is None else self.taught(X, y)
        self._progress = round, start + given, True

    def _opened_rounds(
        self, round: int, start: int, seed_of: Callable[[int], int], entered: Mapping[str, Any] | None
    ) -> Iterator[tuple[Any, float]]:
        rounds: Any = self._rounds
        rounds.round, rounds.start, rounds.seed_of = round, start, seed_of
        if entered is not None and entered["sampler"] is not None:
            rounds.enter(None if entered["over"] else start, entered["sampler"])
        set_epoch(round, given_dataset(self.loader))
        for number, batch in enumerate(self.loader, start):
            yield batch, rounds.share_of(number)

    def _opened_stream(
        self, round: int, start: int, seed_of: Callable[[int], int], entered: Mapping[str, Any] | None
    ) -> Iterator[tuple[Any, float]]:
        stream, name = self._stream, type(self.loader.dataset).__name__
        assert stream is not None
        place = entered if entered is not None and stream.stateful is not None else None
        if entered is not None and entered["depends"] and place is None:
            if self._last is not None:  # what it was given in the beginning, it is no more
                raise TrainingError(
                    f"{name} keeps something from round to round, and this trainer has read it: it cannot be brought "
                    "back to where the search was left; make data, model and trainer anew and go on from the "
                    "checkpoint by fit(resume='auto'), or give it state_dict and load_state_dict"
                )
            logger.info("%s keeps a state of its own: %d epochs of it are read again", name, round)
            for earlier in range(round):
                self._last = stream.open(earlier, seed_of(earlier), self._last, None)
                for _ in self._last:
                    pass
        after = None if self._begins_anew else self._last
        self._last = stream.open(round, seed_of(round), after, place)
        if start and place is None:
            logger.info("%s cannot be rewound: %d batches are skipped", name, start)
        skipped = 0 if place is not None else start * self._world_size
        batches = islice(self._last, skipped, None)
        yield from ((batch, 1.0) for batch in batches) if self._world_size == 1 else self._dealt(batches)

    def _dealt(self, batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
        """Yield this process's of each group of batches, with its share: see `Rounds`."""
        while True:
            sizes: list[int] = []
            for batch in islice(batches, self._world_size):
                if len(sizes) in (0, self._rank):  # the first one stands in where this process's is missing
                    mine = batch
                X, y = self._split(batch)
                sizes.append(batch_size(y, X))
            if not sizes or (self.loader.drop_last and len(sizes) < self._world_size):
                return
            samples = sizes[self._rank] if self._rank < len(sizes) else 0
            yield mine, share_of(samples, sum(sizes), self._world_size)

    def enter(self, round: int, position: int) -> None:
        """Let `cycle` go on from here."""
        self.round, self.position = round, position
        self.leave()

    def leave(self) -> None:
        """Let go of the loader's processes; `cycle` still goes on where it is."""
        self._running: Iterator[tuple[Any, Any]] | None = None

    def cycle(self) -> Iterator[tuple[Any, Any]]:
        """Return what yields (X, y) of round after round, from where the one before was left.

        Raises:
            DataError: The part gives no batch.
        """
        if self._running is None:
            self._running = self._round_after_round()
        return self._running

    def _round_after_round(self) -> Iterator[tuple[Any, Any]]:
        if isinstance(self._rounds, Batches):  # of which a place may be said by the number of all steps
            passed, self.position = divmod(self.position, max(1, len(self._rounds)))
            self.round += passed
        while True:
            for batch in self._batches(self.round, self.position, _seed_of_cycle):
                self.position += 1
                yield batch
            if self.position == 0:
                raise DataError(
                    f"the validation part gives no batch: a {type(given_dataset(self.loader)).__name__} has fewer "
                    "samples than one batch; lower batch_size"
                    if self.round == 0
                    else f"the validation part gives no batch in round {self.round + 1}, though it did before; let the "
                    "__iter__ of its dataset or sampler begin anew each time"
                )
            self.round, self.position = self.round + 1, 0

    def unsharded(self, *, shuffle: bool) -> DataSplit:
        """Return all processes' share of this part: reading it does not disturb this one.

        Args:
            shuffle: Whether in the order of this part's first round; else in the dataset's, or its sampler's, and
                nothing is dropped. A loader that was taken as it is keeps its own.
        """
        loader, rounds = self.loader, self._rounds
        if rounds is not None:
            options = options_of(loader)
            options["persistent_workers"] = loader.num_workers > 0  # it is read for each architecture
            dataset = cast(Reseeded, loader.dataset)
            loader = loader_in_rounds(dataset, rounds.unsharded(shuffle=shuffle), options)
        elif not shuffle:
            loader = without_dropping(loader)
        part = DataSplit(loader, self._to_device, self._seed, self._split)
        part._begins_anew = True
        if loader is self.loader:  # whose readers take turns
            part._stream = self._stream
        return part

    def state_dict(self) -> dict[str, Any]:
        """Return from where the round that was read last goes on."""
        dataset, result = stateful_dataset(self.loader), dict[str, Any]()
        if dataset is not None:
            result["dataset"] = dataset.state_dict()
        if self._progress is None:
            return result
        round, batch, over = self._progress
        result |= {"round": round, "batch": batch, "over": over}
        if isinstance(self._rounds, GivenBatches):
            result["sampler"] = self._rounds.state_after(None if over else batch)
        if self._last is not None:
            result |= {**self._last.place(), "over": over}
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the round that is read next begin where `state_dict` says, if it is asked for from there on."""
        if "dataset" in state:
            stateful_dataset(self.loader).load_state_dict(state["dataset"])
        none = {"sampler": None, "source": None, "numbers": None, "depends": False}
        self._entered = {**none, **state} if "round" in state else None
        self._progress = None

    def beginning(self) -> str:
        """Return a digest of what all processes must find alike, that each may take its share of it."""
        if self._rounds is not None:
            return self._rounds.beginning()
        return "" if self.length == 0 else digest_of(first_batch(self.loader))[:16]

    def digest(self) -> str:
        """Return a digest of which samples are in it, as far as that is known: not of what they hold."""
        inner = given_dataset(self.loader)
        known = [type(inner).__name__, str(len(inner) if isinstance(inner, Sized) else None)]
        if isinstance(inner, Subset):
            known += [type(inner.dataset).__name__, *map(str, inner.indices)]
        return hashlib.sha256(" ".join(known).encode()).hexdigest()


def _seed_of_cycle(round: int) -> int:
    """Return what stands in seeds for a round of `cycle`; those of `batches` have others."""
    return derive_seed(round, 0)
