"""What a few numbers say of each other: intervals of means, the difference of two, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, variance
from typing import NamedTuple

import numpy as np

__all__ = ["Difference", "half_interval", "welch"]

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)


class Difference(NamedTuple):
    """The difference of two means, its interval, and how likely one as large is where the true means are equal."""

    mean: float
    low: float
    high: float
    p_value: float


def half_interval(values: Sequence[float], confidence: float = 0.95) -> float:
    """Return half the length of Student's interval of a mean; NaN for a single value.

    Args:
        values: Independent numbers.
        confidence: Share of such intervals that hold the true mean, where the numbers are normally distributed.

    >>> round(half_interval([90.0, 92.0, 94.0]), 3)
    4.968
    """
    count = len(values)
    if count < 2:
        return math.nan
    return _t_quantile(confidence, count - 1) * math.sqrt(variance(values) / count)


def welch(one: Sequence[float], other: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the difference of the means of two independent samples, by Welch's t-test: variances may differ.

    Args:
        one, other: Independent numbers; with fewer than two of either, interval and p-value are NaN.
        confidence: Share of such intervals that hold the true difference.

    >>> difference = welch([93.0, 94.0, 95.0], [88.0, 90.0, 92.0])
    >>> round(difference.mean, 1), round(difference.low, 2), round(difference.high, 2), round(difference.p_value, 3)
    (4.0, -0.16, 8.16, 0.055)
    """
    difference = mean(one) - mean(other)
    if min(len(one), len(other)) < 2:
        return Difference(difference, math.nan, math.nan, math.nan)
    parts = variance(one) / len(one), variance(other) / len(other)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(difference, difference, difference, float(difference == 0))
    # Welch and Satterthwaite: the degrees of freedom of a sum of two estimated variances.
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    half = _t_quantile(confidence, degrees) * error
    p_value = 1 - _t_inside(abs(difference) / error, degrees)
    return Difference(difference, difference - half, difference + half, p_value)


def _t_inside(t: float, degrees: float) -> float:
    """Return the probability that Student's t is in (-t, t).

    With x = sqrt(degrees) tan(angle) the density becomes a power of the cosine, smooth on a finite range.
    """
    angle = math.atan(t / math.sqrt(degrees))
    nodes = angle / 2 * (NODES + 1)
    integral = angle / 2 * float(NODE_WEIGHTS @ np.cos(nodes) ** (degrees - 1))
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.pi) / 2
    return min(2 * math.exp(log_scale) * integral, 1.0)


def _t_quantile(inside: float, degrees: float) -> float:
    """Return the t within which Student's t is with that probability."""
    low, high = 0.0, 1.0
    while _t_inside(high, degrees) < inside:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < inside else (low, middle)
    return (low + high) / 2
