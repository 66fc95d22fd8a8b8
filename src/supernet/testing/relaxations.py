"""What a relaxation promises."""

# K options of a choice

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from supernet.errors import SupernetError, TrainingError
from supernet.execution import Supernet
from supernet.execution.selection import Selection, read_entry
from supernet.files.encoding import check_can_be_saved
from supernet.nn import InputChoice, LayerChoice
from supernet.relaxations import Relaxation
from supernet.space import Architecture, SearchSpace
from supernet.testing.comparing import differences, flat, in_words, promised, random_numbers

__all__ = ["check_relaxation"]

PROGRESS = (0.0, 0.5, 1.0)
MOST = 10_000  # architectures that are enumerated
DRAWS = 150

Make = Callable[[SearchSpace], Relaxation]


def check_relaxation(make: Make, space: SearchSpace | None = None) -> None:
    """Check that a relaxation holds what trainers, records and costs rely on, whatever its parameters are.

    - It has parameters to be trained.
    - A plan has, for each choice, what a supernet can run, at any progress from 0 to 1, and it runs it; the weights'
      plan has no gradient. A gradient of the plan, or else of `log_prob`, reaches the parameters; it is finite, and
      where plans draw nothing it is that of finite differences.
    - Two of one seed give the same plans. They draw from the relaxation's own generator, not from global numbers. All
      is checked on the CPU; see `Relaxation.drawing` on other devices.
    - `probabilities` are of each choice one number from 0 to 1 for each option, which sum to 1 where one is chosen; or
      there are none, where a decision depends on others. These, `log_prob` and `derive` draw nothing.
    - They are those of `log_prob`: of a choice of one option, or of any number of inputs, the probability of an option
      is that of all architectures with it, among those that reach the choice.
    - `log_probs` of each choice, one for each decision, add up to `log_prob`; or there are none.
    - The probabilities of all architectures sum to 1, and so the gradient of that sum is 0.
    - `derive` is of a single choice the decision of the largest `log_prob`.
    - Where a plan is an architecture, it is drawn as `log_prob` says: each decision as often as it is probable.
    - Its `state_dict`, which a checkpoint can hold, loaded into another lets that give the same plans from then on.

    Args:
        make: Returns a new relaxation of a space, each time with the same seed.
        space: The space of its architectures, of 10,000 at most. Default: one of 36, with a choice inside a candidate.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> from supernet.relaxations import Softmax
    >>> check_relaxation(Softmax)
    """
    space = SearchSpace(_Model()) if space is None else space
    relaxation = make(space)
    promised("a trainer makes a Relaxation", isinstance(relaxation, Relaxation), f"it is {relaxation!r:.80}")
    parameters = [p for p in relaxation.parameters() if p.requires_grad]
    promised("a relaxation has parameters to be trained", parameters, "there are none that require a gradient")
    for seed in range(3):
        _check_plans(_made(make, space, seed), space)
        _check_probabilities(_made(make, space, seed), space)
        _check_sum(_made(make, space, seed), space)
        _check_same_plans(make, space, seed)
        _check_state(make, space, seed)
        _check_draws(_made(make, space, seed), space, PROGRESS[seed])
        for one in single_spaces():
            _check_derive(make, one, seed)
    _check_runs(make)


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


def single_spaces() -> list[SearchSpace]:
    """Return spaces of a single choice each."""
    layer = LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh()], label="layer")
    inputs = [InputChoice(4, n, label="inputs") for n in (1, 2, None)]
    return [SearchSpace(nn.Sequential(choice)) for choice in (layer, *inputs)]


def _made(make: Make, space: SearchSpace, seed: int) -> Relaxation:
    """Return a relaxation in float64 with some parameters that are far from where a search begins."""
    relaxation = make(space).double()
    _move(relaxation, seed)
    return relaxation


def _move(relaxation: Relaxation, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in relaxation.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))


def _tensors(plan: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for label, entry in plan.items():
        weights = entry.weights if isinstance(entry, Selection) else entry
        if isinstance(weights, torch.Tensor):
            yield label, weights


def _check_plans(relaxation: Relaxation, space: SearchSpace) -> None:
    before = random_numbers()
    for progress in PROGRESS:
        relaxation.begin_step()
        generator = flat(relaxation.generator)
        for name in ("plan", "weights_plan", "warmup_plan"):
            plan = getattr(relaxation, name)(progress)
            _check_plan(plan, space, f"{name}({progress})")
            trained = [label for label, weights in _tensors(plan) if weights.requires_grad and name != "plan"]
            promised(f"{name}({progress}) has no gradient", not trained, f"that of {in_words(trained)} has one")
        _check_gradient(relaxation, progress, draws=flat(relaxation.generator) != generator)
    drawn = differences(before, random_numbers())
    promised("plans are drawn from the relaxation's own generator", not drawn, f"{in_words(drawn)} has moved")


def _check_plan(plan: Mapping[str, Any], space: SearchSpace, name: str) -> None:
    promise = f"{name} has for each choice what a supernet can run"
    for label, entry in plan.items():
        promised(promise, label in space, f"there is no choice {label!r}")
        try:
            read_entry(space[label], entry)
        except SupernetError as error:
            raise AssertionError(f"{promise}; but {error}") from error
    bad = [label for label, weights in _tensors(plan) if not torch.isfinite(weights).all()]
    promised(promise, not bad, f"the weights of {in_words(bad)} are not finite")
    missing: list[str] = []

    def decide(label: str) -> Any:
        if label not in plan:
            missing.append(label)
        first = next(iter(space[label]))
        entry = plan.get(label, first)
        return first if isinstance(entry, torch.Tensor | Selection) else space[label].normalized(entry)

    space.follow(decide)
    promised(promise, not missing, f"{in_words(missing)} is left out")


def _check_gradient(relaxation: Relaxation, progress: float, *, draws: bool) -> None:
    def total() -> torch.Tensor:
        weights = [weights for _, weights in _tensors(relaxation.plan(progress))]
        sums = [(w * torch.arange(1, len(w) + 1).to(w) ** (i + 1)).sum() for i, w in enumerate(weights)]
        return torch.stack(sums).sum() if sums else torch.zeros(())

    parameters = [p for p in relaxation.parameters() if p.requires_grad]
    value = total()
    if not value.requires_grad:  # an architecture, which is trained by log_prob
        return
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    finite = all(torch.isfinite(g).all() for g in found)
    promised(f"the gradient through plan({progress}) is finite", finite, lambda: f"it is {found}")
    if draws:
        return
    with torch.no_grad():
        for p, gradient in zip(parameters, found, strict=True):
            flat_p, flat_g, eps = p.view(-1), gradient.reshape(-1), 1e-6
            for k in range(len(flat_p)):
                here = flat_p[k].item()
                sides = []
                for side in (here + eps, here - eps):
                    flat_p[k] = side
                    sides.append(float(total().detach()))
                flat_p[k] = here
                slope = (sides[0] - sides[1]) / (2 * eps)
                promised(
                    f"the gradient through plan({progress}) is that of finite differences",
                    math.isclose(slope, float(flat_g[k]), rel_tol=1e-5, abs_tol=1e-6),
                    f"one is {float(flat_g[k])}, the other {slope}",
                )


def _check_probabilities(relaxation: Relaxation, space: SearchSpace) -> None:
    before = {**random_numbers(), **flat(relaxation.state_dict(), "state")}
    probabilities = {label: p_K.detach() for label, p_K in relaxation.probabilities().items()}
    derived = relaxation.derive()
    relaxation.log_prob(derived)
    drawn = differences(before, {**random_numbers(), **flat(relaxation.state_dict(), "state")})
    promised("probabilities(), log_prob() and derive() draw nothing", not drawn, f"{in_words(drawn)} has moved")
    promise = "probabilities() are of each choice one for each option"
    covered = not probabilities or probabilities.keys() == space.keys()
    promised(promise, covered, lambda: f"they are of {', '.join(probabilities)} alone")
    for label, p_K in probabilities.items():
        shape = len(space[label].options)
        promised(promise, tuple(p_K.shape) == (shape,), f"those of {label!r} are of shape {tuple(p_K.shape)}")
        fine = bool(((p_K >= -1e-9) & (p_K <= 1 + 1e-9)).all())
        promised("probabilities() are numbers from 0 to 1", fine, f"one of {p_K.tolist()} is not")
        if not space[label].is_set:
            one = math.isclose(float(p_K.sum()), 1.0, abs_tol=1e-6)
            promised("probabilities() of one option sum to 1", one, f"those of {label!r} sum to {float(p_K.sum())}")
    try:
        canonical = space.canonical(derived)
    except SupernetError as error:
        raise AssertionError(f"derive() returns an architecture of the space; but {error}") from error
    promised("derive() returns what the space writes", derived == canonical, f"{derived} is written {canonical}")


def _check_sum(relaxation: Relaxation, space: SearchSpace) -> None:
    if space.size > MOST:
        raise ValueError(f"the space has {space.size:,} architectures, and at most {MOST:,} are enumerated")
    architectures = list(space.enumerate())
    p_A = torch.stack([relaxation.log_prob(architecture) for architecture in architectures]).exp()
    total = p_A.sum()
    value = float(total.detach())
    near = math.isclose(value, 1.0, abs_tol=1e-6)
    promised("the probabilities of all architectures sum to 1", near, f"they sum to {value}")
    promised("log_prob() is differentiable in the parameters", total.requires_grad, "it has no gradient")
    parameters = [p for p in relaxation.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    promise = "the gradient of the sum of all architectures' probabilities is 0"
    promised(promise, largest < 1e-6, f"one of its numbers is {largest}")
    _check_marginals(relaxation, space, list(zip(architectures, p_A.tolist(), strict=True)))
    log_probs, positions = relaxation.log_probs(), {label: list(domain) for label, domain in space.items()}
    for architecture, p in zip(architectures, p_A.tolist(), strict=True) if log_probs else ():
        of_each = [log_probs[label][positions[label].index(d)] for label, d in architecture.items()]
        added = math.exp(float(torch.stack(of_each).sum().detach()))
        same = math.isclose(added, p, rel_tol=1e-4, abs_tol=1e-9)
        seen = f"of {architecture} one says {added}, the other {p}"
        promised("log_probs() of each decision add up to log_prob()", same, seen)


def _check_marginals(relaxation: Relaxation, space: SearchSpace, of_all: list[tuple[Architecture, float]]) -> None:
    """Check probabilities against the enumeration; of k inputs, and within bounds, they are shares of another kind."""
    for label, p_K in relaxation.probabilities().items():
        domain, reached = space[label], 0.0
        if domain.is_set and domain.bounds != (0, len(domain.options)):
            continue
        expected = [0.0] * len(domain.options)
        for architecture, p in of_all:
            if label in architecture:
                reached += p
                for k in domain.positions(architecture[label]):
                    expected[k] += p
        if reached > 1e-6:
            found, expected = p_K.detach().tolist(), [p / reached for p in expected]
            same = all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(found, expected, strict=True))
            seen = f"those of {label!r} are {found}, and by log_prob() {expected}"
            promised("probabilities() are those of log_prob(), over all architectures", same, seen)


def _check_draws(relaxation: Relaxation, space: SearchSpace, progress: float) -> None:
    """Check how often each decision is drawn, within 5 standard deviations of as often as it is by `log_prob`."""
    expected, drawn = defaultdict[tuple[str, str], float](float), Counter[tuple[str, str]]()
    for architecture in space.enumerate():
        p = float(relaxation.log_prob(architecture).detach().exp())
        for label, decision in architecture.items():
            expected[label, str(decision)] += p
    for _ in range(DRAWS):
        relaxation.begin_step()
        plan = relaxation.plan(progress)
        if any(isinstance(entry, torch.Tensor | Selection) for entry in plan.values()):
            return  # it says by weights how much of each runs
        drawn.update((label, str(decision)) for label, decision in space.follow(plan.__getitem__).items())
    for (label, decision), p in expected.items():
        share, variance = drawn[label, decision] / DRAWS, max(p * (1 - p), 0.0) / DRAWS
        near = abs(share - p) <= 5 * math.sqrt(variance) + 1 / DRAWS
        seen = f"{label!r} is {decision} in {share:.0%} of {DRAWS} plans, and by log_prob() in {p:.0%}"
        promised("an architecture is drawn as often as log_prob() says", near, seen)


def _check_runs(make: Make) -> None:
    """Let a supernet run some plans, and see that a gradient reaches the parameters."""
    model = _Model()
    relaxation, supernet = make(SearchSpace(model)), Supernet(model)
    _move(relaxation, 0)
    x, parameters = torch.linspace(-1, 1, 6).reshape(2, 3), list(relaxation.parameters())
    for progress in PROGRESS:
        relaxation.begin_step()
        plans = [relaxation.weights_plan(progress), relaxation.warmup_plan(progress), relaxation.plan(progress)]
        for plan in plans:
            output = supernet(x, plan)
            finite = bool(torch.isfinite(output).all())
            promised("a supernet runs the plan", finite, f"it gives {output.tolist()}")
        is_policy = not any(weights.requires_grad for _, weights in _tensors(plans[-1]))
        loss = relaxation.log_prob(plans[-1]) if is_policy else output.square().sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        what = "log_prob" if is_policy else "plan"
        reached = any(gradient is not None and bool(gradient.any()) for gradient in found)
        promised(f"the gradient of {what} reaches the parameters", reached, f"none does at progress {progress}")


def _check_derive(make: Make, space: SearchSpace, seed: int) -> None:
    try:
        relaxation = _made(make, space, seed)
    except SupernetError:  # it knows no choices of this kind
        return
    values = {str(one): float(relaxation.log_prob(one).detach()) for one in space.enumerate()}
    derived, best = str(relaxation.derive()), max(values, key=values.__getitem__)
    promised(
        "derive() is of a single choice the decision of the largest log_prob",
        values.get(derived, -math.inf) >= values[best] - 1e-9,
        lambda: f"it is {derived}, and {best} is more probable",
    )


def _some_plans(relaxation: Relaxation) -> list[dict[str, str]]:
    plans = []
    for progress in (*PROGRESS, *PROGRESS):
        relaxation.begin_step()
        plans += [flat(relaxation.plan(progress), "plan"), flat(relaxation.weights_plan(progress), "weights_plan")]
    return plans


def _check_same_plans(make: Make, space: SearchSpace, seed: int) -> None:
    first, second = _some_plans(_made(make, space, seed)), _some_plans(_made(make, space, seed))
    for a, b in zip(first, second, strict=True):
        differing = differences(a, b)
        promised("two relaxations of one seed give the same plans", not differing, f"{in_words(differing)} differ")


def _check_state(make: Make, space: SearchSpace, seed: int) -> None:
    relaxation, other = _made(make, space, seed), _made(make, space, seed + 100)
    _some_plans(relaxation)
    state = copy.deepcopy(relaxation.state_dict())
    try:
        check_can_be_saved(state, "state")
    except TrainingError as error:
        raise AssertionError(f"a checkpoint can hold what state_dict() returns; but {error}") from error
    other.load_state_dict(state)
    promise = "a relaxation that has loaded the state of another gives the same plans from then on"
    for a, b in zip(_without_begin(relaxation), _without_begin(other), strict=True):
        differing = differences(a, b)
        promised(promise, not differing, f"{in_words(differing)} differ")
    promised(promise, relaxation.derive() == other.derive(), "derive() differs")


def _without_begin(relaxation: Relaxation) -> list[dict[str, str]]:
    """Return plans, the first of a step that has begun before."""
    return [flat(relaxation.plan(0.5), "plan"), *_some_plans(relaxation)]
