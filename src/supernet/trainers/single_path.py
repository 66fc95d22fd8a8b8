"""Single Path One-Shot Neural Architecture Search with Uniform Sampling (arXiv 1904.00420)."""

from __future__ import annotations

from typing import Any

import torch

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.data.loaders import derive_seed
from supernet.search import EvolutionSearcher, search
from supernet.search.searcher import Constraint, draw_allowed
from supernet.space import Architecture
from supernet.trainers.sampled import SampledTrainer

__all__ = ["SinglePathTrainer"]


class SinglePathTrainer(SampledTrainer):
    """Single path one-shot, SPOS (arXiv 1904.00420).

    Each step trains one path, every choice drawn uniformly or by its prior. The trained supernet then ranks
    architectures, each with BatchNorm's statistics of its own, and evolution searches for the best.

    Departs from the paper: architectures are ranked by the validation loss, unless `score` says otherwise.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        num_evaluations: Number of architectures that `export` evaluates at most. Default: 1,000.
        population: Number of architectures in a generation. Default: 50.
        num_parents: Number of the best so far from which the next generation comes. Default: 10.
        mutation_probability: Probability that a decision of a mutated architecture is drawn anew. Default: 0.1.
        constraint: Says which architectures may be exported, such as those under a budget of FLOPs. Default: all
            that keep the limits.
        sandwich, cost_bins, sampling_cost: The same as `SampledTrainer` takes by these names.
        recalibration_samples, score: The same as `SubnetSearchTrainer` takes by these names.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: The same as `SupernetTrainer`; or no architecture
            that keeps the constraint is found.
    """

    free_options = frozenset({"num_evaluations", "population", "num_parents", "mutation_probability", "constraint"})

    def __init__(
        self,
        *task: Any,
        num_evaluations: int = 1_000,
        population: int = 50,
        num_parents: int = 10,
        mutation_probability: float = 0.1,
        constraint: Constraint | None = None,
        **config: Any,
    ) -> None:
        check_counts(num_evaluations=num_evaluations, population=population, num_parents=num_parents)
        check_numbers(0, 1, mutation_probability=mutation_probability)
        check_functions(constraint=constraint)
        super().__init__(*task, **config)
        self.num_evaluations, self.population, self.num_parents = num_evaluations, population, num_parents
        self.mutation_probability = mutation_probability
        self.constraint = self.within_limits(constraint)
        if self.constraint is not None:  # one that nothing keeps is better known before the training than after it
            draw_allowed(self.space, self.constraint, torch.Generator().manual_seed(self.seed))
        self.build_path_supernet()

    def export(self) -> Architecture:
        """Return the best architecture that evolution finds; it searches once, at the end of `fit`.

        All processes must call it together. Where it has not searched since the weights last moved, it does.
        """
        return self.search_once(self._evolve, self.num_evaluations)

    def _evolve(self) -> Architecture:
        searcher = EvolutionSearcher(
            self.space,
            population=self.population,
            num_parents=self.num_parents,
            mutation_probability=self.mutation_probability,
            generator=torch.Generator().manual_seed(derive_seed(self.seed, 3)),
            constraint=self.constraint,
        )
        return search(searcher, self.scores, self.num_evaluations)[0].architecture
