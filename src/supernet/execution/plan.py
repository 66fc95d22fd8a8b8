"""What a supernet follows in one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from supernet.errors import TrainingError, UnresolvedChoiceError
from supernet.execution.fast.shared import Shared

__all__ = ["Plan", "is_checkpointed"]


class Plan(dict[str, Any]):
    """Label -> what its choices follow now: mixing weights, or a decision.

    One plan belongs to one supernet: its trainer writes it before each forward pass, and the modules in the
    choices' places read it. A copy of a supernet begins with an empty plan, for the tensors of the last pass
    belong to a graph that cannot be copied.

    Attributes:
        fast: whether mixtures may take the fast way. Default: they may.
        reentrant: whether choices run under `torch.utils.checkpoint(..., use_reentrant=True)`, which loses gradients
            where its inputs have none.
        shared: what edges have in common in the pass that runs now; None outside of one.
    """

    fast = True
    reentrant = False
    shared: Shared | None = None

    def __missing__(self, label: str) -> torch.Tensor:
        raise UnresolvedChoiceError(
            f"choice {label!r} has no plan to follow: a trainer has taken this model over; run it through the "
            "trainer's forward, or call freeze(model, architecture), or restore(model)"
        )

    def __reduce__(self) -> tuple[type[Plan], tuple[()]]:
        return Plan, ()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """What a forward pass of the whole supernet stands in: edges share what they have in common."""
        self.shared = Shared()
        try:
            yield
        finally:
            self.shared = None

    def shared_now(self) -> Shared:
        """Return what edges have in common in the pass that runs, or nothing yet.

        A stretch under `torch.utils.checkpoint` runs again by itself in the backward pass, so it shares with none.
        """
        return Shared() if self.shared is None or is_checkpointed() else self.shared

    def check_gradient(self, label: str) -> None:
        """Raise if a reentrant checkpoint that the trial has not met would lose the gradient of a choice's entry."""
        if not self.reentrant and is_in_reentrant_checkpoint():
            raise TrainingError(
                f"choice {label!r} runs under torch.utils.checkpoint with use_reentrant=True, through which no "
                "gradient of its weights comes; pass use_reentrant=False"
            )


def is_checkpointed() -> bool:
    """Say whether what runs now runs under `torch.utils.checkpoint`."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def is_in_reentrant_checkpoint() -> bool:
    """Say whether what runs now runs in the first pass of a reentrant `torch.utils.checkpoint`, without gradients."""
    frame = None if torch.is_grad_enabled() else sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None
