"""Copies of modules that hold more than a network is: tensors of the last pass, locks, open files, iterators."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__: list[str] = []

logger = logging.getLogger("supernet")

T = TypeVar("T")


def with_what_cannot_be_copied(copy_all: Callable[[dict[int, Any]], T]) -> T:
    """Return what `copy_all(memo)` returns, which copies modules by `copy.deepcopy` and this memo.

    A tensor that belongs to the graph of a pass is copied without it. An object in a module's attributes that cannot
    be copied is shared, which a warning says; of a `torch.Generator` a twin in the same state is made. What fails in
    the copying of a tensor, or in a module's own `__deepcopy__`, is passed on.
    """
    in_place_of: dict[int, tuple[Any, Any]] = {}  # id -> the object, which keeps the id, and what stands for it
    while True:
        memo = {key: stand_in for key, (_, stand_in) in in_place_of.items()}
        try:
            with _GraphsLeftBehind():
                return copy_all(memo)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            where, thing = _what_failed(error)
            if thing is None or id(thing) in in_place_of:
                raise
            if isinstance(thing, torch.Generator):
                stand_in = torch.Generator(thing.device)
                stand_in.set_state(thing.get_state())
                in_place_of[id(thing)] = thing, stand_in
            else:
                in_place_of[id(thing)] = thing, thing
                logger.warning(
                    "%s is a %s, which cannot be copied (%s): the copy of the model shares it",
                    *(where, type(thing).__name__, error),
                )


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


class _GraphsLeftBehind(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors that are no leaves of a graph, and compressed sparse ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].layout in _COMPRESSED):
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _what_failed(error: BaseException) -> tuple[str, Any]:
    """Return where the object stands whose copying failed, and it; None where it may not be shared.

    That is not the innermost one, say a lock, but the whole to which it belongs, say a queue: half of it would be none.
    """
    copied = []  # what was being copied, outer before inner
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code is copy.deepcopy.__code__:
            copied.append(traceback.tb_frame.f_locals["x"])
        traceback = traceback.tb_next
    owner = max((i for i, thing in enumerate(copied) if isinstance(thing, nn.Module)), default=None)
    if owner is None:
        return "", None
    inside = copied[owner + 1 :]  # the module's attributes as a dict, then one of them
    thing = next((thing for thing in inside if not isinstance(thing, dict | list | tuple | set | frozenset)), None)
    if isinstance(thing, torch.Tensor):
        return "", None
    attributes = inside[0] if inside and isinstance(inside[0], dict) else {}
    name = next((name for name, value in attributes.items() if len(inside) > 1 and value is inside[1]), "?")
    return f"{type(copied[owner]).__name__}.{name}", thing
