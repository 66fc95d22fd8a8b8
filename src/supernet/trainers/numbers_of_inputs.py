"""Whether a model bears each number of inputs that its choices may take: tried before a search meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from supernet.errors import ChoiceError
from supernet.execution import MixedLayer, PathInput, PathLayer, Plan
from supernet.nn import InputChoice, LayerChoice
from supernet.space.written import children_as_written

__all__: list[str] = []


class Place(NamedTuple):
    """A choice, and the candidates that it stands in: label -> name."""

    choice: InputChoice | LayerChoice
    inside: dict[str, str]


def check_numbers_of_inputs(
    model: nn.Module, plan: Plan, replaced: Sequence[tuple[str, nn.Module]], trial: Callable[[], Any]
) -> None:
    """Try the model where an InputChoice takes nothing, and where it gives fewest and most inputs to what follows.

    Args:
        model: whose choices have been replaced.
        plan: what it follows; it is left as it is.
        replaced: (label, module) of what stands in the choices' places.
        trial: runs the model.

    Raises:
        ChoiceError: it runs otherwise, but not so; names the choice.
    """
    places: dict[str, Place] = {}
    _find(model, {}, places, set())
    others = {label for label, module in replaced if not isinstance(module, PathInput | PathLayer | MixedLayer)}
    followed = {label: place for label, place in places.items() if label not in others}
    varying = {label: _numbers_to_try(place.choice) for label, place in followed.items()}
    varying = {label: numbers for label, numbers in varying.items() if numbers}
    if not varying:
        return
    given = dict(plan)
    usual = {label: _usual(place.choice, given.get(label)) for label, place in followed.items()}

    def error_with(decisions: Mapping[str, Any]) -> Exception | None:
        plan.update({**usual, **decisions})
        try:
            trial()
        except Exception as error:  # the user's code, which may raise anything
            return error
        return None

    try:
        if error_with({}) is not None:
            return  # for another reason, which the trial of the given plan will tell
        for label, numbers in varying.items():
            inside = {outer: name for outer, name in places[label].inside.items() if outer in followed}
            if inside and error_with(inside) is not None:
                continue
            for number in numbers:
                if (error := error_with({**inside, label: list(range(number))})) is not None:
                    raise _not_borne(model, places[label].choice, number, error) from error
        empty = [label for label, numbers in varying.items() if 0 in numbers]
        if len(empty) > 1 and (error := error_with({label: [] for label in empty})) is not None:
            raise ChoiceError(
                f"choices {', '.join(map(repr, empty))} may all choose nothing and then give None, which "
                f"{_does_not_bear(model, error)}; give one n_chosen=(1, ...) or absent='zeros', or handle None"
            ) from error
    finally:
        plan.clear()
        plan.update(given)


def _numbers_to_try(choice: InputChoice | LayerChoice) -> list[int]:
    """Return the numbers of inputs for which a choice gives what the model may not bear."""
    if isinstance(choice, LayerChoice) or choice.absent == "zeros":
        return []
    low, high = choice.bounds
    if low == high:
        return []
    widths = [max(low, 1), high] if choice.reduction in ("concat", "none") else []
    return [0, *widths] if low == 0 else widths


def _usual(choice: InputChoice | LayerChoice, given: Any) -> Any:
    """Return a decision that is no extreme: the given one, if it is one, of layers; all that may be of inputs."""
    if isinstance(choice, LayerChoice):
        return given if isinstance(given, str) else choice.names[0]
    return list(range(choice.bounds[1]))


def _not_borne(model: nn.Module, choice: Any, number: int, error: Exception) -> ChoiceError:
    high = choice.bounds[1]
    if number == 0:
        return ChoiceError(
            f"choice {choice.label!r} may choose nothing and then gives None, which {_does_not_bear(model, error)}; "
            f"give it {f'n_chosen=(1, {high}) or ' if high > 1 else ''}absent='zeros', or handle None"
        )
    return ChoiceError(
        f"choice {choice.label!r} may choose {number} of its inputs and reduces them by {choice.reduction!r}, which "
        f"{_does_not_bear(model, error)}; give it absent='zeros', or n_chosen as a number"
    )


def _does_not_bear(model: nn.Module, error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(model).__name__} does not bear ({type(error).__name__}{': ' + lines[0] if lines else ''})"


def _find(module: nn.Module, inside: dict[str, str], places: dict[str, Place], seen: set[int]) -> None:
    """Enter the choices in `module` by their labels, each with the candidates around it."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, InputChoice | LayerChoice):
        places.setdefault(str(module.label), Place(module, inside))
    for name, child in children_as_written(module):
        _find(child, {**inside, str(module.label): name} if isinstance(module, LayerChoice) else inside, places, seen)
