"""Values that a model does not bear together: extremes are tried before a search, and the least that fails is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError, SpaceError
from supernet.execution.plan import Plan
from supernet.execution.slot import Slot
from supernet.nn.domain import Domain
from supernet.space import Architecture, Decision, SearchSpace

__all__: list[str] = []


def check_values(
    model: nn.Module,
    plan: Plan,
    space: SearchSpace,
    replaced: Sequence[tuple[str, nn.Module]],
    trial: Callable[[], Any],
) -> None:
    """Try the model with all its values small, all large, of each two one small and one large, and one at random.

    A mixture pads what differs, so it may run where an architecture does not. A space without values costs no pass, one
    of n choices of values 3 + log2(n) trials.

    Args:
        model: A model whose choices have been replaced.
        plan: The plan that it follows, which is left as it is.
        space: The model's space, whose constraints are kept.
        replaced: Label and module of what stands in each choice's place.
        trial: A function that runs the model.

    Raises:
        ChoiceError: An architecture does not run; names the smallest set of choices and values that makes it fail.
    """
    others = {label for label, module in replaced if not isinstance(module, Slot)}
    if not any(domain.values is not None for label, domain in space.items() if label not in others):
        return
    given, errors = dict(plan), dict[str, Exception | None]()

    def error_of(decisions: Mapping[str, Any]) -> Exception | None:
        """Return what the model raises under some decisions; nothing where the space does not allow them."""
        path = space.follow(decisions.__getitem__)
        if repr(path) not in errors:
            plan.update({label: decision for label, decision in decisions.items() if label not in others})
            errors[repr(path)] = None
            try:
                if space.allows(path):
                    trial()
            except Exception as error:  # the user's code, which may raise anything
                errors[repr(path)] = error
        return errors[repr(path)]

    try:
        tried = extremes(space)
        failing = [decisions for decisions in tried if error_of(decisions) is not None]
        if not failing:
            return
        running = [decisions for decisions in tried if error_of(decisions) is None]
        if not running:
            return  # whatever is decided: the trial of the given plan will tell
        conflict = _smallest_conflict(running, failing[0], error_of)
        error = error_of({**running[0], **conflict}) or error_of(failing[0])
        raise _conflict_error(model, space, conflict, error) from error
    finally:
        plan.clear()
        plan.update(given)


def extremes(space: SearchSpace) -> list[Architecture]:
    """Return decisions of all choices: the smallest values that are allowed, the largest, mixtures of both, and a draw.

    In mixture k a choice of values is large where its number has the bit k, so any two of them differ in some.
    """
    drawn = space.draw(torch.Generator().manual_seed(0))
    ranked = {label: _by_value(domain) for label, domain in space.items() if domain.values is not None}

    def extreme(is_large: Callable[[int], bool]) -> Architecture:
        wanted = {label: is_large(number) for number, label in enumerate(ranked)}

        def scores(label: str) -> list[float]:
            if label not in ranked:
                return [float(decision == drawn[label]) for decision in space[label]]
            places = {repr(decision): float(place) for place, decision in enumerate(ranked[label])}
            return [places[repr(decision)] * (1 if wanted[label] else -1) for decision in space[label]]

        first = {label: ranked[label][-1 if wanted[label] else 0] for label in ranked}
        return {**drawn, **first, **space.best(lambda label: first.get(label, drawn[label]), scores)}

    try:
        mixed = [extreme(partial(_has_bit, bit=bit)) for bit in range((len(ranked) - 1).bit_length())]
        return [extreme(lambda _: False), extreme(lambda _: True), *mixed, drawn]
    except SpaceError:  # the constraints leave none that is soon found
        return [drawn]


def _has_bit(number: int, bit: int) -> bool:
    return bool(number >> bit & 1)


def _by_value(domain: Domain) -> list[Decision]:
    """Return the decisions from the smallest number to the largest; as they stand where some are no numbers."""
    decisions = list(domain)
    is_ordered = all(isinstance(decision, int | float) for decision in decisions)
    return sorted(decisions) if is_ordered else decisions


def _smallest_conflict(
    running: Sequence[Architecture],
    failing: Architecture,
    error_of: Callable[[Mapping[str, Any]], Exception | None],
) -> dict[str, Any]:
    """Return label -> decision of the least that fails.

    What differs between an architecture that runs and one that fails is made as small as it can be. It fails for what
    the other choices are, too: where it runs beside other decisions of these, what differs then is added.
    """
    base = running[0]
    conflict = smallest_change(base, failing, error_of)
    failing = {**base, **conflict}
    for other in running[1:]:
        beside = {**other, **conflict}
        if error_of(beside) is None:
            return {**conflict, **smallest_change(beside, failing, error_of)}
    return conflict


def smallest_change(
    running: Mapping[str, Any], failing: Mapping[str, Any], error_of: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """Return decisions of what fails that make fail what runs, none of which can be left out (delta debugging).

    Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.
    """
    labels = [label for label in running if repr(running[label]) != repr(failing[label])]
    num_parts = 2

    def fails(some: Sequence[str]) -> bool:
        return error_of({**running, **{label: failing[label] for label in some}}) is not None

    while len(labels) > 1:
        size = -(-len(labels) // num_parts)
        parts = [labels[start : start + size] for start in range(0, len(labels), size)]
        rests = [[label for label in labels if label not in part] for part in parts]
        part = next((part for part in parts if fails(part)), None)
        rest = next((rest for rest in rests if fails(rest)), None) if part is None else None
        if part is not None:
            labels, num_parts = part, 2
        elif rest is not None:
            labels, num_parts = rest, max(num_parts - 1, 2)
        elif num_parts >= len(labels):
            break
        else:
            num_parts = min(2 * num_parts, len(labels))
    return {label: failing[label] for label in labels}


def _conflict_error(
    model: nn.Module, space: SearchSpace, conflict: Mapping[str, Any], error: Exception | None
) -> ChoiceError:
    decided = [f"{label!r} = {conflict[label]!r}" for label in space if label in conflict]
    lines = str(error).splitlines()
    what = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
    if len(decided) == 1:
        return ChoiceError(
            f"{type(model).__name__} does not bear choice {decided[0]}: {what}; leave that out, or let require(model, "
            "...) forbid it"
        )
    several = f"{', '.join(decided[:-1])} and {decided[-1]}"
    return ChoiceError(
        f"choices {several} do not go together: {what}; let one choice, or an expression of it, stand in both places, "
        "or let require(model, ...) forbid it"
    )
