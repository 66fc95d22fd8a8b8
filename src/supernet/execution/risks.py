"""Whether a model bears each decision that its choices may make: risky ones are tried before a search meets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from supernet.errors import ArchitectureError, ChoiceError
from supernet.execution.plan import Plan
from supernet.execution.selection import Selection
from supernet.execution.slot import Slot
from supernet.nn import Choice
from supernet.nn.choice import Risk
from supernet.space import Decision
from supernet.space.original import original_branches, original_children

__all__: list[str] = []


class Place(NamedTuple):
    """A choice, and the decisions of others that it is reached by."""

    choice: Choice
    inside: dict[str, Decision]


def check_risks(
    model: nn.Module, plan: Plan, replaced: Sequence[tuple[str, nn.Module]], trial: Callable[[], Any]
) -> None:
    """Try the model with each decision whose result it may not bear, such as an InputChoice that takes nothing.

    Args:
        model: A model whose choices have been replaced.
        plan: The plan that it follows, which is left as it is.
        replaced: Label and module of what stands in each choice's place.
        trial: A function that runs the model.

    Raises:
        ChoiceError: It runs otherwise, but not so; names the choice.
    """
    places: dict[str, Place] = {}
    _find(model, {}, places, set())
    others = {label for label, module in replaced if not isinstance(module, Slot)}
    followed = {label: place for label, place in places.items() if label not in others}
    risky = {label: risks for label, place in followed.items() if (risks := place.choice.risks())}
    if not risky:
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
        for label, risks in risky.items():
            inside = {outer: decision for outer, decision in places[label].inside.items() if outer in followed}
            if inside and error_with(inside) is not None:
                continue
            for risk in risks:
                if (error := error_with({**inside, label: risk.decision})) is not None:
                    raise _not_borne(model, label, risk, error) from error
        empty = [label for label, risks in risky.items() if any(risk.decision == [] for risk in risks)]
        if len(empty) > 1 and (error := error_with({label: [] for label in empty})) is not None:
            raise ChoiceError(
                f"choices {', '.join(map(repr, empty))} may all choose nothing and then give None, which "
                f"{_does_not_bear(model, error)}; give one n_chosen=(1, ...) or absent='zeros', or handle None"
            ) from error
    finally:
        plan.clear()
        plan.update(given)


def _usual(choice: Choice, given: Any) -> Decision:
    """Return a decision that is no extreme: the given one, if it is one option; of a set all that may be in it."""
    domain = choice.domain()
    given = given.active[0] if isinstance(given, Selection) else given
    if not domain.is_set:
        try:
            return domain.normalized(given)
        except ArchitectureError:  # weights of a mixture, or nothing
            pass
    return domain.decision(range(domain.bounds[1]))


def _not_borne(model: nn.Module, label: str, risk: Risk, error: Exception) -> ChoiceError:
    return ChoiceError(f"choice {label!r} {risk.what} which {_does_not_bear(model, error)}; give it {risk.mend}")


def _does_not_bear(model: nn.Module, error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(model).__name__} does not bear ({type(error).__name__}{': ' + lines[0] if lines else ''})"


def _find(module: nn.Module, inside: dict[str, Decision], places: dict[str, Place], seen: set[int]) -> None:
    """Enter the choices in `module` by their labels, each with the decisions by which it is reached."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if not isinstance(module, Choice):
        for _, child in original_children(module):
            _find(child, inside, places, seen)
        return
    label, domain = str(module.label), module.domain()
    places.setdefault(label, Place(module, inside))
    for position, branch in enumerate(original_branches(module)):
        reaching = next(decision for decision in domain if position in domain.positions(decision))
        for child in branch:
            _find(child, {**inside, label: reaching}, places, seen)
