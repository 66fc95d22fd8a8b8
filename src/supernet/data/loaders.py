"""From whatever data a user has to batches.

The order of the samples, and the random numbers that each sample (its augmentation) and each batch (such as mixup in
`collate_fn`) draw, are functions of seed, round and index: neither where a round is entered nor how many processes load
changes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
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
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from supernet.data.order import Batches, GivenBatches, Key, Rounds, is_stateful
from supernet.data.seeding import derive_seed, preserve_generators
from supernet.errors import DataError
from supernet.execution.state import preserve_random_numbers, reseed
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
        dataset: Dataset of the samples, each of which draws from a seed of its own.
        seed: A number that counts in the seeds of all.
        collate: Makes a batch of a list of samples, or of one sample; it draws from a seed of the batch.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[Any], Any]) -> None:
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        return self._batch([key], lambda samples: self.collate(samples[0]))

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        if self.collate is default_collate and keys:
            tensors = _stacked(self.dataset, [key.index for key in keys])
            if tensors is not None:
                return tensors
        return self._batch(keys, self.collate)

    def _batch(self, keys: Sequence[Key], collate: Callable[[list[Any]], Any]) -> Any:
        samples = []
        with preserve_random_numbers():  # loading in the trainer's own process must not move the trainer's numbers
            for key in keys:
                reseed(derive_seed(self.seed, *key.numbers))
                samples.append(self.dataset[key.index])
            if keys:
                reseed(derive_seed(self.seed, *keys[0].numbers, -1))  # which is no sample's
            return collate(samples)


def _stacked(dataset: Any, indices: Sequence[int]) -> list[torch.Tensor] | None:
    """Return what `default_collate` makes of these samples where they are rows of tensors, None where they are not.

    Rows draw no random numbers, and to take them one by one costs more than a step of a small network.
    """
    if type(dataset) is Subset:
        return _stacked(dataset.dataset, [dataset.indices[i] for i in indices])
    if type(dataset) is not TensorDataset:
        return None
    return [tensor[torch.as_tensor(indices, device=tensor.device)].contiguous() for tensor in dataset.tensors]


def _as_it_is(batch: Any) -> Any:
    """Collate what `Reseeded` has collated."""
    return batch


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
        DataError: The data cannot be split, or is not data at all.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "rank": rank,
        "world_size": world_size,
    }
    seeds = seed, derive_seed(seed, 1)  # else both parts would go through their samples in one order
    if valid_data is not None:
        _check_apart(data, valid_data)
        first, second = loader_of(data, seed=seeds[0], **options), loader_of(valid_data, seed=seeds[1], **options)
        both = rounds_of(first), rounds_of(second)
        if isinstance(both[0], GivenBatches) and isinstance(both[1], GivenBatches) and both[0].given is both[1].given:
            both[1].use_a_copy()
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
        data: A dataset of either kind, or a loader. A loader over a map-style dataset is made anew with all its
            options, in an order of ours if it shuffles, else in its sampler's. A stream, and a loader that iterates in
            a way of its own, are taken as they are: every process reads them whole, and `DataSplit` shares them.
        batch_size: Number of samples in a batch of each process. When shuffled, a last batch of all processes that is
            not full is dropped, unless it is the only one: BatchNorm does not bear a batch of one sample. A loader
            drops as it says.
        workers: Number of processes that load.
        seed: Seed of the order and of what samples and batches draw.
        shuffle: Whether to shuffle, and to drop. Default: both.
        rank: Number of this process, from 0 on.
        world_size: Number of processes that share the data.

    Raises:
        DataError: It is neither, is empty, or its sampler cannot be read in several rounds.
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
    return loader_in_rounds(Reseeded(data, seed, default_collate), batches, options)


class _Batching(NamedTuple):
    """How a loader reads a map-style dataset.

    Attributes:
        sampler: The sampler that decides the order: of indices, or of batches of them where these are made by the user.
        batched: Whether a batch is a list of samples; else each sample is one.
        batch_size: Number of samples in a batch; None where the sampler gives batches, or each sample is one.
        drop_last: Whether a last batch that is not full is left out.
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


def _batching_of(loader: DataLoader[Any]) -> _Batching | None:
    """Return how the loader reads, None for a stream and for a loader whose class iterates in a way of its own."""
    if _iterates_in_its_own_way(loader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    if batches is None:
        return _Batching(loader.sampler, False, None, False)
    if type(batches) is BatchSampler:
        return _Batching(batches.sampler, True, batches.batch_size, batches.drop_last)
    return _Batching(batches, True, None, False)


def _iterates_in_its_own_way(loader: DataLoader[Any]) -> bool:
    return any(getattr(type(loader), name) is not getattr(DataLoader, name) for name in _ITERATION)


def _made_anew(loader: DataLoader[Any], *, seed: int, shuffle: bool, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of the same samples, with the same options, in `Rounds`; see `loader_of`."""
    dataset, batching, options = loader.dataset, _batching_of(loader), options_of(loader)
    if batching is None:
        return loader if shuffle else without_dropping(loader)
    generator = loader.generator or getattr(batching.sampler, "generator", None)
    if generator is None:
        options["generator"] = torch.Generator().manual_seed(seed)
    else:
        seed = derive_seed(seed, generator.initial_seed())
    if not options["in_order"]:
        logger.warning("the loader has in_order=False, which no search could repeat; its batches come in order")
        options["in_order"] = True
    if hasattr(dataset, "set_epoch"):
        options["persistent_workers"] = False  # each has a dataset of its own, which is told once
    if batching.is_in_order:
        source = batching.sampler.data_source  # which may be shorter than the dataset
        _check_not_empty(source)
        rounds: Rounds = Batches(
            len(source),
            batching.batch_size,
            seed=seed,
            shuffle=shuffle and type(batching.sampler) is RandomSampler,
            drop_last=shuffle and batching.drop_last,
            rank=rank,
            world_size=world_size,
        )
    else:
        rounds = GivenBatches(
            batching.sampler,
            batched=batching.batched,
            batch_size=batching.batch_size,
            drop_last=batching.drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
            dataset=dataset,
            records=loader.num_workers > 0,
        )
        rounds = rounds if shuffle else rounds.unsharded(shuffle=False)
    return loader_in_rounds(Reseeded(dataset, seed, loader.collate_fn), rounds, options)


def _check_apart(*parts: Data) -> None:
    """Raise `DataError` if the parts are read through one object that keeps the place of one reader."""
    sources: list[Any] = []
    for part in parts:
        dataset = part.dataset if isinstance(part, DataLoader) else part
        sources.append([part, *([dataset] if isinstance(dataset, IterableDataset) else [])])
    for shared in sources[0]:
        if is_stateful(shared) and any(shared is other for other in sources[1]):
            raise DataError(
                f"dataset and valid_dataset are read through one {type(shared).__name__}, whose state is the place of "
                "one reader; give each an object of its own"
            )


def _undistributed(loader: DataLoader[Any], world_size: int) -> DataLoader[Any]:
    """Return a loader of all samples for one with a `DistributedSampler`, since sharing them is done here.

    Raises:
        DataError: The sampler is for another number of processes than there are.
    """
    batching = _batching_of(loader)
    sampler = None if batching is None else batching.sampler
    # In one process, a share of the samples is what was asked for.
    if batching is None or type(sampler) is not DistributedSampler or (world_size == 1 != sampler.num_replicas):
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
    how["batch_size"] = batching.batch_size
    how["drop_last"] = batching.batch_size is not None and (batching.drop_last or sampler.drop_last)
    return DataLoader(loader.dataset, collate_fn=loader.collate_fn, **how, **options_of(loader))


def without_dropping(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that was taken as it is, or one like it that gives its last batch too."""
    if not loader.drop_last or _iterates_in_its_own_way(loader):
        return loader
    return DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, **options_of(loader))


def _samples_of(loader: DataLoader[Any]) -> Sequence[int]:
    """Return the indices that a loader may give, each once.

    Raises:
        DataError: That is not known, so they cannot be halved.
    """
    batching = _batching_of(loader)
    sampler: Any = None if batching is None else batching.sampler
    if type(sampler) in (SequentialSampler, RandomSampler):
        return range(len(sampler.data_source))
    if type(sampler) is SubsetRandomSampler:
        indices = list(map(int, sampler.indices))
        if len(set(indices)) == len(indices):
            return indices
    if type(sampler) is WeightedRandomSampler:
        return sampler.weights.nonzero().flatten().tolist()
    what = (
        f"its own iteration ({type(loader).__name__})" if batching is None else f"a {type(sampler).__name__} as sampler"
    )
    raise DataError(
        f"a DataLoader with {what} cannot be split in two halves that share no sample: which samples that gives is not "
        "known; give valid_dataset too, each loader with its sampler, or dataset without one"
    )


def _half_of(loader: DataLoader[Any], indices: list[int], share: int) -> DataLoader[Any]:
    """Return a loader of these samples alone, which are half of the loader's, read in its way.

    Args:
        loader: A loader whose samples are known.
        indices: Indices of the samples.
        share: 0 or 1: which half it is. What is drawn is halved too, and the second half has what is left.
    """
    batching, part = _batching_of(loader), Subset(loader.dataset, indices)
    assert batching is not None
    given = batching.sampler
    sampler: Sampler[int] = RandomSampler(part)
    if type(given) is WeightedRandomSampler:
        count = max(1, (given.num_samples + share) // 2)
        count = count if given.replacement else min(count, len(part))
        sampler = WeightedRandomSampler(given.weights[indices], count, given.replacement, given.generator)  # type: ignore[arg-type]
    elif type(given) is RandomSampler and not batching.is_in_order:
        count = max(1, (given.num_samples + share) // 2)
        sampler = RandomSampler(part, given.replacement, count, given.generator)
    options = {**options_of(loader), "collate_fn": loader.collate_fn}
    return DataLoader(part, batching.batch_size, sampler=sampler, drop_last=batching.drop_last, **options)


def options_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return the options of a loader that do not say what is in its batches."""
    return {name: getattr(loader, name) for name in _OPTIONS}


def loader_in_rounds(dataset: Reseeded, rounds: Rounds, options: Mapping[str, Any]) -> DataLoader[Any]:
    how: dict[str, Any] = {"batch_sampler": rounds} if rounds.batched else {"batch_size": None, "sampler": rounds}
    how["worker_init_fn"] = outliving_one_signal(options.get("worker_init_fn"))
    return DataLoader(dataset, collate_fn=_as_it_is, **{**options, **how})


def rounds_of(loader: DataLoader[Any]) -> Rounds | None:
    """Return what says the batches of a loader of ours; None where the loader was taken as it is."""
    order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return order if isinstance(order, Rounds) else None


def stateful_dataset(loader: DataLoader[Any]) -> Any:
    """Return the map-style dataset as its user gave it, if it has a state by torchdata's convention."""
    dataset = given_dataset(loader)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if is_stateful(dataset) and not isinstance(dataset, IterableDataset) else None


def _check_not_empty(dataset: Sized) -> None:
    if len(dataset) == 0:
        raise DataError(f"a {type(dataset).__name__} is empty; it has no sample to train on")


def first_batch(loader: DataLoader[Any]) -> Any:
    """Return a batch to try a model on, and move no random state.

    No workers are started, but for a stream that has some: read in this process instead, it would be moved.

    Raises:
        DataError: The loader gives no batch.
    """
    rounds = rounds_of(loader)
    if rounds is not None:
        keys = next(rounds.keys_of(0, 0), None)
        if keys is not None:
            return loader.dataset.__getitems__(keys) if rounds.batched else loader.dataset[keys]  # type: ignore[attr-defined]
    else:
        with preserve_generators([] if loader.generator is None else [loader.generator]):
            batch = next(iter(loader), None)
        if batch is not None:
            return batch
    raise DataError(f"a {type(given_dataset(loader)).__name__} has fewer samples than one batch; lower batch_size")


def given_dataset(loader: DataLoader[Any]) -> Any:
    """Return the dataset of a loader as its user gave it."""
    dataset: Any = loader.dataset
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
