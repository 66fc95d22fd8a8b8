"""From whatever data a user has to batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from supernet.errors import DataError

__all__: list[str] = []

Data: TypeAlias = "Dataset[Any] | DataLoader[Any]"


class Shuffled(Sampler[int]):
    """Every index once, in an order that is a function of the seed and the epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        # One large odd step per seed, so that the orders of neighbouring seeds are not shifts of each other.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def loaders_of_two_parts(
    data: Data, valid_data: Data | None, *, batch_size: int, workers: int, seed: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of the part that trains the weights and of the part that trains the architecture.

    Where no `valid_data` is given, `data` is split at random into two halves that share no sample. A loader
    that is to be halved is halved through its dataset and keeps its batch size, workers and collation.

    Raises:
        DataError: the data cannot be split, or is not data at all.
    """
    if valid_data is not None:
        parts = [data, valid_data]
        return tuple(loader_of(d, batch_size=batch_size, workers=workers, seed=seed + i) for i, d in enumerate(parts))  # type: ignore[return-value]
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(
            f"a {type(dataset).__name__} has no length, so it cannot be split in two halves; give valid_dataset too"
        )
    if len(dataset) < 2:
        raise DataError(f"a dataset of {len(dataset)} samples cannot be split in two halves; it takes at least 2")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(order) // 2
    halves = [Subset(dataset, order[:half]), Subset(dataset, order[half:])]
    like = data if isinstance(data, DataLoader) else None
    return tuple(  # type: ignore[return-value]
        loader_of(part, batch_size=batch_size, workers=workers, seed=seed + i, like=like)
        for i, part in enumerate(halves)
    )


def loader_of(
    data: Data,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    like: DataLoader[Any] | None = None,
    shuffle: bool = True,
) -> DataLoader[Any]:
    """Return a loader: a given one as it is; of a dataset, one that shuffles by the seed.

    Args:
        data: a dataset of either kind, or a loader.
        batch_size: samples a batch. When shuffled, a last batch that is not full is dropped, unless it is the
            only one: BatchNorm does not bear a batch of one sample.
        workers: processes that load.
        seed: of the order.
        like: a loader whose batch size, workers and collation are taken instead.
        shuffle: whether to shuffle, and to drop.

    Raises:
        DataError: it is neither, or is empty.
    """
    if isinstance(data, DataLoader):
        return data
    if not isinstance(data, Dataset) and not hasattr(data, "__getitem__"):
        raise DataError(f"data comes as a torch Dataset or DataLoader, not as {type(data).__name__}")
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers}
    if like is not None:
        options = {
            "batch_size": like.batch_size or batch_size,
            "num_workers": like.num_workers,
            "collate_fn": like.collate_fn,
            "pin_memory": like.pin_memory,
            "worker_init_fn": like.worker_init_fn,
            "multiprocessing_context": like.multiprocessing_context,
        }
    options["generator"] = torch.Generator().manual_seed(seed)  # of the workers' seeds
    if isinstance(data, IterableDataset):
        return DataLoader(data, **options)
    if not isinstance(data, Sized):
        raise DataError(f"a {type(data).__name__} has no length (__len__); give a DataLoader, or an IterableDataset")
    if len(data) == 0:
        raise DataError(f"a {type(data).__name__} is empty; it has no sample to train on")
    if shuffle:
        options |= {"sampler": Shuffled(len(data), seed), "drop_last": len(data) >= options["batch_size"]}
    return DataLoader(data, **options)


def first_batch(loader: DataLoader[Any]) -> Any:
    """Return a batch to try a model on, without starting workers, and moving no random state of the loader.

    Raises:
        DataError: the loader gives no batch.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None or loader.collate_fn is None:
        state = None if loader.generator is None else loader.generator.get_state()
        batch = next(iter(loader), None)
        if state is not None:
            loader.generator.set_state(state)
        if batch is None:
            raise DataError(f"the loader of a {type(loader.dataset).__name__} gives no batch")
        return batch
    count = min(loader.batch_size, len(loader.dataset))  # type: ignore[arg-type]
    if count == 0:
        raise DataError(f"a {type(loader.dataset).__name__} is empty; it has no sample to train on")
    return loader.collate_fn([loader.dataset[i] for i in range(count)])


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


def repeated(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield batches without end: a shorter part is gone through again.

    Raises:
        DataError: the loader gives no batch.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise DataError(
                "the validation part gives no batch: it has fewer samples than one batch, and drop_last is set"
            )
