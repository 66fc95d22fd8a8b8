"""Loaders that are taken as they are: streams, and those whose class iterates in a way of its own."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import logging
import random
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from supernet.data.order import is_stateful, set_epoch
from supernet.data.seeding import SeededIterator, derive_seed, preserve_generators
from supernet.errors import DataError
from supernet.execution.state import reseed
from supernet.execution.structure import leaves_of
from supernet.files.digests import bits

__all__: list[str] = []

logger = logging.getLogger("supernet")

_EXHAUSTED = object()
_CHANGED_BY_READING = ("_iterator", "_IterableDataset_len_called")  # by DataLoader itself


class Stream:
    """A loader that cannot be entered anywhere, read one round after another by one reader or several.

    If it has a state by torchdata's convention, or its dataset has one and is read in this process, each reader goes on
    with that. Otherwise what comes before is loaded and skipped: batches of the same round; and where something was
    seen to be kept from round to round, the rounds before too.

    Args:
        loader: The loader as it was given.
        seed: Seed of all that it draws.

    Attributes:
        stateful: The loader or dataset that is brought back by its state; None where there is none.
        reader: The round that was read last.

    Raises:
        DataError: It gives its samples once.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader, self._seed = loader, seed
        self._generators = [] if loader.generator is None else [loader.generator]
        dataset = loader.dataset
        self.stateful: Any = None
        if is_stateful(loader):
            self.stateful = loader
        elif is_stateful(dataset) and loader.num_workers == 0:
            self.stateful = dataset
        elif is_stateful(dataset):
            logger.info(
                "the state of %s is in the %d workers of its loader, so it is resumed by loading and skipping; a "
                "StatefulDataLoader of torchdata, or num_workers=0, brings it back",
                *(type(dataset).__name__, loader.num_workers),
            )
        with preserve_generators(self._generators):
            for given in (dataset, loader):
                self._check_begins_anew(given)
            reseed(seed)
            self._as_given = None if self.stateful is None else copy.deepcopy(self.stateful.state_dict())
        self._note = self._noted()
        self.reader: StreamRound | None = None

    def _check_begins_anew(self, given: Any) -> None:
        """Raise if its next round would begin where the last one has ended."""
        name = type(given).__name__
        mend = "let __iter__ begin anew each time, for an epoch follows another"
        for attribute, value in getattr(given, "__dict__", {}).items():
            if attribute not in _CHANGED_BY_READING and _is_used_up(value):
                what = type(value).__name__
                raise DataError(f"{name}.{attribute} is a {what}, which gives what it has once; {mend}")
        if hasattr(type(given), "__next__") and not is_stateful(given):
            reseed(self._seed)
            first = digest_of(next(iter(given), _EXHAUSTED))
            reseed(self._seed)
            if digest_of(next(iter(given), _EXHAUSTED)) != first:
                raise DataError(f"{name} goes on, where it is iterated a second time; {mend}")

    def _noted(self) -> Any:
        """Return what shows, by being another one, that something is kept of what was read."""
        return _noted(self.loader, depth=5, budget=count())

    def has_changed(self) -> bool:
        """Say whether it keeps something of what was read."""
        return bool(self._noted() != self._note)

    def open(self, round: int, seed: int, after: StreamRound | None, place: Mapping[str, Any] | None) -> StreamRound:
        """Return a round.

        Args:
            round: Number of the round, from 0 on.
            seed: Seed of the round.
            after: Round that the same reader has read before. Default: it begins with what was given.
            place: Place at which it is entered, from `StreamRound.place`. Default: its beginning.
        """
        is_followed, loaded = after is not None and after is self.reader, None
        self.leave()
        if self.stateful is not None:
            if place is not None:
                loaded = place["source"]
            elif after is None:
                loaded = self._as_given
            elif not is_followed:
                loaded = after.left["source"]
        self.reader = StreamRound(self, round, seed, self.has_changed())
        follows = place["over"] if place is not None else after is not None
        self.reader.begin(loaded, None if place is None or follows else place["numbers"], follows=follows)
        return self.reader

    def leave(self) -> None:
        """Note where whoever has read last goes on."""
        if self.reader is not None and self.stateful is not None:
            self.reader.left = self.reader.place()

    def iterate(self, round: int, seed: int, numbers: Mapping[str, Any] | None = None) -> SeededIterator:
        """Return what gives the batches of a round."""
        loader = self.loader
        set_epoch(round, loader, loader.dataset, loader.sampler, loader.batch_sampler)
        if self.stateful is None and loader.persistent_workers:
            loader._iterator = None  # workers that start anew have the dataset as it is here
        return SeededIterator(loader, derive_seed(self._seed, seed), self._generators, numbers)


class StreamRound(Iterator[Any]):
    """One round of a stream, beside which others may be read.

    Attributes:
        over: Whether it has come to its end.
        depends: Whether what it gives may depend on the rounds before.
        left: Place from where it goes on after another reader.
    """

    def __init__(self, stream: Stream, round: int, seed: int, depends: bool) -> None:
        self._stream, self._round, self._seed, self.depends = stream, round, seed, depends
        self.over, self.left = False, dict[str, Any]()

    def begin(self, state: Any, numbers: Mapping[str, Any] | None, *, follows: bool = False) -> None:
        """Read from the state on; where it follows another round, of whose end the state may be, not nothing."""
        stream, self._first = self._stream, list[Any]()
        if state is not None:
            stream.stateful.load_state_dict(copy.deepcopy(state))
        self._items = stream.iterate(self._round, self._seed, numbers)
        if state is not None and follows:
            self._first = [next(self._items, _EXHAUSTED)]
            if self._first[0] is _EXHAUSTED:
                self._first = []
                self._items = stream.iterate(self._round, self._seed)

    def __next__(self) -> Any:
        if self._stream.stateful is not None and self._stream.reader is not self:
            self._stream.leave()
            self._stream.reader = self
            self.begin(self.left["source"], self.left["numbers"])
        if self._first:
            return self._first.pop()
        try:
            return next(self._items)
        except StopIteration:
            self.over = True
            raise

    def place(self) -> dict[str, Any]:
        """Return where it stands."""
        if self._stream.stateful is None:
            depends = self.depends or (self.over and self._stream.has_changed())
            return {"over": self.over, "depends": depends, "source": None, "numbers": None}
        if self._stream.reader is not self:
            return self.left
        state = copy.deepcopy(self._stream.stateful.state_dict())
        return {"over": self.over, "depends": False, "source": state, "numbers": self._items.numbers()}


def digest_of(value: Any) -> str:
    """Return a digest of what is in a batch."""
    result = hashlib.sha256()
    for leaf in leaves_of(value):
        if isinstance(leaf, torch.Tensor):
            result.update(bits(leaf).data)
            leaf = (leaf.dtype, tuple(leaf.shape))
        result.update(repr(leaf).encode())
    return result.hexdigest()


def _is_used_up(value: Any) -> bool:
    """Say whether it is an iterator that nothing can wind back, such as a generator."""
    return isinstance(value, Iterator) and not hasattr(value, "__dict__") and not isinstance(value, io.IOBase)


def _noted(value: Any, depth: int, budget: Iterator[int]) -> Any:
    """Return what is equal for an object before and after something, unless that has changed it."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, torch.Tensor):
        return id(value), value._version if not value.is_inference() else 0
    if hasattr(value, "bit_generator"):  # NumPy's
        return repr(value.bit_generator.state)
    if hasattr(value, "get_state") and hasattr(value, "random_sample"):  # NumPy's older one
        return repr(value.get_state())
    if isinstance(value, io.IOBase) and not value.closed and value.seekable():
        return value.tell()
    # A dataset may consist of millions of objects; what counts the rounds is found near its surface.
    if depth == 0 or next(budget) > 1000 or inspect.isclass(value) or inspect.isroutine(value):
        return id(value)
    parts: Any = None
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list | tuple | set):
        parts = dict(enumerate(value)) if len(value) <= 100 else {}
    elif hasattr(value, "__dict__"):
        parts = {n: v for n, v in vars(value).items() if n not in _CHANGED_BY_READING}
    if parts is None:
        return id(value)
    size = len(value) if isinstance(value, dict | list | tuple | set) else 0
    inner = [(str(name), _noted(part, depth - 1, budget)) for name, part in list(parts.items())[:100]]
    return id(value), size, inner
