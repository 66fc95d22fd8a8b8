"""What one choice does now: which of its options run, and with which weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from supernet.errors import ChoiceError
from supernet.nn.domain import Domain

__all__ = ["Selection"]


class Selection(NamedTuple):
    """What one choice does now.

    A plan may say the same in short: a decision is a selection of that alone, weights (K,) one of all options.

    Args:
        active: The options that run: candidates by name or position; inputs by position, or sets of inputs by lists of
            positions; decisions of choices of other kinds.
        weights: Weights (len(active),) of what they return, differentiable. Default: one runs, and what it returns is
            returned.
        detached: How many of the last run for their outputs only: nothing inside them gets a gradient, and without
            gradients at all they do not run. Default: 0.

    >>> Selection(("conv", "skip"), torch.tensor([1.0, 0.0]), detached=1).active  # ProxylessNAS's two paths
    ('conv', 'skip')
    """

    active: tuple[Any, ...]
    weights: torch.Tensor | None = None
    detached: int = 0


def selection_of(entry: Any) -> Selection:
    """Return the selection that a plan's entry means."""
    if isinstance(entry, Selection):
        return entry
    if isinstance(entry, torch.Tensor):
        return Selection(tuple(range(len(entry))), entry)
    return Selection((entry,))


def check_weights(weights: torch.Tensor, count: int, label: str) -> None:
    """Raise `ChoiceError` unless there is a weight for each of `count` options that run."""
    if len(weights) != count:
        raise ChoiceError(
            f"choice {label!r} is to run {count} options by {len(weights)} weights; let the plan have one for each"
        )


def positions_of(selection: Selection, names: Sequence[str], label: str) -> list[int]:
    """Return the positions of what is selected among options of these names.

    Raises:
        ChoiceError: there is no such option, or not a weight for each; names it.
    """
    known = {name: position for position, name in enumerate(names)}
    weights = selection.weights
    if weights is not None:
        check_weights(weights, len(selection.active), label)
    try:
        positions = [
            known[option] if isinstance(option, str) else range(len(names))[option] for option in selection.active
        ]
    except (LookupError, TypeError):
        raise ChoiceError(
            f"the plan selects {', '.join(map(repr, selection.active))} of choice {label!r}; it has: {', '.join(names)}"
        ) from None
    return positions


def weights_of(selection: Selection) -> torch.Tensor:
    """Return the weights of a selection that has some."""
    assert selection.weights is not None, "asked where several run"
    return selection.weights


def is_mixture(entry: Any) -> bool:
    """Say whether a plan's entry lets several run, all of them for their gradients too."""
    return isinstance(entry, torch.Tensor) or (
        isinstance(entry, Selection) and len(entry.active) > 1 and not entry.detached
    )


def check_entry(domain: Domain, entry: Any) -> None:
    """Raise unless a plan's entry selects of what can be decided at its label.

    Raises:
        ArchitectureError: it is no decision of this domain.
        ChoiceError: there are not as many weights as options, or a selection has none that it needs.
    """
    if isinstance(entry, torch.Tensor):
        if entry.dim() != 1 or len(entry) != len(domain.options):
            raise ChoiceError(
                f"choice {domain.label!r} is given weights of shape {tuple(entry.shape)}; let the plan have one for "
                f"each of its {len(domain.options)} {domain.noun}s: {', '.join(domain.names())}"
            )
    elif not isinstance(entry, Selection):
        domain.positions(entry)
    elif entry.weights is not None:
        check_weights(entry.weights, len(entry.active), domain.label)
    elif len(entry.active) != 1:
        raise ChoiceError(
            f"choice {domain.label!r} is to run {len(entry.active)} options, {', '.join(map(repr, entry.active))}, but "
            "without weights one alone can run; give Selection(active, weights)"
        )
