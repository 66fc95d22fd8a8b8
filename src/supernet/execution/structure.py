"""Structures of tensors, as modules take and return them: tuples, lists, mappings, dataclasses, to any depth."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch

__all__: list[str] = []


def parts_of(value: Any) -> dict[Any, Any] | None:
    """Return key -> part of a structure; None of all else, which has no parts."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        if not hasattr(value, "__dict__"):  # it has slots
            return {name: getattr(value, name) for name in names if hasattr(value, name)}
        # As it stands: a configuration's class may say of an attribute when it must not be asked for.
        return {name: vars(value)[name] for name in names if name in vars(value)}
    return None


def rebuilt(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a structure of the type of `value`, and with all else that it has, but with other parts."""
    inner = list(parts.values())
    if type(value) in (dict, list):  # without copying, which torch.compile does not follow
        return dict(parts) if type(value) is dict else inner
    if isinstance(value, tuple):
        return value._make(inner) if hasattr(value, "_make") else type(value)(inner)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return type(value)(dict(parts))  # type: ignore[call-arg]  # as such types are made
    result: Any = copy.copy(value)
    for key, part in parts.items():
        if isinstance(value, MutableMapping | list):
            result[key] = part
        else:
            object.__setattr__(result, key, part)  # of a frozen dataclass too
    return result


def mapped(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Return a structure with `function(tensor)` in the place of each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    parts = parts_of(value)
    return value if parts is None else rebuilt(value, {key: mapped(part, function) for key, part in parts.items()})


def copied(value: Any) -> Any:
    """Return a structure of copies, through which gradients flow; two places of one tensor have one copy."""
    copies: dict[int, torch.Tensor] = {}

    def copy_of(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    return mapped(value, copy_of)


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield what in a structure has no parts: tensors, and all else."""
    parts = parts_of(value)
    if parts is None:
        yield value
    else:
        for part in parts.values():
            yield from leaves_of(part)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a structure, in its order."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, torch.Tensor)]


def are_finite(value: Any) -> bool:
    """Say whether no tensor of a structure holds NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(value) if tensor.is_floating_point())


def noted(value: Any) -> list[tuple[Any, int]]:
    """Return what `is_as_noted` compares with: what is in a structure, and how often each has been changed in place."""
    return [(leaf, _version_of(leaf)) for leaf in leaves_of(value)]


def is_as_noted(value: Any, before: list[tuple[Any, int]]) -> bool:
    """Say whether a structure has the same tensors as it had, none of them changed in place."""
    now = noted(value)
    return len(now) == len(before) and all(
        a is b and old == new for (a, old), (b, new) in zip(before, now, strict=True)
    )


def _version_of(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0


def outline_of(value: Any) -> Any:
    """Return what two structures must have in common to be mixed, for people too: shapes, keys and types."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    parts = parts_of(value)
    if parts is None:
        return type(value).__name__
    inner = {key: outline_of(part) for key, part in parts.items()}
    if isinstance(value, tuple | list):
        return list(inner.values())
    return inner if type(value) in (dict, OrderedDict) else (type(value).__name__, inner)
