"""How far two rows of numbers rank the same things alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from supernet.errors import TrainingError

__all__ = ["kendall_tau"]


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Kendall's rank correlation (tau-b, which allows for ties); NaN where one of them is constant.

    Args:
        one, other: Numbers of the same things.

    >>> kendall_tau([1, 2, 3, 4], [1, 3, 2, 4])
    0.6666666666666666
    """
    if len(one) != len(other):
        raise TrainingError(f"a rank correlation is of as many numbers as others, not of {len(one)} and {len(other)}")
    signs = [np.sign(np.subtract.outer(np.asarray(x, float), np.asarray(x, float))) for x in (one, other)]
    pairs = [float((sign * sign).sum()) for sign in signs]
    return float((signs[0] * signs[1]).sum()) / math.sqrt(pairs[0] * pairs[1]) if all(pairs) else math.nan
