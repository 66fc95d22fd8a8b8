"""Exhaustive search: every architecture, in the space's order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from supernet.checks import check_counts
from supernet.errors import SpaceError
from supernet.search.searcher import Constraint, SpaceSearcher
from supernet.space import Architecture, SearchSpace

__all__ = ["ExhaustiveSearcher"]


class ExhaustiveSearcher(SpaceSearcher):
    """Asks for every architecture that keeps the constraint once, in the order in which the space enumerates them.

    With a smaller budget than there are, only those of a corner of the space are scored: then search otherwise.

    Args:
        space: The space that is searched.
        generator: Is not used; searchers take it.
        constraint: Says whether an architecture may be asked for, such as `Limits`. Default: all may.

    >>> space = SearchSpace(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="act")))
    >>> search(ExhaustiveSearcher(space), lambda architectures: [float(a["act"]) for a in architectures], budget=9)[0]
    Scored(architecture={'act': '1'}, score=1.0)
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__(space, generator=generator, constraint=constraint)
        self._ahead = space.enumerate()

    def ask(self, count: int) -> list[Architecture]:
        """Return the next architectures, `count` unless there are fewer.

        Raises:
            SpaceError: No architecture keeps the constraint.
        """
        check_counts(count=count)
        new = (architecture for architecture in self._ahead if self._is_new(architecture, json.dumps(architecture)))
        asked = self._asked(islice(new, count))
        if not self._known:
            raise SpaceError(f"none of {self.space.size:,} architectures keeps the constraint; loosen it")
        return asked

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self._ahead = self.space.enumerate()
