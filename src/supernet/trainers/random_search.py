"""Random Search and Reproducibility for Neural Architecture Search (arXiv 1902.07638): with shared weights."""

from __future__ import annotations

from typing import Any

import torch

from supernet.checks import check_counts, check_functions
from supernet.data.loaders import derive_seed
from supernet.search import RandomSearcher
from supernet.search.searcher import Constraint, draw_allowed
from supernet.space import Architecture
from supernet.trainers.sampled import SampledTrainer

__all__ = ["RandomTrainer"]


class RandomTrainer(SampledTrainer):
    """Random search with shared weights (arXiv 1902.07638): the baseline that every other method must beat.

    Each step trains one path, every choice drawn uniformly or by its prior. Of random architectures, each
    evaluated on one validation batch, the best are evaluated on the whole validation part; the best of those wins.

    Departs from the paper: BatchNorm's statistics are computed anew for each architecture before it is evaluated.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        num_samples: Number of architectures that `export` draws. Default: 1,000.
        num_finalists: Number of them that are evaluated on the whole part. Default: 10.
        constraint: Says which architectures are trained and may be exported, such as those under a budget of FLOPs.
            Default: all.
        sandwich, cost_bins, sampling_cost: The same as `SampledTrainer` takes by these names.
        recalibration_samples, score: The same as `SubnetSearchTrainer` takes by these names.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: The same as `SupernetTrainer`; or no architecture
            that keeps the constraint is found.
    """

    free_options = frozenset({"num_samples", "num_finalists"})  # not the constraint: what is trained keeps it, too

    def __init__(
        self,
        *task: Any,
        num_samples: int = 1_000,
        num_finalists: int = 10,
        constraint: Constraint | None = None,
        **config: Any,
    ) -> None:
        check_counts(num_samples=num_samples, num_finalists=num_finalists)
        check_functions(constraint=constraint)
        super().__init__(*task, **config)
        self.num_samples, self.num_finalists = num_samples, num_finalists
        self.constraint = self.training_constraint = self.within_limits(constraint)
        draw_allowed(self.space, self.constraint, torch.Generator().manual_seed(self.seed))
        self.build_path_supernet()

    def export(self) -> Architecture:
        """Return the best architecture found; it is searched for once, at the end of `fit`.

        All processes must call it together. Where it has not searched since the weights last moved, it does.
        """
        return self.search_once(self._evaluate_drawn, self.num_samples + self.num_finalists)

    def _evaluate_drawn(self) -> Architecture:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 3))
        drawn = RandomSearcher(self.space, generator=generator, constraint=self.constraint).ask(self.num_samples)
        return self.best(self.best(drawn, self.num_finalists, num_batches=1), 1)[0]
