"""Mixtures that hold their input only, and are computed again in the backward pass (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from supernet.execution.plan import Plan
from supernet.execution.state import Buffers, Noted, RandomState
from supernet.execution.structure import mapped

__all__: list[str] = []


def recomputed(
    run: Callable[..., Any], args: Any, kwargs: Any, plan: Plan, buffers: Buffers, device: torch.device
) -> Any:
    """Return `run(*args, **kwargs)`, holding for the backward pass nothing but its arguments.

    When it runs again, it follows the plan, draws the random numbers and finds the buffers of the first time, and what
    it does to the buffers is undone.

    Args:
        run: The function that is computed.
        args, kwargs: Arguments of the function.
        plan: The plan that it follows.
        buffers: Buffers that it may change.
        device: Device whose random numbers count, beside the CPU's.
    """
    # A pass of a whole network may come between the two; so all that it follows is noted now.
    then = dict(plan), buffers.noted(), RandomState(device)
    has_run = False
    tensors: list[torch.Tensor] = []

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    arguments = mapped((args, kwargs), noted)  # in containers that nobody else changes

    def first_or_again(*tensors: torch.Tensor) -> Any:  # again as often as the backward pass comes by
        nonlocal has_run
        args, kwargs = arguments
        if has_run:
            each = iter(tensors)
            args, kwargs = mapped(arguments, lambda _: next(each))
        with _as_then(plan, buffers, device, *then) if has_run else nullcontext():
            has_run = True
            return run(*args, **kwargs)

    # The random state that it would preserve is that of torch alone. Of the tensors it says if one was changed since.
    return checkpoint(first_or_again, *tensors, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def _as_then(
    plan: Plan,
    buffers: Buffers,
    device: torch.device,
    followed: dict[str, Any],
    noted: Noted,
    drawn: RandomState,
) -> Iterator[None]:
    now, followed_now = RandomState(device), dict(plan)
    drawn.put_back()
    _follow(plan, followed)
    try:
        with buffers.preserve():
            buffers.put(noted)
            yield
    finally:
        _follow(plan, followed_now)
        now.put_back()


def _follow(plan: Plan, followed: dict[str, Any]) -> None:
    plan.clear()
    plan.update(followed)
