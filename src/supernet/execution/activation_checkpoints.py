"""Choices under `torch.utils.checkpoint`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint
from torch.utils.checkpoint import CheckpointFunction

from supernet.errors import TrainingError
from supernet.execution.plan import Plan
from supernet.execution.structure import mapped

__all__: list[str] = []


def is_checkpointed() -> bool:
    """Say whether what runs now runs under `torch.utils.checkpoint`."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def plan_of_region(plan: Plan) -> Plan:
    """Return what a region under `torch.utils.checkpoint` follows, which runs again after another pass has begun."""
    new = []
    for region in _regions_around():
        if region in plan.of_regions:
            followed = plan.of_regions[region]
            break
        new.append(region)
    else:
        followed = Plan(plan)
    plan.of_regions.update(dict.fromkeys(new, followed))
    return followed


def _regions_around() -> Iterator[Any]:
    """Yield the regions that what runs now is in, innermost first: they run the first time, or again."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            if frame.f_code.co_name == "unpack_hook":
                yield frame.f_locals["frame"]
            elif "gen" in frame.f_locals:
                yield frame.f_locals["gen"].gi_frame.f_locals["new_frame"]
        frame = frame.f_back  # type: ignore[assignment]


def is_in_reentrant_checkpoint() -> bool:
    """Say whether what runs now runs in the first pass of a reentrant checkpoint, which is without gradients."""
    frame = None if torch.is_grad_enabled() else sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def check_gradient(label: str) -> None:
    """Raise if a reentrant checkpoint loses the gradient of the weights that a choice follows."""
    if is_in_reentrant_checkpoint():
        raise TrainingError(
            f"choice {label!r} runs under torch.utils.checkpoint with use_reentrant=True, through which no "
            "gradient of its weights comes; pass use_reentrant=False"
        )


def with_leaves(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan whose tensors are leaves that pass the gradients they get on to the given ones.

    A reentrant checkpoint goes backward through what it was not given by itself, and frees the graph there: so for its
    passes that graph ends in leaves.
    """
    return {label: mapped(entry, _leaf_of) for label, entry in plan.items()}


def _leaf_of(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.requires_grad:
        return tensor
    leaf = tensor.detach().requires_grad_()

    def pass_on(leaf: torch.Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        torch.autograd.backward(tensor, gradient, retain_graph=True)

    leaf.register_post_accumulate_grad_hook(pass_on)
    return leaf


@contextmanager
def gradients_dropped(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the gradients of these weights be, after this context, what they were before.

    In the place of not computing them: under a reentrant checkpoint a gradient comes only from where an input has one.
    """
    before = [(w, w.grad) for w in weights]
    for w, _ in before:
        w.grad = None
    try:
        yield
    finally:
        for w, gradient in before:
            w.grad = gradient
