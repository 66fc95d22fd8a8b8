"""What a batch is: which of it goes to the model, and how many samples it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch

from supernet.errors import DataError

__all__: list[str] = []


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return what of a batch goes to the model, and what goes to loss and metrics beside the output.

    A pair is (X, y), each of any structure; of more parts the last is y and the others are X, as a tuple. A
    dict is both: the model and the loss take from it what they need.

    Raises:
        DataError: The batch is neither.
    """
    if isinstance(batch, Mapping):
        return batch, batch
    is_sequence = isinstance(batch, tuple | list)
    if is_sequence and len(batch) > 2 and all(isinstance(item, Mapping) for item in batch):
        raise DataError(
            f"the loader gives a {type(batch).__name__} of {len(batch)} dicts, which is not (X, y); let collate_fn "
            "return (X, y) or one dict, or give loss_fn=lambda model, batch: ..., which takes any"
        )
    if is_sequence and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise DataError(
        f"a batch is (X, y) or a dict, but the loader gives {type(batch).__name__}"
        f"{f' of {len(batch)}' if is_sequence else ''}; let the dataset return (X, y), or "
        "give loss_fn=lambda model, batch: ..., which takes any"
    )


def batch_size(target: Any, X: Any = None) -> int:
    """Return how many samples a batch has, as its targets say; where they may mean several numbers, its inputs decide.

    A tensor has one sample a row; a target that is one number, that of one sample, has none. Tensors of one number of
    rows, in a dict or a list, are parts of the same samples. A list of dicts has one sample an item, and so has a list
    of tensors, or of lists, of different lengths.
    """
    if isinstance(target, int | float) or (isinstance(target, torch.Tensor) and target.dim() == 0):
        return 1
    of_target, of_inputs = _sizes(target), _sizes(X)
    agreed = [size for size in of_target if size in of_inputs]
    return next(iter([*agreed, *of_target, *of_inputs]), 1)


def _sizes(value: Any) -> list[int]:
    """Return how many samples this may stand for, the likeliest number first; none where it says nothing."""
    if isinstance(value, torch.Tensor):
        return [value.size(0)] if value.dim() and value.size(0) else []
    if is_dataclass(value) and not isinstance(value, type | Mapping):
        value = vars(value)
    is_dict = isinstance(value, Mapping)
    if not is_dict and not isinstance(value, list | tuple):
        return []
    items = list(value.values()) if is_dict else list(value)
    told = [sizes for sizes in map(_sizes, items) if sizes]
    every = list(dict.fromkeys(size for sizes in told for size in sizes))
    shared = [size for size in every if all(size in sizes for sizes in told)]
    if is_dict:
        return shared or every
    length = [len(items)] if items else []
    if not shared or all(isinstance(item, Mapping) for item in items):
        return [*length, *(shared or every)]
    return [*shared, *length]
