"""From whatever data a user has to batches.

The order of the samples, and the random numbers that each sample (its augmentation) and each batch (such as mixup in
`collate_fn`) draw, are functions of seed, round and index: neither where a round is entered nor how many processes load
changes them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from supernet.errors import DataError
from supernet.execution.state import RandomState, random_numbers_kept, reseed
from supernet.trainers.forward import split_batch

__all__: list[str] = []

logger = logging.getLogger("supernet")

_EXHAUSTED = object()

_ITERATION = ("__iter__", "_get_iterator", "_index_sampler")  # what a loader's class may do in a way of its own

_OPTIONS = (
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)

Data: TypeAlias = "Dataset[Any] | DataLoader[Any]"


class Key(NamedTuple):
    """One sample of a round, which is one pass over the data.

    Attributes:
        index: where the dataset has it.
        numbers: what its random numbers depend on beside the seed; no other sample of the round has these.
    """

    index: Any
    numbers: tuple[int, ...]


def mixed_seed(*numbers: int) -> int:
    """Return one seed for several numbers, far apart for neighbours, below 2**63."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Rounds(Sampler[Any]):
    """Batches of keys, from any one of a round on; where there is no batch size, keys.

    Attributes:
        batched: whether it gives lists of keys.
        round: which pass over the data is read next; whoever reads without setting it gets round after round.
        start: from which of its batches on.
    """

    batched: bool
    round = start = 0

    def __iter__(self) -> Iterator[Any]:
        # In a generator, for a DataLoader with workers asks for two iterators, and reads one.
        round, start = self.round, self.start
        self.round, self.start = round + 1, 0
        yield from self.keys_of(round, start)

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """Yield what the batches of one round are made of, from one of them on."""
        raise NotImplementedError

    def whole(self, *, shuffle: bool) -> Rounds:
        """Return the batches of all processes, each as large as one of this process's.

        Args:
            shuffle: in the order of the first round; else in the dataset's where this is ours to say, and nothing is
                dropped.
        """
        raise NotImplementedError


class Batches(Rounds):
    """The batches of this process, in an order of ours.

    All processes' k-th batches together are the k-th batch of one process with as many times the batch size.

    Args:
        batch_size: None: each sample is a batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int | None,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batched, self._given_size, self._batch_size = batch_size is not None, batch_size, batch_size or 1
        self._count, self._seed, self._shuffle = count, seed, shuffle
        self._drop_last = drop_last and count >= self._batch_size
        self._rank, self._together = rank, self._batch_size * world_size
        whole, rest = divmod(count, self._together)
        self._length = whole + (1 if rest and not (drop_last or world_size > 1) else 0)

    def whole(self, *, shuffle: bool) -> Batches:
        """See `Rounds`."""
        shuffled, dropped = shuffle and self._shuffle, shuffle and self._drop_last
        return Batches(self._count, self._given_size, seed=self._seed, shuffle=shuffled, drop_last=dropped)

    def __len__(self) -> int:
        return self._length

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """See `Rounds`."""
        if self._shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, round))
            order = torch.randperm(self._count, generator=generator).tolist()
        else:
            order = list(range(self._count))
        for batch in range(start, self._length):
            first = batch * self._together + self._rank * self._batch_size
            keys = [Key(index, (round, index)) for index in order[first : first + self._batch_size]]
            yield keys if self.batched else keys[0]


class GivenBatches(Rounds):
    """The batches of a sampler that was given, whose random numbers are a function of the seed and the round.

    Args:
        given: gives lists of indices, or indices where each sample is a batch.
        batched: which of the two.
        seed: of what it draws, from torch's `generator` too if it has one.
    """

    def __init__(self, given: Iterable[Any], *, batched: bool, seed: int) -> None:
        self.batched, self._given, self._seed = batched, given, seed

    def whole(self, *, shuffle: bool) -> GivenBatches:
        """See `Rounds`."""
        given = self._given
        if not shuffle and type(given) is BatchSampler:
            given = BatchSampler(given.sampler, given.batch_size, drop_last=False)
        return GivenBatches(given, batched=self.batched, seed=self._seed)

    def __len__(self) -> int:
        return len(self._given)  # type: ignore[arg-type]  # a TypeError says that it is not known

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """See `Rounds`."""
        owners = (self._given, getattr(self._given, "sampler", None))
        generators = [g for g in (getattr(owner, "generator", None) for owner in owners) if g is not None]
        given = _with_numbers_of_its_own(self._given, mixed_seed(self._seed, round), generators)
        for batch, indices in enumerate(given):
            if batch < start:
                continue
            if self.batched:
                yield [Key(index, (round, batch, place)) for place, index in enumerate(indices)]
            else:
                yield Key(indices, (round, batch))


class Reseeded(Dataset[Any]):
    """A dataset that gives whole batches, whose random numbers are functions of the seed and the keys.

    Args:
        dataset: gives the samples; each draws from a seed of its own.
        seed: mixed into all of them.
        collate: makes a batch of a list of samples, or of one sample; it draws from a seed of the batch.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[Any], Any]) -> None:
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        return self._batch([key], lambda samples: self.collate(samples[0]))

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        return self._batch(keys, self.collate)

    def _batch(self, keys: Sequence[Key], collate: Callable[[list[Any]], Any]) -> Any:
        samples = []
        with random_numbers_kept():  # loading in the trainer's own process must not move the trainer's numbers
            for key in keys:
                reseed(mixed_seed(self.seed, *key.numbers))
                samples.append(self.dataset[key.index])
            if keys:
                reseed(mixed_seed(self.seed, *keys[0].numbers, -1))
            return collate(samples)


def _as_it_is(batch: Any) -> Any:
    """Collate what `Reseeded` has collated."""
    return batch


class Part:
    """One part of the data: its batches from any point on, on the device.

    A loader that was taken as it is cannot be entered anywhere: what comes before is loaded and skipped.

    Attributes:
        loader: the DataLoader behind it.
        round: which pass over the data `without_end` is in.
        position: how many batches of that round `without_end` has given.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        to_device: Callable[[Any], Any],
        seed: int = 0,
        split: Callable[[Any], tuple[Any, Any]] = split_batch,
    ) -> None:
        self.loader, self._to_device, self._seed, self._split = loader, to_device, seed, split
        self.enter(0, 0)

    @property
    def length(self) -> int | None:
        """How many batches a round has; None where that is not known (a stream)."""
        return length_of(self.loader)

    def batches(self, round: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield (X, y) of one round from its batch `start` on."""
        rounds = _rounds_of(self.loader)
        if rounds is not None:
            rounds.round, rounds.start = round, start
            batches: Iterable[Any] = self.loader
        else:
            if start:
                logger.info("%s cannot be rewound: %d batches are skipped", type(self.loader.dataset).__name__, start)
            generators = [] if self.loader.generator is None else [self.loader.generator]
            given = _with_numbers_of_its_own(self.loader, mixed_seed(self._seed, round), generators)
            batches = islice(given, start, None)
        for batch in batches:
            yield self._split(self._to_device(batch))

    def enter(self, round: int, position: int) -> None:
        """Let `without_end` go on from here."""
        self.round, self.position = round, position
        self.leave()

    def leave(self) -> None:
        """Let go of the loader's processes; `without_end` still goes on where it is."""
        self._running: Iterator[tuple[Any, Any]] | None = None

    def without_end(self) -> Iterator[tuple[Any, Any]]:
        """Return what yields (X, y) of round after round, from where the one before was left.

        Raises:
            DataError: the part gives no batch.
        """
        if self._running is None:
            self._running = self._round_after_round()
        return self._running

    def _round_after_round(self) -> Iterator[tuple[Any, Any]]:
        length = self.length
        if length == 0:
            raise DataError("the validation part gives no batch: it has fewer samples than one batch; lower batch_size")
        if length is not None:
            passed, self.position = divmod(self.position, length)
            self.round += passed
        while True:
            for batch in self.batches(mixed_seed(self.round, 0), self.position):
                self.position += 1
                yield batch
            if self.position == 0:
                raise DataError("the validation part gives no batch")
            self.round, self.position = self.round + 1, 0

    def whole(self, *, shuffle: bool) -> Part:
        """Return all processes' share of this part, in loaders of its own: reading it does not disturb this one.

        Args:
            shuffle: in the order of this part's first round; else in the dataset's, or its sampler's, and nothing is
                dropped. A loader that was taken as it is keeps its own.
        """
        loader, rounds = self.loader, _rounds_of(self.loader)
        if rounds is not None:
            options = _options_of(loader)
            options["persistent_workers"] = loader.num_workers > 0  # it is read for each architecture
            dataset = cast(Reseeded, loader.dataset)
            loader = _loader(dataset, rounds.whole(shuffle=shuffle), options)
        elif not shuffle:
            loader = _without_dropping(loader)
        return self if loader is self.loader else Part(loader, self._to_device, self._seed, self._split)

    def digest(self) -> str:
        """Return a digest of which samples are in it, as far as that is known: not of what they hold."""
        inner = _given(self.loader.dataset)
        known = [type(inner).__name__, str(len(inner) if isinstance(inner, Sized) else None)]
        if isinstance(inner, Subset):
            known += [type(inner.dataset).__name__, *map(str, inner.indices)]
        return hashlib.sha256(" ".join(known).encode()).hexdigest()


def loaders_of_two_parts(
    data: Data,
    valid_data: Data | None,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of the part that trains the weights and of the part that trains the architecture.

    Where no `valid_data` is given, `data` is split at random into two halves that share no sample. Of a loader, the
    samples that it gives are halved, and each half is shuffled and read with the loader's options, or drawn by weights
    or with replacement where its sampler draws so.

    Raises:
        DataError: the data cannot be split, or is not data at all.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "rank": rank,
        "world_size": world_size,
    }
    seeds = seed, mixed_seed(seed, 1)
    if valid_data is not None:
        return loader_of(data, seed=seeds[0], **options), loader_of(valid_data, seed=seeds[1], **options)
    like = data if isinstance(data, DataLoader) else None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(
            f"a {type(dataset).__name__} has no length, so it cannot be split in two halves; give valid_dataset too"
        )
    samples = range(len(dataset)) if like is None else _samples_of(like)
    if len(samples) < 2:
        raise DataError(f"a dataset of {len(samples)} samples cannot be split in two halves; it takes at least 2")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(order) // 2
    first, second = [samples[i] for i in order[:half]], [samples[i] for i in order[half:]]
    if like is None:
        halves: list[Data] = [Subset(dataset, first), Subset(dataset, second)]
    else:
        halves = [_half_of(like, first, 0), _half_of(like, second, 1)]
    return loader_of(halves[0], seed=seeds[0], **options), loader_of(halves[1], seed=seeds[1], **options)


def loader_of(
    data: Data,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return a loader whose batches are `Rounds`, where that can be.

    Args:
        data: a dataset of either kind, or a loader. A loader over a map-style dataset is made anew with all its
            options, in an order of ours if it shuffles, else in its sampler's. A stream, and a loader that iterates in
            a way of its own, are taken as they are.
        batch_size: samples a batch in each process. When shuffled, a last batch that is not full is dropped,
            unless it is the only one: BatchNorm does not bear a batch of one sample. A loader drops as it says.
        workers: processes that load.
        seed: of the order and of what samples and batches draw.
        shuffle: whether to shuffle, and to drop.
        rank: which of the processes this is.
        world_size: how many processes share the data.

    Raises:
        DataError: it is neither, is empty, or cannot be shared by several processes.
    """
    if isinstance(data, DataLoader):
        return _made_anew(data, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
    if not isinstance(data, Dataset) and not hasattr(data, "__getitem__"):
        raise DataError(f"data comes as a torch Dataset or DataLoader, not as {type(data).__name__}")
    options: dict[str, Any] = {"num_workers": workers}
    options["generator"] = torch.Generator().manual_seed(seed)  # of the workers' seeds, else the trainer's moves
    if isinstance(data, IterableDataset):
        if world_size > 1:
            raise DataError(f"{type(data).__name__} is a stream, which cannot be shared by several processes")
        return DataLoader(data, batch_size=batch_size, **options)
    if not isinstance(data, Sized):
        raise DataError(f"a {type(data).__name__} has no length (__len__); give a DataLoader, or an IterableDataset")
    _check_not_empty(data)
    drop_last = shuffle and len(data) >= batch_size
    batches = Batches(
        len(data), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
    )
    return _loader(Reseeded(data, seed, default_collate), batches, options)


class _Reading(NamedTuple):
    """How a loader reads a map-style dataset.

    Attributes:
        sampler: what decides the order: of indices, or of batches of them where these are made by the user.
        batch_size: None where the sampler gives batches, or each sample is one.
        drop_last: whether a last batch that is not full is left out.
    """

    sampler: Any
    batch_size: int | None
    drop_last: bool

    @property
    def is_in_order(self) -> bool:
        """Whether it goes through a whole dataset, as it stands or shuffled."""
        sampler = self.sampler
        return type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
        )


def _reading_of(loader: DataLoader[Any]) -> _Reading | None:
    """Return how the loader reads, None for a stream and for a loader whose class iterates in a way of its own."""
    if _iterates_in_its_own_way(loader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    if batches is None:
        return _Reading(loader.sampler, None, False)
    if type(batches) is BatchSampler:
        return _Reading(batches.sampler, batches.batch_size, batches.drop_last)
    return _Reading(batches, None, False)


def _iterates_in_its_own_way(loader: DataLoader[Any]) -> bool:
    return any(getattr(type(loader), name) is not getattr(DataLoader, name) for name in _ITERATION)


def _made_anew(loader: DataLoader[Any], *, seed: int, shuffle: bool, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of the same samples, with the same options, in `Rounds`; see `loader_of`."""
    dataset, reading, options = loader.dataset, _reading_of(loader), _options_of(loader)
    if world_size > 1 and (reading is None or not reading.is_in_order):
        raise DataError(
            f"the loader of a {type(dataset).__name__} has a sampler of its own or a stream, which cannot "
            "be shared by several processes; give the dataset"
        )
    if reading is None:
        return loader if shuffle else _without_dropping(loader)
    generator = loader.generator or getattr(reading.sampler, "generator", None)
    if generator is None:
        options["generator"] = torch.Generator().manual_seed(seed)
    else:
        seed = mixed_seed(seed, generator.initial_seed())
    if reading.is_in_order:
        source = reading.sampler.data_source  # which may be shorter than the dataset
        _check_not_empty(source)
        rounds: Rounds = Batches(
            len(source),
            reading.batch_size,
            seed=seed,
            shuffle=shuffle and type(reading.sampler) is RandomSampler,
            drop_last=shuffle and reading.drop_last,
            rank=rank,
            world_size=world_size,
        )
    else:
        batches = loader.batch_sampler
        rounds = GivenBatches(loader.sampler if batches is None else batches, batched=batches is not None, seed=seed)
        rounds = rounds if shuffle else rounds.whole(shuffle=False)
    return _loader(Reseeded(dataset, seed, loader.collate_fn), rounds, options)


def _without_dropping(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that was taken as it is, or one like it that gives its last batch too."""
    if not loader.drop_last or _iterates_in_its_own_way(loader):
        return loader
    return DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, **_options_of(loader))


def _samples_of(loader: DataLoader[Any]) -> Sequence[int]:
    """Return the indices that a loader may give, each once.

    Raises:
        DataError: that is not known, so they cannot be halved.
    """
    reading = _reading_of(loader)
    sampler: Any = None if reading is None else reading.sampler
    if type(sampler) in (SequentialSampler, RandomSampler):
        return range(len(sampler.data_source))
    if type(sampler) is SubsetRandomSampler:
        indices = list(map(int, sampler.indices))
        if len(set(indices)) == len(indices):
            return indices
    if type(sampler) is WeightedRandomSampler:
        return sampler.weights.nonzero().flatten().tolist()
    what = (
        f"its own iteration ({type(loader).__name__})" if reading is None else f"a {type(sampler).__name__} as sampler"
    )
    raise DataError(
        f"a DataLoader with {what} cannot be split in two halves that share no sample: which samples that gives is not "
        "known; give valid_dataset too, each loader with its sampler, or dataset without one"
    )


def _half_of(loader: DataLoader[Any], indices: list[int], share: int) -> DataLoader[Any]:
    """Return a loader of these samples alone, which are half of the loader's, read in its way.

    Args:
        loader: one whose samples are known.
        indices: of the samples.
        share: 0 or 1: which half it is. What is drawn is halved too, and the second half has what is left.
    """
    reading, part = _reading_of(loader), Subset(loader.dataset, indices)
    assert reading is not None
    given = reading.sampler
    sampler: Sampler[int] = RandomSampler(part)
    if type(given) is WeightedRandomSampler:
        count = max(1, (given.num_samples + share) // 2)
        count = count if given.replacement else min(count, len(part))
        sampler = WeightedRandomSampler(given.weights[indices], count, given.replacement, given.generator)  # type: ignore[arg-type]
    elif type(given) is RandomSampler and not reading.is_in_order:
        count = max(1, (given.num_samples + share) // 2)
        sampler = RandomSampler(part, given.replacement, count, given.generator)
    options = {**_options_of(loader), "collate_fn": loader.collate_fn}
    return DataLoader(part, reading.batch_size, sampler=sampler, drop_last=reading.drop_last, **options)


def _options_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return the options of a loader that do not say what is in its batches."""
    return {name: getattr(loader, name) for name in _OPTIONS}


def _loader(dataset: Reseeded, rounds: Rounds, options: Mapping[str, Any]) -> DataLoader[Any]:
    how: dict[str, Any] = {"batch_sampler": rounds} if rounds.batched else {"batch_size": None, "sampler": rounds}
    return DataLoader(dataset, collate_fn=_as_it_is, **how, **options)


def _rounds_of(loader: DataLoader[Any]) -> Rounds | None:
    """Return what says the batches of a loader of ours; None where the loader was taken as it is."""
    order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return order if isinstance(order, Rounds) else None


def _with_numbers_of_its_own(
    given: Iterable[Any], seed: int, generators: Sequence[torch.Generator] = ()
) -> Iterator[Any]:
    """Yield what is given, which draws random numbers of its own, by the seed; all others go on as if it drew none.

    Args:
        given: draws from Python's, NumPy's and torch's global numbers, and from
        generators: whose own seeds count too.
        seed: of all of them.
    """
    with _numbers_kept(generators):
        reseed(seed)
        for generator in generators:
            generator.manual_seed(mixed_seed(seed, generator.initial_seed()))
        iterator = iter(given)
        its_numbers = RandomState(), [generator.get_state() for generator in generators]
    while True:
        with _numbers_kept(generators):
            its_numbers[0].put_back()
            for generator, state in zip(generators, its_numbers[1], strict=True):
                generator.set_state(state)
            item = next(iterator, _EXHAUSTED)
            its_numbers = RandomState(), [generator.get_state() for generator in generators]
        if item is _EXHAUSTED:
            return
        yield item


@contextmanager
def _numbers_kept(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put all random numbers, and those of the generators, back after this context."""
    states = [generator.get_state() for generator in generators]
    try:
        with random_numbers_kept():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _check_not_empty(dataset: Sized) -> None:
    if len(dataset) == 0:
        raise DataError(f"a {type(dataset).__name__} is empty; it has no sample to train on")


def first_batch(loader: DataLoader[Any]) -> Any:
    """Return a batch to try a model on, without starting workers, and moving no random state.

    Raises:
        DataError: the loader gives no batch.
    """
    rounds = _rounds_of(loader)
    if rounds is not None:
        keys = next(rounds.keys_of(0, 0), None)
        if keys is not None:
            return loader.dataset.__getitems__(keys) if rounds.batched else loader.dataset[keys]  # type: ignore[attr-defined]
    else:
        with _numbers_kept([] if loader.generator is None else [loader.generator]):
            batch = next(iter(loader), None)
        if batch is not None:
            return batch
    raise DataError(f"a {type(_given(loader.dataset)).__name__} has fewer samples than one batch; lower batch_size")


def _given(dataset: Any) -> Any:
    """Return the dataset as its user gave it."""
    return dataset.dataset if isinstance(dataset, Reseeded) else dataset


def length_of(loader: Any) -> int | None:
    """Return how many batches a loader has, None where it cannot say (a stream)."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None


def batch_size_of(loader: DataLoader[Any]) -> int | None:
    """Return how many samples a batch of a loader has; None where each sample is one, or it cannot say."""
    batches: Any = loader.batch_sampler
    if isinstance(batches, GivenBatches):
        batches = batches._given
    size: int | None = getattr(batches, "_batch_size", getattr(batches, "batch_size", loader.batch_size))
    return size
