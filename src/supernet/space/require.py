"""Constraints as a part of a model: what is made of it keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from supernet.errors import AlreadyReplacedError, ArchitectureError, SpaceError
from supernet.nn.choice import decisions_followed
from supernet.nn.value import Value
from supernet.space.constraints import Condition, attach, constraint_of
from supernet.space.original import is_replaced
from supernet.space.space import SearchSpace

__all__ = ["require"]

Model = TypeVar("Model", bound=nn.Module)


def require(model: Model, *constraints: Any) -> Model:
    """Let a model have only those architectures that keep some constraints; return the same model.

    They are a part of the model: its `SearchSpace` has them, so every trainer and searcher samples, breeds and exports
    architectures that keep them, a resume compares them, and `freeze` refuses what breaks them. Copies have them too. A
    trainer that mixes runs what all decisions give, and derives the most probable architecture that keeps them. In a
    constructor inside `fixed_architecture` they are checked of what has been decided.

    Args:
        model: A module with choices, before a trainer or `Supernet` is made of it.
        constraints: Expressions over its choices that are true or false, such as `width * depth <= 64`; or functions of
            an architecture, which say whether it is allowed: see `SearchSpace.require` and `SearchSpace.where`.

    Raises:
        SpaceError: A constraint is none, or is about a choice that is not there; no architecture keeps all of them
            (names the smallest set that conflicts), or none was found. The model is as it was.
        ArchitectureError: Inside `fixed_architecture` the architecture breaks one.
        AlreadyReplacedError: A trainer has taken the model over, which would not know of them.

    >>> a, b = (ValueChoice([8, 16, 32], label=label) for label in "ab")
    >>> model = nn.Sequential(supernet.nn.Linear(4, a), supernet.nn.Linear(a, b), supernet.nn.Linear(b, 2))
    >>> SearchSpace(require(model, a <= b, a + b <= 32))
    SearchSpace of 3 architectures
      a: 8 | 16 | 32
      b: 8 | 16 | 32
      where a <= b
      where (a + b) <= 32
    """
    if not isinstance(model, nn.Module):
        raise SpaceError(f"constraints are given to an nn.Module, not to {type(model).__name__}; a space has require")
    if is_replaced(model):
        raise AlreadyReplacedError(
            "the choices of this model have been replaced already, and what runs it would not know of new constraints; "
            "restore(model) puts the choices back, or give the constraints before"
        )
    space, decided = SearchSpace(model), decisions_followed()
    if decided is not None:
        constraints = tuple(given for given in constraints if not _is_kept(given, decided, is_decided=not space))
    made = [constraint_of(given) for given in constraints]
    space.constrained(made)
    attach(model, made)
    return model


def _is_kept(given: Any, decided: Mapping[str, Any], is_decided: bool) -> bool:
    """Say whether decisions that constructors follow keep a constraint; False where it is not known yet.

    Raises:
        ArchitectureError: They break it.
    """
    if callable(given) and not isinstance(given, Value):
        if not is_decided:
            return False
        text, keeps = Condition(given).text, Condition(given).allows(decided)
    elif not isinstance(given, Value) and type(given).__name__ in ("bool", "bool_"):  # of decided values, maybe NumPy's
        text, keeps = "that it requires", bool(given)
    else:
        return False
    if not keeps:
        known = ", ".join(f"{label}={decision!r}" for label, decision in decided.items())
        raise ArchitectureError(f"the architecture breaks the constraint {text}: {known:.300}")
    return True
