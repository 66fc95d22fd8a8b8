"""Regularized evolution (arXiv 1802.01548): tournaments among the youngest, of which the oldest dies."""

from __future__ import annotations

import json

import torch

from supernet.checks import check_counts
from supernet.search.searcher import Constraint, Scored, SpaceSearcher, is_nan, ranked
from supernet.space import Architecture, SearchSpace

__all__ = ["RegularizedEvolutionSearcher"]


class RegularizedEvolutionSearcher(SpaceSearcher):
    """Regularized evolution, also called aging evolution (arXiv 1802.01548).

    The population are the last `population` architectures that were told, the first of them drawn by the priors. Some
    of it are drawn, and the best of these has a child, by a change of one decision. So the oldest always dies, however
    good it is.

    Of several objectives the best is one that no other of the tournament beats.

    Departs from the paper: nothing is asked for twice, so a child that is known is changed once more; and population
    and tournament are smaller by default, for searches of fewer than the paper's 20,000 evaluations.

    Args:
        space: The space that is searched.
        population: Number of architectures that live. Default: 20.
        tournament: Number of architectures that are drawn, of which the best has a child. Default: 8.
        batch_size: Number of children that are asked for at once, as many as are measured at once. Default: 1.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        constraint: Says whether an architecture may be asked for, such as `Limits`. Default: all may.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}") for i in range(8))))
    >>> searcher = RegularizedEvolutionSearcher(space)
    >>> search(searcher, lambda architectures: [sum(map(int, a.values())) for a in architectures], budget=100)[0].score
    8.0
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 20,
        tournament: int = 8,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_counts(population=population, tournament=tournament, batch_size=batch_size)
        super().__init__(space, generator=generator, constraint=constraint)
        self.population, self.tournament, self.batch_size = population, tournament, batch_size

    def ask(self, count: int) -> list[Architecture]:
        """Return the first population, as far as it is not known; then the children of a batch.

        Raises:
            SpaceError: No architecture that keeps the constraint was found.
        """
        check_counts(count=count)
        living = list(self._scored.values())[-self.population :]
        parents = [one for one in living if not is_nan(one.score)]
        lacking = self.population - len(self._known)
        first = lacking > 0 or not parents
        asked: dict[str, Architecture] = {}
        for _ in range(min(count, max(lacking, self.batch_size) if first else self.batch_size)):
            for architecture in self._draw_new() if first else self._child(parents) or self._draw_new():
                asked |= {json.dumps(architecture): architecture}
                self._known |= asked
        return self._asked(asked.values())

    def _child(self, parents: list[Scored]) -> list[Architecture]:
        """Return a new architecture, some changes away from the best of a tournament; none where these give none."""
        drawn = torch.randint(len(parents), (self.tournament,), generator=self.generator).tolist()
        return self._neighbour(ranked(parents[i] for i in drawn)[0].architecture)
