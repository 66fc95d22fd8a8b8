"""Which of several scores of several objectives are best: what none beats, and how far these stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

__all__: list[str] = []

# N scores, M objectives
Array: TypeAlias = np.ndarray[Any, Any]


def nondominated(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the positions of the scores that no other beats: is nowhere worse, and somewhere better.

    Args:
        scores: A number for each objective, of each; higher is better, and none is NaN.
    """
    scores_NM = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
    return [
        i for i, one_M in enumerate(scores_NM) if not ((scores_NM >= one_M).all(1) & (scores_NM > one_M).any(1)).any()
    ]


def order_of_several(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the positions of scores, best first: by which beat which, then the less crowded ones.

    Args:
        scores: A number for each objective, of each; higher is better, and none is NaN.
    """
    order: list[int] = []
    left = list(range(len(scores)))
    while left:
        best = [left[i] for i in nondominated([scores[i] for i in left])]
        distances = crowding_distances([scores[i] for i in best])
        order += [i for _, i in sorted(zip(distances, best, strict=True), key=lambda pair: -pair[0])]
        taken = set(best)
        left = [i for i in left if i not in taken]
    return order


def crowding_distances(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return of each score how far apart its neighbours are, summed over objectives; infinite at the ends."""
    scores_NM = np.asarray(scores, dtype=np.float64)
    distances_N = np.zeros(len(scores_NM))
    for column_N in scores_NM.T:
        order = np.argsort(column_N, kind="stable")
        ordered = column_N[order]
        with np.errstate(invalid="ignore"):  # of infinite scores
            width = ordered[-1] - ordered[0]
            gaps = np.full(len(order), np.inf if width else 0.0)
            gaps[1:-1] = (ordered[2:] - ordered[:-2]) / width if width else 0.0
        distances_N[order] += np.nan_to_num(gaps, nan=0.0, posinf=np.inf)
    return [float(distance) for distance in distances_N]
