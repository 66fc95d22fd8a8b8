"""What one choice does now: which of its options run, and with which weights."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from supernet.errors import ArchitectureError, ChoiceError
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
    if isinstance(entry, torch.Tensor) and entry.dim():
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
        ChoiceError: There is no such option, or not a weight for each; names it.
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
    return (isinstance(entry, torch.Tensor) and entry.dim() > 0) or (
        isinstance(entry, Selection) and len(entry.active) > 1 and not entry.detached
    )


def read_entry(domain: Domain, entry: Any) -> Any:
    """Return a plan's entry as slots read it: decisions in the form that architectures have.

    Args:
        domain: What can be decided at its label.
        entry: A decision in any form that `Domain.positions` understands, weights of all options, or a `Selection`.

    Raises:
        ArchitectureError: It is no decision of this domain.
        ChoiceError: There are not as many weights as options, or a selection has none that it needs.
    """
    if isinstance(entry, Selection):
        return _read_selection(domain, entry)
    if not isinstance(entry, torch.Tensor) or not entry.dim():
        return _decision(domain, entry)
    if entry.shape != (len(domain.options),):
        raise ChoiceError(
            f"choice {domain.label!r} is given weights of shape {tuple(entry.shape)}; let the plan have one for "
            f"each of its {len(domain.options)} {domain.noun}s: {', '.join(domain.names())}"
        )
    return entry


def usual_entries(domain: Domain) -> set[str | torch.Size]:
    """Return the names, and the shape of weights, that entries have which are read as they are."""
    names = domain.options if domain.values is None and not domain.is_set else ()
    return {*names, torch.Size([len(domain.options)])}


def _decision(domain: Domain, entry: Any) -> Any:
    try:
        return domain.normalized(entry)
    except ArchitectureError:
        if not _may_be_weights(entry):
            raise
        raise ArchitectureError(
            f"choice {domain.label!r} is given {reprlib.repr(entry)}, a {type(entry).__name__}, which is none of its "
            f"decisions ({domain}); if these are weights, let the plan have a tensor: torch.tensor(...)"
        ) from None


def _may_be_weights(entry: Any) -> bool:
    """Say whether an entry is a list or an array of numbers that are not all whole, or as many as there are."""
    numbers = entry.tolist() if hasattr(entry, "tolist") else entry
    return isinstance(numbers, list | tuple) and any(isinstance(number, float | torch.Tensor) for number in numbers)


def _read_selection(domain: Domain, selection: Selection) -> Any:
    active, weights, detached = selection
    if weights is None:
        if len(active) != 1:
            raise ChoiceError(
                f"choice {domain.label!r} is to run {len(active)} options, {', '.join(map(repr, active))}, but "
                "without weights one alone can run; give Selection(active, weights)"
            )
        return _decision(domain, active[0])
    if not isinstance(weights, torch.Tensor) or weights.dim() != 1:
        given = f"of shape {tuple(weights.shape)}" if isinstance(weights, torch.Tensor) else reprlib.repr(weights)
        raise ChoiceError(
            f"choice {domain.label!r} is to run {len(active)} options by weights {given}; let the plan have a tensor "
            f"of shape ({len(active)},), one for each"
        )
    check_weights(weights, len(active), domain.label)
    if not 0 <= detached < len(active):
        raise ChoiceError(
            f"choice {domain.label!r} is to run {len(active)} options, {detached} of them detached; let at least one "
            "not be"
        )
    return Selection(tuple(_option(domain, option) for option in active), weights, detached)


def _option(domain: Domain, option: Any) -> Any:
    """Return one of several that run: of a set a single option by its position, or a decision, a list of these."""
    if domain.is_set and not isinstance(option, list | tuple):
        return domain.position_in_set(option)
    return _decision(domain, option)
