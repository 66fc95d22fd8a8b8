"""From whatever data a user has to batches.

The order of the samples, and the random numbers that each sample draws (its augmentation), are functions of
(seed, epoch, index): neither where an epoch is entered nor how many processes load changes them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias

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
)

from supernet.errors import DataError
from supernet.execution.state import RandomState, random_numbers_kept, reseed

__all__: list[str] = []

logger = logging.getLogger("supernet")

_EXHAUSTED = object()

Data: TypeAlias = "Dataset[Any] | DataLoader[Any]"
Key: TypeAlias = tuple[int, int]  # (round, index): what a sample's random numbers depend on beside the seed


def mixed_seed(*numbers: int) -> int:
    """Return one seed for several numbers, far apart for neighbours, below 2**63."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Batches(Sampler[list[Key]]):
    """The batches of this process, from any one of a round on. A round is one pass over the data.

    All processes' k-th batches together are the k-th batch of one process with as many times the batch size.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, shuffle: bool, drop_last: bool, rank: int, world_size: int
    ) -> None:
        self._count, self._batch_size, self._seed, self._shuffle = count, batch_size, seed, shuffle
        self._drop_last = drop_last and count >= batch_size
        self._rank, self._together = rank, batch_size * world_size
        whole, rest = divmod(count, self._together)
        self._length = whole + (1 if rest and not (drop_last or world_size > 1) else 0)
        self.round = self.start = 0

    def whole(self, *, shuffle: bool) -> Batches:
        """Return the batches of all processes, each as large as one of this process's."""
        return Batches(
            self._count,
            self._batch_size,
            seed=self._seed,
            shuffle=shuffle and self._shuffle,
            drop_last=shuffle and self._drop_last,
            rank=0,
            world_size=1,
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Key]]:
        if self._shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, self.round))
            order = torch.randperm(self._count, generator=generator).tolist()
        else:
            order = list(range(self._count))
        for batch in range(self.start, self._length):
            first = batch * self._together + self._rank * self._batch_size
            yield [(self.round, index) for index in order[first : first + self._batch_size]]


class Reseeded(Dataset[Any]):
    """A dataset whose samples draw their random numbers from a seed of their own, by (seed, round, index)."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        samples = []
        with random_numbers_kept():  # loading in the trainer's own process must not move the trainer's numbers
            for key in keys:
                reseed(mixed_seed(self.seed, *key))
                samples.append(self.dataset[key[1]])
        return samples


class Part:
    """One part of the data: its batches from any point on, on the device.

    A loader that was taken as it is cannot be entered anywhere: what comes before is loaded and skipped.

    Attributes:
        loader: the DataLoader behind it.
    """

    def __init__(self, loader: DataLoader[Any], to_device: Callable[[Any], Any], seed: int = 0) -> None:
        self.loader, self._to_device, self._seed = loader, to_device, seed

    @property
    def length(self) -> int | None:
        """How many batches a round has; None where that is not known (a stream)."""
        return length_of(self.loader)

    def batches(self, round: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield (X, y) of one round from its batch `start` on."""
        batches = self.loader.batch_sampler
        if isinstance(batches, Batches):
            batches.round, batches.start = round, start
            for batch in self.loader:
                yield split_batch(self._to_device(batch))
            return
        if start:
            logger.info("%s cannot be rewound: %d batches are skipped", type(self.loader.dataset).__name__, start)
        for position, batch in enumerate(self._as_given(round)):
            if position >= start:
                yield split_batch(self._to_device(batch))

    def _as_given(self, round: int) -> Iterator[Any]:
        """Yield the batches of a loader that is not ours, which draws random numbers of its own, by the round."""
        with random_numbers_kept():
            reseed(mixed_seed(self._seed, round))
            batches, its_numbers = iter(self.loader), RandomState()
        while True:
            with random_numbers_kept():
                its_numbers.put_back()
                batch = next(batches, _EXHAUSTED)
                its_numbers = RandomState()
            if batch is _EXHAUSTED:
                return
            yield batch

    def without_end(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield (X, y) of one epoch from its batch `start` on, in rounds: a part that is shorter is gone through again.

        Raises:
            DataError: it gives no batch.
        """
        length = length_of(self.loader)
        if length == 0:
            raise DataError("the validation part gives no batch: it has fewer samples than one batch; lower batch_size")
        again, start = divmod(start, length) if length is not None else (0, start)
        while True:
            empty = True
            for batch in self.batches(mixed_seed(epoch, again), start):
                empty = False
                yield batch
            if empty and not start:
                raise DataError("the validation part gives no batch")
            again, start = again + 1, 0

    def whole(self, *, shuffle: bool) -> Part:
        """Return all processes' share of this part, in loaders of its own: reading it does not disturb this one.

        Args:
            shuffle: in the order of this part's first round; else in the dataset's, and nothing is dropped. A
                loader that was taken as it is keeps its own.
        """
        loader, batches = self.loader, self.loader.batch_sampler
        if not isinstance(batches, Batches):
            return self
        loader = DataLoader(
            loader.dataset,
            batch_sampler=batches.whole(shuffle=shuffle),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            persistent_workers=loader.num_workers > 0,
            generator=torch.Generator().manual_seed(self._seed),
        )
        return Part(loader, self._to_device, self._seed)

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

    Where no `valid_data` is given, `data` is split at random into two halves that share no sample. A loader
    that is to be halved is halved through its dataset and keeps its batch size, workers and collation.

    Raises:
        DataError: the data cannot be split, or is not data at all.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "rank": rank,
        "world_size": world_size,
    }
    if valid_data is not None:
        return loader_of(data, seed=seed, **options), loader_of(valid_data, seed=mixed_seed(seed, 1), **options)
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(
            f"a {type(dataset).__name__} has no length, so it cannot be split in two halves; give valid_dataset too"
        )
    if len(dataset) < 2:
        raise DataError(f"a dataset of {len(dataset)} samples cannot be split in two halves; it takes at least 2")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(order) // 2
    like = data if isinstance(data, DataLoader) else None
    first = loader_of(Subset(dataset, order[:half]), seed=seed, like=like, **options)
    return first, loader_of(Subset(dataset, order[half:]), seed=mixed_seed(seed, 1), like=like, **options)


def loader_of(
    data: Data,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    like: DataLoader[Any] | None = None,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return a loader whose batches are those of `Batches`.

    Args:
        data: a dataset of either kind, or a loader. A loader over a map-style dataset is made anew, with its
            batch size, workers, collation and whether it shuffles; one with a sampler of its own, and a stream,
            are taken as they are.
        batch_size: samples a batch in each process. When shuffled, a last batch that is not full is dropped,
            unless it is the only one: BatchNorm does not bear a batch of one sample.
        workers: processes that load.
        seed: of the order and of what samples draw.
        like: a loader whose batch size, workers and collation are taken instead.
        shuffle: whether to shuffle, and to drop.
        rank: which of the processes this is.
        world_size: how many processes share the data.

    Raises:
        DataError: it is neither, is empty, or cannot be shared by several processes.
    """
    drop_last = None
    if isinstance(data, DataLoader):
        if not _can_be_made_anew(data):
            if world_size > 1:
                raise DataError(
                    f"the loader of a {type(data.dataset).__name__} has a sampler of its own or a stream, which cannot "
                    "be shared by several processes; give the dataset"
                )
            return data
        like, shuffle = data, shuffle and isinstance(data.sampler, RandomSampler)
        drop_last, data = data.drop_last, data.dataset
    if not isinstance(data, Dataset) and not hasattr(data, "__getitem__"):
        raise DataError(f"data comes as a torch Dataset or DataLoader, not as {type(data).__name__}")
    options: dict[str, Any] = {"num_workers": workers}
    if like is not None:
        batch_size = like.batch_size or batch_size
        options = {
            "num_workers": like.num_workers,
            "collate_fn": like.collate_fn,
            "pin_memory": like.pin_memory,
            "timeout": like.timeout,
            "worker_init_fn": like.worker_init_fn,
            "multiprocessing_context": like.multiprocessing_context,
            "prefetch_factor": like.prefetch_factor,
            "persistent_workers": like.persistent_workers,
        }
    options["generator"] = torch.Generator().manual_seed(seed)  # of the workers' seeds, else the trainer's moves
    if isinstance(data, IterableDataset):
        if world_size > 1:
            raise DataError(f"{type(data).__name__} is a stream, which cannot be shared by several processes")
        return DataLoader(data, batch_size=batch_size, **options)
    if not isinstance(data, Sized):
        raise DataError(f"a {type(data).__name__} has no length (__len__); give a DataLoader, or an IterableDataset")
    if len(data) == 0:
        raise DataError(f"a {type(data).__name__} is empty; it has no sample to train on")
    if drop_last is None:
        drop_last = shuffle and len(data) >= batch_size
    batches = Batches(
        len(data),
        batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    return DataLoader(Reseeded(data, seed), batch_sampler=batches, **options)


def _can_be_made_anew(loader: DataLoader[Any]) -> bool:
    """Say whether the loader has one of torch's own orders over a map-style dataset."""
    return (
        not isinstance(loader.dataset, IterableDataset)
        and isinstance(loader.dataset, Sized)
        and type(loader.batch_sampler) is BatchSampler
        and (type(loader.sampler) is SequentialSampler or _is_plain_shuffle(loader.sampler))
    )


def _is_plain_shuffle(sampler: Any) -> bool:
    return (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )


def first_batch(loader: DataLoader[Any]) -> Any:
    """Return a batch to try a model on, without starting workers, and moving no random state.

    Raises:
        DataError: the loader gives no batch.
    """
    if isinstance(loader.batch_sampler, Batches):
        keys = next(iter(loader.batch_sampler), None)
        if keys is not None:
            return loader.collate_fn(loader.dataset.__getitems__(keys))  # type: ignore[attr-defined]
    else:
        state = None if loader.generator is None else loader.generator.get_state()
        with random_numbers_kept():
            batch = next(iter(loader), None)
        if state is not None:
            loader.generator.set_state(state)
        if batch is not None:
            return batch
    raise DataError(f"a {type(_given(loader.dataset)).__name__} has fewer samples than one batch; lower batch_size")


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return what of a batch goes to the model, and what goes to loss and metrics beside the output.

    A pair is (X, y), each of any structure; of more parts the last is y and the others are X, as a tuple. A
    dict is both: the model and the loss take from it what they need.

    Raises:
        DataError: the batch is neither.
    """
    if isinstance(batch, Mapping):
        return batch, batch
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise DataError(
        f"a batch is (X, y) or a dict, but the loader gives {type(batch).__name__}"
        f"{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}; let the dataset return (X, y)"
    )


def _given(dataset: Any) -> Any:
    """Return the dataset as its user gave it."""
    return dataset.dataset if isinstance(dataset, Reseeded) else dataset


def length_of(loader: Any) -> int | None:
    """Return how many batches a loader has, None where it cannot say (a stream)."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None
