"""What a relaxation promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from supernet.execution import Supernet
from supernet.execution.selection import selection_of
from supernet.nn import InputChoice, LayerChoice
from supernet.relaxations import Relaxation
from supernet.space import SearchSpace
from supernet.testing.comparing import differences, flat, in_words, promised, random_numbers

__all__ = ["check_relaxation"]

Make = Callable[..., Relaxation]


def check_relaxation(make: Make) -> None:
    """Check that a relaxation holds what trainers rely on, over a small space with choices of each kind.

    - A supernet runs what `plan` and `weights_plan` return, from the beginning of a search to its end.
    - What `weights_plan` returns has no gradient; that of `plan`, or of `log_prob`, reaches the parameters.
    - The probabilities of all architectures sum to 1, and `derive` returns an architecture of the space.
    - `probabilities`, `log_prob` and `derive` draw nothing, and change nothing.
    - What is drawn depends on the seed alone, and moves no global random numbers.
    - `state_dict()` brings all back, so that the same is drawn from there on.

    Args:
        make: A `Relaxation` class, or what a trainer calls as one: `(space, seed=..., dtype=..., device=...)`.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> from supernet.relaxations import Gates
    >>> check_relaxation(Gates)
    """
    torch.manual_seed(0)
    model = _Model()
    space = SearchSpace(model)
    relaxation = _made(make, space)
    before = random_numbers()
    _check_readings(relaxation)
    plans = _plans(relaxation)
    moved = differences(before, random_numbers())
    promised("a relaxation draws from a generator of its own", not moved, f"{in_words(moved)} has moved")
    torch.manual_seed(1)
    changed = differences(plans, _plans(_made(make, space)))
    promised("the same seed gives the same plans", not changed, f"{in_words(changed)} differs")
    _check_state(make, space, relaxation)
    _check_runs(relaxation, Supernet(model))


class _Model(nn.Module):
    """Choices of each kind, one inside a candidate."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3), LayerChoice([nn.ReLU(), nn.Tanh()], label="inner"))
        self.op = LayerChoice({"deep": inner, "flat": nn.Linear(3, 3), "skip": nn.Identity()}, label="net.0.op")
        self.two = InputChoice(3, 2, label="two")
        self.some = InputChoice(2, (0, 1), absent="zeros", label="some")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.op(x)
        y = self.two([x, y, x + y])
        return y + self.some([x, y])


def _made(make: Make, space: SearchSpace) -> Relaxation:
    relaxation = make(space, seed=3, dtype=torch.float32, device=torch.device("cpu"))
    promised("a trainer makes a Relaxation", isinstance(relaxation, Relaxation), f"it is {relaxation!r:.80}")
    return relaxation


def _plans(relaxation: Relaxation) -> dict[str, str]:
    """Return what is drawn in some steps, and what is there after them."""
    plans = []
    for progress in (0.0, 0.5, 1.0):
        relaxation.begin_step()
        plans += [relaxation.plan(progress), relaxation.weights_plan(progress), relaxation.warmup_plan(progress)]
    return flat([plans, relaxation])


def _check_readings(relaxation: Relaxation) -> None:
    """Check what is asked for at any time."""
    space, before = relaxation.space, flat(relaxation)
    for label, p_K in relaxation.probabilities().items():
        count = len(space[label].options)
        promised("each option has a probability", len(p_K) == count, f"{label!r} has {len(p_K)} for {count} options")
        promised("a probability is from 0 to 1", bool(((p_K >= 0) & (p_K <= 1)).all()), f"{label!r} has {p_K.tolist()}")
    total = sum(math.exp(relaxation.log_prob(architecture).detach()) for architecture in space.enumerate())
    promised("the probabilities of all architectures sum to 1", abs(total - 1) < 1e-4, f"they sum to {total:.6f}")
    derived = relaxation.derive()
    promised("derive returns an architecture", derived == space.canonical(derived), f"it returns {derived}")
    changed = differences(before, flat(relaxation))
    promised("probabilities, log_prob and derive change nothing", not changed, f"{in_words(changed)} has changed")


def _check_state(make: Make, space: SearchSpace, relaxation: Relaxation) -> None:
    state = copy.deepcopy(relaxation.state_dict())
    expected = _plans(relaxation)
    other = make(space, seed=4, dtype=torch.float32, device=torch.device("cpu"))
    other.load_state_dict(state)
    changed = differences(expected, _plans(other))
    promised("a state brings back what is drawn from there on", not changed, f"{in_words(changed)} differs")


def _check_runs(relaxation: Relaxation, supernet: Supernet) -> None:
    x, parameters = torch.ones(2, 3), list(relaxation.parameters())
    for progress in (0.0, 0.5, 1.0):
        relaxation.begin_step()
        for plan in (relaxation.weights_plan(progress), relaxation.warmup_plan(progress)):
            trained = [label for label, entry in plan.items() if _has_gradient(entry)]
            promised("a step of the weights has no gradient of the plan", not trained, f"{in_words(trained)} has one")
            _check_finite(supernet(x, plan))
        plan = relaxation.plan(progress)
        output = supernet(x, plan)
        _check_finite(output)
        is_policy = not any(map(_has_gradient, plan.values()))
        loss = relaxation.log_prob(plan) if is_policy else output.square().sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        what = "log_prob" if is_policy else "plan"
        reached = any(gradient is not None and bool(gradient.any()) for gradient in found)
        promised(f"the gradient of {what} reaches the parameters", reached, f"none does at progress {progress}")


def _has_gradient(entry: Any) -> bool:
    weights = selection_of(entry).weights
    return weights is not None and weights.requires_grad


def _check_finite(output: torch.Tensor) -> None:
    promised("a supernet runs the plan", bool(torch.isfinite(output).all()), f"it gives {output.tolist()}")
