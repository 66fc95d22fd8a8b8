"""Checks of arguments that are numbers: one rule for the whole library."""

from __future__ import annotations

import math
from typing import Any

from supernet.errors import TrainingError

__all__: list[str] = []


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise `TrainingError` unless each argument is a whole number from `least` on; NumPy's are, True is not."""
    for name, count in counts.items():
        if not hasattr(count, "__index__") or isinstance(count, bool) or count < least:
            raise TrainingError(f"{name} is a whole number from {least} on, not {count!r}")


def check_numbers(least: float = 0.0, **numbers: Any) -> None:
    """Raise `TrainingError` unless each argument is a finite number from `least` on."""
    for name, number in numbers.items():
        is_number = hasattr(number, "__float__") and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or number < least:
            raise TrainingError(f"{name} is a number from {least:g} on, not {number!r}")
