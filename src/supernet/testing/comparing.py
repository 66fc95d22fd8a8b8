"""What is promised, what is seen, and whether two states are the same bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from supernet.files.digests import bits

__all__: list[str] = []


def promised(promise: str, held: Any, seen: str | Callable[[], str]) -> None:
    """Raise `AssertionError` unless a promise is held.

    Args:
        promise: What is promised, as a sentence without a full stop.
        held: Whether it is held.
        seen: What was seen instead.
    """
    if not held:
        raise AssertionError(f"{promise}; but {seen if isinstance(seen, str) else seen()}")


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Return path -> text of all that a value holds, which stays as it is when the value changes.

    Of tensors and arrays that is a digest of their bits, of what has a `state_dict` that state, of generators theirs.
    """
    return dict(_leaves(value, path))


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Return the paths at which two values differ."""
    return [path for path in {**a, **b} if a.get(path) != b.get(path)]


def in_words(paths: Sequence[str]) -> str:
    """Return some of the paths, for a message."""
    more = f" and {len(paths) - 6} more" if len(paths) > 6 else ""
    return ", ".join(paths[:6]) + more


def random_numbers() -> dict[str, str]:
    """Return the state of Python's, NumPy's and torch's global random numbers."""
    numpy = np.random.get_state()  # noqa: NPY002  # what users' data may draw from
    return flat({"random": random.getstate(), "numpy.random": numpy, "torch": torch.get_rng_state()})


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Tensor):
        yield path, f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(bits(value).data).hexdigest()}"
    elif isinstance(value, np.ndarray):
        yield path, f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, torch.Generator):
        yield from _leaves(value.get_state(), path)
    elif isinstance(value, random.Random):
        yield path, repr(value.getstate())
    elif isinstance(value, np.random.Generator):
        yield from _leaves(value.bit_generator.state, path)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif hasattr(value, "state_dict"):
        yield from _leaves(value.state_dict(), path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _leaves({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, path)
    elif isinstance(value, list | tuple):
        yield path, f"{type(value).__name__} of {len(value)}"
        for position, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{position}]")
    else:
        yield path, repr(value)
