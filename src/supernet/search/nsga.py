"""NSGA-II, by Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supernet.checks import check_counts
from supernet.search.optuna_study import OptunaSearcher
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["NsgaSearcher"]


class NsgaSearcher(OptunaSearcher):
    """NSGA-II (Deb and others, doi 10.1109/4235.996017), as Optuna has it; needs `supernet[optuna]`.

    Each generation is bred, by crossover and mutation, from the best of those before: what no other beats, and of
    these the less crowded.

    Args:
        space: The space that is searched.
        population: Number of architectures in a generation; the first is drawn by the priors. Default: 20.
        batch_size, storage, study_name, generator, constraint: The same as `OptunaSearcher` takes.

    Raises:
        MissingExtraError: Optuna is not installed.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}") for i in range(3))))
    >>> searcher = NsgaSearcher(space, population=4)
    >>> search(searcher, lambda architectures: [sum(map(int, a.values())) for a in architectures], budget=8)[0].score
    3.0
    """

    def __init__(self, space: SearchSpace, *, population: int = 20, **options: Any) -> None:
        check_counts(2, population=population)
        super().__init__(space, num_first=population, **options)
        self.population = population

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return a new sampler."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=self.population, seed=seed)

    def reached(self, decide: Any) -> Architecture:
        """Return the architecture; what it does not reach is decided too, since Optuna breeds what all have."""
        decisions = {label: decide(label) for label in self.space}
        return self.space.follow(decisions.__getitem__)
