"""Comparing what was found with what chance and random search find: under the same limits, in equal time."""

from supernet.compare.comparison import Comparison, Contestant, Row, Searched, compare_under_limits
from supernet.compare.statistics import Difference, half_interval, welch
from supernet.ranking import kendall_tau

__all__ = [
    "Comparison",
    "Contestant",
    "Difference",
    "Row",
    "Searched",
    "compare_under_limits",
    "half_interval",
    "kendall_tau",
    "welch",
]
