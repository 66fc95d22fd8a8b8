"""The evolutionary search of single path one-shot NAS (arXiv 1904.00420, algorithm 1)."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from supernet.checks import check_counts, check_numbers
from supernet.search.searcher import Constraint, Score, Scored, SpaceSearcher, is_nan, ranked, search
from supernet.space import Architecture, Decision, SearchSpace

__all__ = ["EvolutionSearcher", "evolve"]

TRIES = 20  # draws for each new architecture before a generation stays smaller


class EvolutionSearcher(SpaceSearcher):
    """The evolution of single path one-shot NAS (arXiv 1904.00420): asks for one generation at a time.

    The first generation is drawn by the priors. Each further one is bred from the best `num_parents` so far:
    half by mutation of one, half by crossover of two. What is known already, or does not keep the constraint, is
    drawn again; places that stay empty are filled at random.

    Args:
        space: The space that is searched.
        population: Number of architectures in a generation. Default: 50.
        num_parents: Number of the best so far that may have children. Default: 10.
        mutation_probability: Probability that a decision of a mutated architecture is drawn anew. Default: 0.1.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        constraint: Says whether an architecture may be asked for. It is called once for each that is drawn, so it
            must always say the same. Default: all may.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}") for i in range(8))))
    >>> searcher = EvolutionSearcher(space, population=8, num_parents=4)
    >>> search(searcher, lambda architectures: [sum(map(int, a.values())) for a in architectures], budget=100)[0].score
    8.0
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 50,
        num_parents: int = 10,
        mutation_probability: float = 0.1,
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_counts(population=population, num_parents=num_parents)
        check_numbers(0, 1, mutation_probability=mutation_probability)
        super().__init__(space, generator=generator, constraint=constraint)
        self.population, self.num_parents = population, num_parents
        self.mutation_probability = mutation_probability

    def ask(self, count: int) -> list[Architecture]:
        """Return the next generation, of at most `count` architectures.

        Raises:
            SpaceError: No architecture that keeps the constraint was found.
        """
        check_counts(count=count)
        space, generator = self.space, self.generator
        numbers = [one for one in self._scored.values() if not is_nan(one.score)]
        parents = [one.architecture for one in ranked(numbers)[: self.num_parents]]

        def parent() -> Architecture:
            return parents[int(torch.randint(len(parents), (), generator=generator))]

        generation: dict[str, Architecture] = {}
        if parents:
            mutated = min(count, self.population // 2)
            self._fill(generation, mutated, lambda: _mutated(space, parent(), self.mutation_probability, generator))
            self._fill(generation, min(count, self.population), lambda: _crossed(space, parent(), parent(), generator))
        self._fill(generation, min(count, self.population), self._drawn)
        return self._asked(generation.values() or self._draw_new())

    def _fill(self, generation: dict[str, Architecture], wanted: int, draw: Callable[[], Architecture]) -> None:
        """Let the generation grow to `wanted` by new architectures, as far as draws give them."""
        for _ in range(TRIES * max(wanted, 1)):
            if len(generation) >= wanted:
                return
            architecture = draw()
            name = json.dumps(architecture)
            if name not in generation and self._is_new(architecture, name):
                generation[name] = architecture


def evolve(
    space: SearchSpace,
    scores: Score,
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

    Args:
        space: The space that is searched.
        scores: Returns the score of each architecture of a generation; higher is better.
        budget: Number of architectures that are scored at most.
        generator, population, num_parents, mutation_probability, constraint: The same as `EvolutionSearcher` takes.

    Raises:
        SpaceError: No architecture that keeps the constraint was found.
        NonFiniteError: Every score is NaN.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}") for i in range(8))))
    >>> def number_of_tanh(architectures):
    ...     return [sum(map(int, a.values())) for a in architectures]
    >>> evolve(space, number_of_tanh, budget=200, generator=torch.Generator().manual_seed(0))[0].score
    8.0
    """
    searcher = EvolutionSearcher(
        space,
        population=population,
        num_parents=num_parents,
        mutation_probability=mutation_probability,
        generator=generator,
        constraint=constraint,
    )
    return search(searcher, scores, budget)


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
