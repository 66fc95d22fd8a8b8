"""How trainers keep limits of costs: what they are given, constraints beside them, and a term that leads to them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from supernet.checks import check_numbers
from supernet.cost import Cost, Limits
from supernet.cost.limits import Limit
from supernet.errors import CostError, TrainingError
from supernet.execution.state import preserve_random_numbers
from supernet.relaxations import Relaxation
from supernet.search.searcher import Constraint, draw_allowed
from supernet.space import Architecture, SearchSpace
from supernet.training.first_call import called_with_first

if TYPE_CHECKING:
    from supernet.trainers.supernet_trainer import SupernetTrainer

__all__: list[str] = []

logger = logging.getLogger("supernet")

GivenLimits: TypeAlias = Mapping[str, Limit] | Limits
Penalty: TypeAlias = Literal["hinge", "log_ratio"]

MAX_DECISIONS = 10_000  # of one choice, each of which has a probability


def limits_of(
    trainer: SupernetTrainer, given: GivenLimits | None, costs: Mapping[str, Cost] | None, example: Any
) -> Limits | None:
    """Return the limits that a trainer is given, of its model; None where it is given neither these nor costs.

    Raises:
        CostError: They cannot be, or nothing that was found keeps them.
        TrainingError: They are no limits.
    """
    if given is None and not costs:
        return None
    if isinstance(given, Limits):
        if costs or example is not None:
            raise TrainingError("limits that are made already have costs and example; give these to Limits(...)")
        if given.space != trainer.space:
            raise CostError("the limits are of another space than the model's; make them of this model")
        return given
    if given is not None and not isinstance(given, Mapping):
        raise TrainingError(
            f"limits is a dict, name of a cost -> the most that a network may cost, such as {{'parameters': 60_000}}, "
            f"not {given!r:.80}"
        )
    with preserve_random_numbers(trainer.device):
        if example is None:
            example = called_with_first(trainer._forward, trainer.model, trainer._trial_X, trainer._trial_y)
        return Limits(trainer.model, given or {}, example=example, costs=costs)


# --- what is allowed ------------------------------------------------------------------------------------------


class BothKept:
    """Limits and a constraint of a user's: called with an architecture, it says whether that keeps both.

    Args:
        limits: The limits, which draw.
        constraint: The constraint beside them.
    """

    def __init__(self, limits: Limits, constraint: Constraint) -> None:
        self.limits, self.constraint = limits, constraint

    def __call__(self, architecture: Architecture) -> bool:
        return self.limits(architecture) and bool(self.constraint(architecture))

    def sample(self, generator: torch.Generator) -> Architecture:
        """Return an architecture that keeps both.

        Raises:
            SpaceError: None of many that keep the limits keeps the constraint.
        """
        return draw_allowed(self.limits, self.constraint, generator)


# --- a term that leads to what is allowed ---------------------------------------------------------------------


class LimitsTerm:
    """Further loss of a distribution whose mean cost is beyond limits: its share of each limit, with rising strength.

    "hinge" is linear in the mean cost, as ProxylessNAS's (arXiv 1812.00332), from where it is beyond the limit on:
    `E / limit - 1`. "log_ratio" is the logarithm of what that is of the limit, as FBNet (arXiv 1812.03443) and TAS
    (arXiv 1905.09717) have it: `log(E / limit)`. Below a least cost both are the same of `limit / E`. Within the limits
    they are 0.

    A distribution may keep a limit in its mean while its most probable architecture does not. So where the cost of this
    is further beyond, it stands in the place of the mean, whose gradient is taken.

    Departs from the papers: inside the limits there is no gradient; the strength rises from 0 to its largest.

    Args:
        limits: The limits. Of costs without a mean there is no term.
        penalty: "hinge" or "log_ratio".
        strength: What being beyond a limit by all of it costs at the end of the search.
    """

    def __init__(self, limits: Limits, penalty: Penalty, strength: float) -> None:
        check_penalty(penalty, strength)
        self.penalty, self.strength = penalty, float(strength)
        self.space, self.bounds, self.costs = limits.space, dict(limits.bounds), limits.costs
        _check_sizes(self.space)
        # Tried once, so that a cost without a mean is told of now, not in the first step.
        uniform = {label: torch.full((domain.size,), 1 / domain.size) for label, domain in self.space.items()}
        for name, (_, high) in limits.bounds.items():
            if penalty == "log_ratio" and not high > 0:
                raise TrainingError(
                    f"limit_penalty='log_ratio' is for limits above 0, and not for {high:g} of {name!r}"
                )
            try:
                self.costs[name].expected(uniform)
            except CostError as error:
                logger.warning(
                    "nothing leads the search to the limit of %r, which only what is exported keeps: %s", name, error
                )
                del self.bounds[name]

    def __call__(self, relaxation: Relaxation, plan: Mapping[str, Any], progress: float) -> Tensor:
        """Return the term (), differentiable in the relaxation's parameters."""
        log_probs = relaxation.log_probs()
        probabilities = {label: log_p_D.exp() for label, log_p_D in log_probs.items()}
        likeliest = {label: _nearly_one_hot(p_D.detach()) for label, p_D in probabilities.items()}
        terms = [next(iter(probabilities.values())).new_zeros(())]
        for name, (low, high) in self.bounds.items():
            mean, of_likeliest = (self.costs[name].expected(each) for each in (probabilities, likeliest))
            if high < math.inf:
                # The value of whichever is further beyond, with the gradient of the mean, since the other has none.
                cost = mean + (torch.maximum(mean, of_likeliest) - mean).detach()
                terms.append(self._beyond(cost, high))
            if low > (0 if self.penalty == "log_ratio" else -math.inf):
                cost = mean + (torch.minimum(mean, of_likeliest) - mean).detach()
                terms.append(self._below(cost, low))
        return self.strength * progress * torch.stack(terms).sum()

    def _beyond(self, cost: Tensor, limit: float) -> Tensor:
        if self.penalty == "hinge":
            return torch.relu((cost - limit) / (abs(limit) or 1.0))
        return torch.log((cost / limit).clamp_min(1.0))  # 0 within the limit, where log would reward being below it

    def _below(self, cost: Tensor, limit: float) -> Tensor:
        if self.penalty == "hinge":
            return torch.relu((limit - cost) / (abs(limit) or 1.0))
        return -torch.log((cost / limit).clamp(1e-6, 1.0))  # a cost of 0 has no logarithm


def check_penalty(penalty: Any, strength: Any) -> None:
    """Raise `TrainingError` unless these are a penalty and its strength."""
    if penalty not in ("hinge", "log_ratio"):
        raise TrainingError(f"limit_penalty is 'hinge' or 'log_ratio', not {penalty!r}")
    check_numbers(limit_strength=strength)


def check_relaxation(relaxation: Relaxation, space: SearchSpace) -> None:
    """Raise `TrainingError` unless a relaxation says of each decision how probable it is, as limits need it."""
    name = type(relaxation).__name__
    _check_sizes(space)
    with torch.no_grad():
        log_probs = relaxation.log_probs()
        if log_probs.keys() != space.keys():
            raise TrainingError(
                f"limits need the probability of each decision, and {name}.log_probs() does not say that of each "
                "choice; use a relaxation whose choices are decided each on its own, or a trainer that samples"
            )
        # On three random paths: sums that differ at all differ nearly everywhere.
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            path = space.sample(generator)
            of_each = [log_probs[label][list(space[label]).index(d)] for label, d in path.items()]
            added, whole = torch.stack(of_each).sum(), relaxation.log_prob(path)
            if not torch.allclose(added, whole, rtol=1e-3, atol=1e-3):
                raise TrainingError(
                    f"limits need the probability of each decision, and what {name}.log_probs() says of these does not "
                    "add up to its log_prob(architecture); let it define log_probs() too"
                )


def _check_sizes(space: SearchSpace) -> None:
    for label, domain in space.items():
        if domain.size > MAX_DECISIONS:
            raise TrainingError(
                f"limits need the probability of each decision, and choice {label!r} has {domain.size:,} of them; at "
                f"most {MAX_DECISIONS:,} are borne: give it fewer options, or use a trainer that samples"
            )


def _nearly_one_hot(p_D: Tensor) -> Tensor:
    """Return probabilities of which nearly all is the largest one's; not all, for constraints may rule that out."""
    return 1e-6 * p_D + (1 - 1e-6) * nn.functional.one_hot(p_D.argmax(), len(p_D)).to(p_D)


def described(limits: Limits, costs: Mapping[str, float]) -> str:
    """Return costs beside their limits, for people."""
    shown = []
    for name, cost in costs.items():
        unit = f" {limits.costs[name].unit}" if limits.costs[name].unit else ""
        limit = f" ({limits.described(name)})" if name in limits.bounds else ""
        shown.append(f"{name} {cost:,.6g}{unit}{limit}")
    return ", ".join(shown)


def as_record(limits: Limits, costs: Mapping[str, float]) -> dict[str, Any]:
    """Return costs beside their limits, as JSON has them."""
    record = {}
    for name, cost in costs.items():
        low, high = limits.bounds.get(name, (-math.inf, math.inf))
        least, most = (bound if math.isfinite(bound) else None for bound in (low, high))
        record[name] = {"cost": cost, "unit": limits.costs[name].unit, "least": least, "most": most}
    return record
