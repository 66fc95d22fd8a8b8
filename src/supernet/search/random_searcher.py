"""Random search, the baseline of all others (arXiv 1902.07638)."""

from __future__ import annotations

import json

from supernet.checks import check_counts
from supernet.search.searcher import SpaceSearcher, draw_allowed
from supernet.space import Architecture

__all__ = ["RandomSearcher"]


class RandomSearcher(SpaceSearcher):
    """Asks for architectures that are drawn by the priors, each once.

    Args:
        space: The space that is searched.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        constraint: Says whether an architecture may be asked for. It is called once for each that is drawn, so it
            must always say the same. Default: all may.

    >>> space = SearchSpace(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="act")))
    >>> search(RandomSearcher(space), lambda architectures: [float(a["act"]) for a in architectures], budget=2)[0]
    Scored(architecture={'act': '1'}, score=1.0)
    """

    def ask(self, count: int) -> list[Architecture]:
        """Return what is new among `count` draws; where nothing is, one that many more draws find.

        Raises:
            SpaceError: No architecture that keeps the constraint was found.
        """
        check_counts(count=count)
        drawn = [draw_allowed(self._source, self._allows, self.generator) for _ in range(count)]
        new = [architecture for architecture in drawn if json.dumps(architecture) not in self._known]
        return self._asked(new or self._draw_new())

    def _allows(self, architecture: Architecture) -> bool:
        return self.constraint is None or self._keeps_constraint(architecture, json.dumps(architecture))
