"""The evolutionary search of single path one-shot NAS (arXiv 1904.00420, algorithm 1)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from supernet.errors import NonFiniteError, SpaceError
from supernet.space import Architecture, Decision, SearchSpace

__all__ = ["Scored", "evolve"]

Constraint = Callable[[Architecture], bool]

MAX_DRAWS = 10_000  # for one architecture that keeps a constraint
TRIES = 20  # draws for each new architecture before a generation stays smaller


class Scored(NamedTuple):
    """An architecture and its score."""

    architecture: Architecture
    score: float


def evolve(
    space: SearchSpace,
    scores: Callable[[Sequence[Architecture]], Sequence[float]],
    *,
    budget: int,
    generator: torch.Generator,
    population: int = 50,
    num_parents: int = 10,
    mutation_probability: float = 0.1,
    constraint: Constraint | None = None,
) -> list[Scored]:
    """Return the architectures that were scored, best first; of equal ones the one found first.

    An architecture whose score is NaN is not among them, and has no children.

    The first generation is drawn by the priors. Each further one is bred from the best `num_parents` so far:
    half by mutation of one, half by crossover of two. What has been scored already, or does not keep the
    constraint, is drawn again; places that stay empty are filled at random.

    Args:
        space: where to search.
        scores: the scores of the architectures of one generation; higher is better.
        budget: how many architectures are scored at most.
        generator: where the random numbers come from.
        population: architectures a generation.
        num_parents: how many may have children.
        mutation_probability: of each decision to be drawn anew.
        constraint: which architectures may be scored. Default: all.

    Raises:
        SpaceError: no architecture that keeps the constraint was found.
        NonFiniteError: every score is NaN.
    """
    found: dict[str, Scored] = {}
    generation: dict[str, Architecture] = {}

    def fill(count: int, draw: Callable[[], Architecture]) -> None:
        """Let the generation grow to `count` by new architectures that may be scored."""
        wanted = min(count, budget - len(found))
        for _ in range(TRIES * max(wanted, 1)):
            if len(generation) >= wanted:
                return
            architecture = draw()
            name = json.dumps(architecture)
            if name not in found and name not in generation and (constraint is None or constraint(architecture)):
                generation[name] = architecture

    parents: list[Architecture] = []

    def parent() -> Architecture:
        return parents[int(torch.randint(len(parents), (), generator=generator))]

    while len(found) < budget:
        generation.clear()
        if not all(math.isnan(scored.score) for scored in found.values()):
            parents[:] = [scored.architecture for scored in ranked(found.values())[:num_parents]]
        if parents:
            fill(population // 2, lambda: _mutated(space, parent(), mutation_probability, generator))
            fill(population, lambda: _crossed(space, parent(), parent(), generator))
        fill(population, lambda: space.sample(generator))
        if not generation and found:
            break
        if not generation:  # the constraint is a narrow one
            one = draw_allowed(space, constraint, generator)
            generation[json.dumps(one)] = one
        architectures = list(generation.values())
        for (name, architecture), score in zip(generation.items(), scores(architectures), strict=True):
            found[name] = Scored(architecture, float(score))
    return ranked(found.values())


def draw_allowed(space: SearchSpace, constraint: Constraint | None, generator: torch.Generator) -> Architecture:
    """Return an architecture drawn by the priors from those that keep the constraint.

    Raises:
        SpaceError: none of many that were drawn keeps it.
    """
    for _ in range(MAX_DRAWS):
        architecture = space.sample(generator)
        if constraint is None or constraint(architecture):
            return architecture
    raise SpaceError(
        f"none of {MAX_DRAWS:,} architectures drawn keeps the constraint; loosen it, or give the choices priors that "
        "favour what it allows"
    )


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Return those whose score is a number, best first; of equal ones the first given.

    Raises:
        NonFiniteError: every score is NaN.
    """
    scored = list(scored)
    numbers = [s for s in scored if not math.isnan(s.score)]
    if not numbers:
        raise NonFiniteError(
            f"the score of each of {len(scored)} architectures is NaN, so none of them is the best; look at what the "
            f"network of one gives on the validation part, say of {scored[0].architecture}"
        )
    return sorted(numbers, key=lambda s: -s.score)  # stable: the first stays first


def _mutated(space: SearchSpace, parent: Architecture, probability: float, generator: torch.Generator) -> Architecture:
    """Return the parent with each decision drawn anew by its prior, with that probability."""
    drawn, uniforms = space.draw(generator), _uniforms(space, generator)
    anew = {label for label in space if label not in parent or uniforms[label] < probability}
    return space.follow(lambda label: drawn[label] if label in anew else parent[label])


def _crossed(space: SearchSpace, one: Architecture, two: Architecture, generator: torch.Generator) -> Architecture:
    """Return a child that has each decision from either parent; what neither decides is drawn."""
    drawn, uniforms = space.draw(generator), _uniforms(space, generator)
    either = {label: (one, two) if u < 0.5 else (two, one) for label, u in uniforms.items()}

    def decide(label: str) -> Decision:
        first, second = either[label]
        return first.get(label, second.get(label, drawn[label]))

    return space.follow(decide)


def _uniforms(space: SearchSpace, generator: torch.Generator) -> dict[str, float]:
    return dict(zip(space, torch.rand(len(space), generator=generator).tolist(), strict=True))
