"""What a `BilevelTrainer` is given, looked at before the model is touched: the relaxation, a first plan, the terms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from supernet.errors import NonFiniteError, TrainingError
from supernet.execution.selection import selection_of
from supernet.relaxations import Relaxation
from supernet.space import SearchSpace

__all__: list[str] = []

Term: TypeAlias = Callable[[Relaxation, Mapping[str, Any], float], torch.Tensor]


def new_relaxation(relaxation: Callable[..., Relaxation], space: SearchSpace, **options: Any) -> Relaxation:
    """Return the distribution over the architectures of a space that a user's class, or function, makes.

    Raises:
        TrainingError: It cannot be called so, or returns something else.
    """
    if isinstance(relaxation, nn.Module):
        name = type(relaxation).__name__
        raise TrainingError(
            f"relaxation is a Relaxation class, of which the trainer makes its own, not a {name} that is made already; "
            f"give relaxation={name}, or functools.partial({name}, ...) with its settings"
        )
    takes = "(space, *, seed, dtype, device) -> Relaxation"
    if not callable(relaxation):
        raise TrainingError(f"relaxation is a Relaxation class, or a function {takes}, not {relaxation!r}")
    try:
        inspect.signature(relaxation).bind(space, **options)
    except TypeError as error:
        raise TrainingError(
            f"relaxation is called as {takes}, but {name_of_function(relaxation)}: {error}; let a class of its own be "
            "made by __init__(self, space, *, its_own=..., **options), which calls super().__init__(space, **options)"
        ) from None
    except ValueError:  # such as one that is not written in Python
        pass
    made = relaxation(space, **options)
    if not isinstance(made, Relaxation):
        raise TrainingError(f"relaxation is a function {takes}, but {name_of_function(relaxation)} returned {made!r}")
    return made


def check_plan(relaxation: Relaxation, plan: Any) -> None:
    """Raise unless a relaxation's first plan is one.

    Raises:
        TrainingError: It is no mapping.
        NonFiniteError: A weight in it is NaN or infinite.
    """
    name = type(relaxation).__name__
    if not isinstance(plan, Mapping):
        what = "None" if plan is None else f"a {type(plan).__name__}"
        raise TrainingError(
            f"{name}.plan(progress) returned {what}; let it return a dict, label -> weights of all options, a decision "
            "or a Selection"
        )
    for label, entry in plan.items():
        weights = selection_of(entry).weights
        if isinstance(weights, torch.Tensor) and not torch.isfinite(weights).all():
            raise NonFiniteError(
                f"{name}.plan(0.0) gives choice {label!r} weights that are not finite (NaN or infinite)"
            )


def checked_terms(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return terms that can be called.

    Raises:
        TrainingError: They are no list of functions.
    """
    found = tuple(terms) if isinstance(terms, Iterable) else None
    if found is None or not all(map(callable, found)):
        one = name_of_function(terms) if callable(terms) else "f"
        raise TrainingError(
            f"terms is a list of functions (relaxation, plan, progress) -> tensor, not {terms!r}; give [{one}]"
        )
    return found


def check_term(term: Term, relaxation: Relaxation, plan: Mapping[str, Any]) -> None:
    """Raise unless a term is, where the search begins, one finite number that has a gradient.

    Where nothing in the plan has one, as in a path that is drawn for a reward, a term needs none, and 0 moves nothing.

    Raises:
        TrainingError: It is not one number, or has no gradient.
        NonFiniteError: It is NaN or infinite.
    """
    name = name_of_function(term)
    value: Any = term(relaxation, plan, 0.0)
    if not isinstance(value, torch.Tensor) and not hasattr(value, "__float__"):
        raise TrainingError(f"a term is one number, a tensor, but {name} returned {value!r}")
    number = torch.as_tensor(value)
    if number.shape not in ((), (1,)):
        raise TrainingError(f"a term is one number, but {name} returned {list(number.shape)} of them; add them up")
    if not torch.isfinite(number).all():
        raise NonFiniteError(
            f"the term {name} is not finite (NaN or infinite) where the search begins: {number.item()}"
        )
    weights = [selection_of(entry).weights for entry in plan.values()]
    if any(w is not None and w.requires_grad for w in weights) and not number.requires_grad and number.any():
        raise TrainingError(
            f"the term {name} has no gradient, so it would move nothing: it returned {value!r}; compute it from plan "
            "or relaxation by torch, without .item(), .detach() or torch.no_grad()"
        )


def what_follows_progress(relaxation: Relaxation, terms: Iterable[Term]) -> list[str]:
    """Return the names of the relaxation and the terms whose value or gradient is another as a search goes on.

    A copy is asked, so that nothing is drawn.
    """

    def seen(function: Callable[[Relaxation, float], Any], progress: float) -> Any:
        trial = copy.deepcopy(relaxation)
        trial.begin_step()
        value = function(trial, progress)
        if not isinstance(value, torch.Tensor):
            return value
        parameters = [p for p in trial.parameters() if p.requires_grad]
        found = torch.autograd.grad(value.sum(), parameters, allow_unused=True) if value.requires_grad else ()
        return value.tolist(), [None if gradient is None else gradient.tolist() for gradient in found]

    def follows(function: Callable[[Relaxation, float], Any]) -> bool:
        return any(seen(function, progress) != seen(function, 0.0) for progress in (0.5, 0.99))  # no step has 1

    def of_plan(name: str, trial: Relaxation, progress: float) -> Any:
        selections = {label: selection_of(entry) for label, entry in getattr(trial, name)(progress).items()}
        weights = [s.weights for s in selections.values() if s.weights is not None]
        # Of each weight another multiple, since the sum of a choice's weights may be 1 and without a gradient.
        multiples = [w * torch.arange(1, len(w) + 1).to(w) for w in weights]
        return torch.cat(multiples) if multiples else {label: s.active for label, s in selections.items()}

    def of_term(term: Term, trial: Relaxation, progress: float) -> Any:
        return torch.as_tensor(term(trial, trial.plan(progress), progress))

    plans = [partial(of_plan, name) for name in ("plan", "weights_plan")]
    result = [type(relaxation).__name__] if any(map(follows, plans)) else []
    return result + [name_of_function(term) for term in terms if follows(partial(of_term, term))]


def name_of_function(function: Any) -> str:
    """Return what a function, a class, a method or a partial of one is called."""
    function = function.func if isinstance(function, partial) else function
    return getattr(function, "__qualname__", None) or type(function).__name__
