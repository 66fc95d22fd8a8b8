"""Work that several candidates or edges need of one tensor, done once a pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

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
