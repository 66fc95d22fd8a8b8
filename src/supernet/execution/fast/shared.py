"""Work that several candidates or edges need of one tensor, done once a pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from supernet.execution.activation_checkpoints import is_checkpointed

__all__ = ["Shared"]


class Shared:
    """What has been computed from a tensor without parameters, for whoever asks for the same again.

    A tensor is known by its identity and version: one changed in place counts as another. It lives for one pass,
    since it holds what it knows.
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[torch.Tensor, Any]] = {}

    def of(self, x: torch.Tensor, what: Hashable, compute: Callable[[torch.Tensor], Any]) -> Any:
        """Return `compute(x)`, which `what` names, from where it has been computed already if it has."""
        if x.is_inference():  # has no version
            return compute(x)
        key = id(x), x._version, torch.is_grad_enabled(), what
        if key not in self._results:
            self._results[key] = x, compute(x)  # with x, so that no other tensor gets its identity
        return self._results[key][1]


_of_this_pass: ContextVar[Shared | None] = ContextVar("supernet_shared", default=None)


@contextmanager
def one_pass() -> Iterator[None]:
    """What a forward pass of a whole supernet stands in: its edges share what they have in common."""
    token = _of_this_pass.set(Shared())
    try:
        yield
    finally:
        _of_this_pass.reset(token)


def is_in_a_pass() -> bool:
    """Say whether a pass of a whole supernet runs now."""
    return _of_this_pass.get() is not None


def shared_now() -> Shared:
    """Return what edges have in common in the pass that runs, or nothing yet.

    A stretch under `torch.utils.checkpoint` runs again by itself in the backward pass, so it shares with none.
    """
    shared = _of_this_pass.get()
    return Shared() if shared is None or is_checkpointed() else shared
