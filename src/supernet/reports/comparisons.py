"""The picture of a comparison: what was trained, and what a search took it for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supernet.reports.plots import _check_matplotlib, _figure, _save

__all__ = ["plot_comparison"]

STYLES = (("#c44e52", "o", 6.0), ("#8c9bab", ".", 5.0), ("#4c72b0", "s", 5.0))  # of as many methods

Points = Sequence[tuple[float, float, float | None]]


def plot_comparison(
    points: Mapping[str, Points], path: Path, *, x: str, y: str, marks: Sequence[float] = ()
) -> list[Path]:
    """Plot the networks of three methods; where they were estimated too, a cross of the same colour says how.

    Args:
        points: Name of a method -> its networks, (x, y, estimate of y or None). The first stands out.
        path: Path of the pictures, without a suffix.
        x: What the first number of a point is.
        y: What the second is.
        marks: Where limits of x are.

    Returns:
        The PNG's and the SVG's path.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    _check_matplotlib()
    figure = _figure(6.8, 4.4)
    axes = figure.subplots()
    for mark in dict.fromkeys(marks):
        axes.axvline(mark, color="#999999", linestyle=":", linewidth=1, zorder=1)
    styles: list[tuple[Any, str, dict[str, Any]]]
    named = list(zip(points.items(), STYLES, strict=False))
    for (method, of_method), (colour, marker, size) in reversed(named):  # so that the first lies on top
        trained = [(a, b) for a, b, _ in of_method]
        estimated = [(a, b) for a, _, b in of_method if b is not None]
        styles = [
            (estimated, f"{method}, as estimated", {"marker": "x", "markersize": 4, "alpha": 0.6, "zorder": 2}),
            (trained, method, {"marker": marker, "markersize": size, "zorder": 3}),
        ]
        for pairs, label, style in styles:
            if pairs:
                axes.plot(*zip(*pairs, strict=True), linestyle="none", color=colour, label=label, **style)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.25)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=3)
    return _save(figure, path)
