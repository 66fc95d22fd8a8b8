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


def check_numbers(least: float = 0.0, most: float = math.inf, **numbers: Any) -> None:
    """Raise `TrainingError` unless each argument is a finite number from `least` on, to `most`."""
    for name, number in numbers.items():
        is_number = hasattr(number, "__float__") and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or not least <= number <= most:
            least_to_most = f"from {least:g} {'on' if most == math.inf else f'to {most:g}'}"
            of_a_range = "finite number" if least == -math.inf else f"number {least_to_most}"
            raise TrainingError(f"{name} is a {of_a_range}, not {number!r}")


def check_functions(**functions: Any) -> None:
    """Raise `TrainingError` unless each argument can be called, or is None."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TrainingError(f"{name} is a function or None, not {function!r}")
