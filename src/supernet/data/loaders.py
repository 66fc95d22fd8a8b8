"""From whatever data a user has to batches.

The order of the samples, and the random numbers that each sample (its augmentation) and each batch (such as mixup in
`collate_fn`) draw, are functions of seed, round and index: neither where a round is entered nor how many processes load
changes them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
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
from torch.utils.data.distributed import DistributedSampler

from supernet.data.batches import batch_size, split_batch
from supernet.data.order import Batches, GivenBatches, Key, Rounds, is_stateful, set_epoch
from supernet.data.seeding import mixed_seed, numbers_kept
from supernet.data.streams import Stream, StreamRound, digest_of
from supernet.errors import DataError
from supernet.execution.state import random_numbers_kept, reseed
from supernet.processes.interruption import outliving_one_signal

__all__: list[str] = []

logger = logging.getLogger("supernet")

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
    """One part of the data: this process's batches from any point on, on the device.

    Attributes:
        loader: the DataLoader behind it.
        share: by what the loss of the batch that was given last counts in the mean of the processes' losses: the number
            of its samples over the mean number of the processes'. One process has 1.0. 0.0 where the process had none
            left, and is given some of another's.
        round: which pass over the data `without_end` is in.
        position: how many batches of that round `without_end` has given.
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
        self._rounds = _rounds_of(loader)
        self._stream = Stream(loader, seed) if self._rounds is None else None
        self._begins_anew = False  # each round with what was given
        self._last: StreamRound | None = None
        self._read: tuple[int, int, bool] | None = None  # round, batches that it has given, whether it is over
        self._entered: Mapping[str, Any] | None = None
        self.share = 1.0
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
            self._read = round, start + given, False
            yield self._split(self._to_device(batch))
        self._read = round, start + given, True

    def _opened_rounds(
        self, round: int, start: int, seed_of: Callable[[int], int], entered: Mapping[str, Any] | None
    ) -> Iterator[tuple[Any, float]]:
        rounds: Any = self._rounds
        rounds.round, rounds.start, rounds.seed_of = round, start, seed_of
        if entered is not None and entered["sampler"] is not None:
            rounds.enter(None if entered["over"] else start, entered["sampler"])
        set_epoch(round, _given(self.loader.dataset))
        for number, batch in enumerate(self.loader, start):
            yield batch, rounds.share_of(number)

    def _opened_stream(
        self, round: int, start: int, seed_of: Callable[[int], int], entered: Mapping[str, Any] | None
    ) -> Iterator[tuple[Any, float]]:
        stream, name = self._stream, type(self.loader.dataset).__name__
        assert stream is not None
        place = entered if entered is not None and stream.stateful is not None else None
        if entered is not None and entered["depends"] and place is None:
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
                if len(sizes) in (0, self._rank):
                    mine = batch
                X, y = self._split(batch)
                sizes.append(batch_size(y, X))
            if not sizes or (self.loader.drop_last and len(sizes) < self._world_size):
                return
            has_one = self._rank < len(sizes)
            yield mine, sizes[self._rank] * self._world_size / sum(sizes) if has_one else 0.0

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
        if isinstance(self._rounds, Batches):  # of which a place may be said by the number of all steps
            passed, self.position = divmod(self.position, max(1, len(self._rounds)))
            self.round += passed
        while True:
            for batch in self._batches(self.round, self.position, _seed_without_end):
                self.position += 1
                yield batch
            if self.position == 0:
                raise DataError(
                    f"the validation part gives no batch: a {type(_given(self.loader.dataset)).__name__} has fewer "
                    "samples than one batch; lower batch_size"
                    if self.round == 0
                    else f"the validation part gives no batch in round {self.round + 1}, though it did before; let the "
                    "__iter__ of its dataset or sampler begin anew each time"
                )
            self.round, self.position = self.round + 1, 0

    def whole(self, *, shuffle: bool) -> Part:
        """Return all processes' share of this part: reading it does not disturb this one.

        Args:
            shuffle: in the order of this part's first round; else in the dataset's, or its sampler's, and nothing is
                dropped. A loader that was taken as it is keeps its own.
        """
        loader, rounds = self.loader, self._rounds
        if rounds is not None:
            options = _options_of(loader)
            options["persistent_workers"] = loader.num_workers > 0  # it is read for each architecture
            dataset = cast(Reseeded, loader.dataset)
            loader = _loader(dataset, rounds.whole(shuffle=shuffle), options)
        elif not shuffle:
            loader = _without_dropping(loader)
        part = Part(loader, self._to_device, self._seed, self._split)
        part._begins_anew = True
        if loader is self.loader:
            part._stream = self._stream
        return part

    def state_dict(self) -> dict[str, Any]:
        """Return from where the round that was read last goes on."""
        dataset, result = _stateful_dataset(self.loader), dict[str, Any]()
        if dataset is not None:
            result["dataset"] = dataset.state_dict()
        if self._read is None:
            return result
        round, batch, over = self._read
        result |= {"round": round, "batch": batch, "over": over}
        if isinstance(self._rounds, GivenBatches):
            result["sampler"] = self._rounds.state_after(None if over else batch)
        if self._last is not None:
            result |= {**self._last.place(), "over": over}
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the round that is read next begin where `state_dict` says, if it is asked for from there on."""
        if "dataset" in state:
            _stateful_dataset(self.loader).load_state_dict(state["dataset"])
        none = {"sampler": None, "source": None, "numbers": None, "depends": False}
        self._entered = {**none, **state} if "round" in state else None
        self._read = None

    def beginning(self) -> str:
        """Return a digest of what all processes must find alike, that each may take its share of it."""
        if self._rounds is not None:
            return self._rounds.beginning()
        return "" if self.length == 0 else digest_of(first_batch(self.loader))[:16]

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
        _check_apart(data, valid_data)
        first, second = loader_of(data, seed=seeds[0], **options), loader_of(valid_data, seed=seeds[1], **options)
        both = _rounds_of(first), _rounds_of(second)
        if isinstance(both[0], GivenBatches) and isinstance(both[1], GivenBatches) and both[0].given is both[1].given:
            both[1].read_a_copy()
        return first, second
    like = _undistributed(data, world_size) if isinstance(data, DataLoader) else None
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
    of_first, of_second = [samples[i] for i in order[:half]], [samples[i] for i in order[half:]]
    if like is None:
        halves: list[Data] = [Subset(dataset, of_first), Subset(dataset, of_second)]
    else:
        halves = [_half_of(like, of_first, 0), _half_of(like, of_second, 1)]
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
            a way of its own, are taken as they are: every process reads them whole, and `Part` shares them.
        batch_size: samples a batch in each process. When shuffled, a last batch of all processes that is not full is
            dropped, unless it is the only one: BatchNorm does not bear a batch of one sample. A loader drops as it
            says.
        workers: processes that load.
        seed: of the order and of what samples and batches draw.
        shuffle: whether to shuffle, and to drop.
        rank: which of the processes this is.
        world_size: how many processes share the data.

    Raises:
        DataError: it is neither, is empty, or its sampler cannot be read in several rounds.
    """
    if isinstance(data, DataLoader):
        data = _undistributed(data, world_size)
        return _made_anew(data, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
    if not isinstance(data, Dataset) and not hasattr(data, "__getitem__"):
        raise DataError(f"data comes as a torch Dataset or DataLoader, not as {type(data).__name__}")
    options: dict[str, Any] = {"num_workers": workers}
    options["generator"] = torch.Generator().manual_seed(seed)  # of the workers' seeds, else the trainer's moves
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size, **options)
    if not isinstance(data, Sized):
        raise DataError(f"a {type(data).__name__} has no length (__len__); give a DataLoader, or an IterableDataset")
    _check_not_empty(data)
    drop_last = shuffle and len(data) >= batch_size * world_size
    batches = Batches(
        len(data), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
    )
    return _loader(Reseeded(data, seed, default_collate), batches, options)


class _Reading(NamedTuple):
    """How a loader reads a map-style dataset.

    Attributes:
        sampler: what decides the order: of indices, or of batches of them where these are made by the user.
        batched: whether a batch is a list of samples; else each sample is one.
        batch_size: None where the sampler gives batches, or each sample is one.
        drop_last: whether a last batch that is not full is left out.
    """

    sampler: Any
    batched: bool
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
        return _Reading(loader.sampler, False, None, False)
    if type(batches) is BatchSampler:
        return _Reading(batches.sampler, True, batches.batch_size, batches.drop_last)
    return _Reading(batches, True, None, False)


def _iterates_in_its_own_way(loader: DataLoader[Any]) -> bool:
    return any(getattr(type(loader), name) is not getattr(DataLoader, name) for name in _ITERATION)


def _made_anew(loader: DataLoader[Any], *, seed: int, shuffle: bool, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of the same samples, with the same options, in `Rounds`; see `loader_of`."""
    dataset, reading, options = loader.dataset, _reading_of(loader), _options_of(loader)
    if reading is None:
        return loader if shuffle else _without_dropping(loader)
    generator = loader.generator or getattr(reading.sampler, "generator", None)
    if generator is None:
        options["generator"] = torch.Generator().manual_seed(seed)
    else:
        seed = mixed_seed(seed, generator.initial_seed())
    if not options["in_order"]:
        logger.warning("the loader has in_order=False, which no search could repeat; its batches come in order")
        options["in_order"] = True
    if hasattr(dataset, "set_epoch"):
        options["persistent_workers"] = False  # each has a dataset of its own, which is told once
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
        rounds = GivenBatches(
            reading.sampler,
            batched=reading.batched,
            batch_size=reading.batch_size,
            drop_last=reading.drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
            dataset=dataset,
            records=loader.num_workers > 0,
        )
        rounds = rounds if shuffle else rounds.whole(shuffle=False)
    return _loader(Reseeded(dataset, seed, loader.collate_fn), rounds, options)


def _check_apart(*parts: Data) -> None:
    """Raise `DataError` if the parts are read through one object that keeps the place of one reader."""
    read: list[Any] = []
    for part in parts:
        dataset = part.dataset if isinstance(part, DataLoader) else part
        read.append([part, *([dataset] if isinstance(dataset, IterableDataset) else [])])
    for shared in read[0]:
        if is_stateful(shared) and any(shared is other for other in read[1]):
            raise DataError(
                f"dataset and valid_dataset are read through one {type(shared).__name__}, whose state is the place of "
                "one reader; give each an object of its own"
            )


def _undistributed(loader: DataLoader[Any], world_size: int) -> DataLoader[Any]:
    """Return a loader of all samples for one with a `DistributedSampler`, since sharing them is done here.

    Raises:
        DataError: the sampler is for another number of processes than there are.
    """
    reading = _reading_of(loader)
    sampler = None if reading is None else reading.sampler
    if reading is None or type(sampler) is not DistributedSampler or (world_size == 1 != sampler.num_replicas):
        return loader
    if sampler.num_replicas != world_size:
        raise DataError(
            f"the loader's DistributedSampler shares the samples among {sampler.num_replicas} processes, but there are "
            f"{world_size}; give the loader without it, for the samples are shared anyway"
        )
    logger.info("the DistributedSampler is read as the order of its dataset, whose samples are shared here, each once")
    generator = torch.Generator().manual_seed(sampler.seed) if sampler.seed else None
    order = RandomSampler(sampler.dataset, generator=generator) if sampler.shuffle else None  # type: ignore[arg-type]
    how: dict[str, Any] = {"sampler": order or SequentialSampler(cast(Sized, sampler.dataset))}
    how["batch_size"] = reading.batch_size
    how["drop_last"] = reading.batch_size is not None and (reading.drop_last or sampler.drop_last)
    return DataLoader(loader.dataset, collate_fn=loader.collate_fn, **how, **_options_of(loader))


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
    how["worker_init_fn"] = outliving_one_signal(options.get("worker_init_fn"))
    return DataLoader(dataset, collate_fn=_as_it_is, **{**options, **how})


def _rounds_of(loader: DataLoader[Any]) -> Rounds | None:
    """Return what says the batches of a loader of ours; None where the loader was taken as it is."""
    order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return order if isinstance(order, Rounds) else None


def _seed_without_end(round: int) -> int:
    """Return what stands in seeds for a round of `without_end`; those of `batches` have others."""
    return mixed_seed(round, 0)


def _stateful_dataset(loader: DataLoader[Any]) -> Any:
    """Return the map-style dataset as its user gave it, if it has a state by torchdata's convention."""
    dataset = _given(loader.dataset)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if is_stateful(dataset) and not isinstance(dataset, IterableDataset) else None


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
        with numbers_kept([] if loader.generator is None else [loader.generator]):
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
    if isinstance(batches, GivenBatches) and batches.batch_size is None:
        batches = batches.given
    size: int | None = getattr(batches, "_batch_size", getattr(batches, "batch_size", loader.batch_size))
    return size
