"""Single Path One-Shot Neural Architecture Search with Uniform Sampling (arXiv 1904.00420)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.data.loaders import Data, derive_seed
from supernet.search import evolve
from supernet.search.searcher import draw_allowed
from supernet.space import Architecture
from supernet.trainers.sampled import SampledOptions, SampledTrainer
from supernet.training.metrics import Metrics

__all__ = ["SinglePathTrainer"]


class SinglePathTrainer(SampledTrainer):
    """Single path one-shot, SPOS (arXiv 1904.00420).

    Each step trains one path, every choice drawn uniformly or by its prior. The trained supernet then ranks
    architectures, each with BatchNorm's statistics of its own, and evolution searches for the best.

    Departs from the paper: architectures are ranked by the validation loss, unless `score` says otherwise.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        num_evaluations: how many architectures `export` evaluates at most. Default: 1,000.
        population: architectures a generation. Default: 50.
        num_parents: the best so far, from which the next generation comes. Default: 10.
        mutation_probability: of each decision of a mutated architecture to be drawn anew. Default: 0.1.
        constraint: which architectures may be exported, such as those under a budget of FLOPs. Default: all.
        options: the keyword arguments of `SampledTrainer` and `SupernetTrainer`.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: as `SupernetTrainer`; no architecture that keeps the
            constraint is found.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        num_evaluations: int = 1_000,
        population: int = 50,
        num_parents: int = 10,
        mutation_probability: float = 0.1,
        constraint: Callable[[Architecture], bool] | None = None,
        **options: Unpack[SampledOptions],
    ) -> None:
        check_counts(num_evaluations=num_evaluations, population=population, num_parents=num_parents)
        check_numbers(0, 1, mutation_probability=mutation_probability)
        check_functions(constraint=constraint)
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **options)
        self.note_options(
            free=True,
            num_evaluations=num_evaluations,
            population=population,
            num_parents=num_parents,
            mutation_probability=mutation_probability,
            constraint=constraint,
        )
        self.num_evaluations, self.population, self.num_parents = num_evaluations, population, num_parents
        self.mutation_probability, self.constraint = mutation_probability, constraint
        if constraint is not None:  # one that nothing keeps is better known before the training than after it
            draw_allowed(self.space, constraint, torch.Generator().manual_seed(self.seed))
        self.build_path_supernet()

    def export(self) -> Architecture:
        """Return the best architecture that evolution finds; it searches once, at the end of `fit`.

        All processes must call it together. Where it has not searched since the weights last moved, it does.
        """
        return self.search_once(self._evolve, self.num_evaluations)

    def _evolve(self) -> Architecture:
        def scores(generation: Sequence[Architecture]) -> list[float]:
            return self.scored(self.evaluated(generation))

        ranked = evolve(
            self.space,
            scores,
            budget=self.num_evaluations,
            generator=torch.Generator().manual_seed(derive_seed(self.seed, 3)),
            population=self.population,
            num_parents=self.num_parents,
            mutation_probability=self.mutation_probability,
            constraint=self.constraint,
        )
        return ranked[0].architecture
