"""The picture of a front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from supernet.errors import TrainingError
from supernet.reports.plots import _check_matplotlib, _figure, _save

__all__ = ["plot_front"]

Points = Sequence[tuple[float, float]]


def plot_front(points: Points, front: Points, path: Path, *, x: str, y: str, marks: Sequence[float] = ()) -> list[Path]:
    """Plot points, and those of them that no other beats as a line.

    Args:
        points: All of them, (x, y).
        front: Those on the front.
        path: Path of the picture. Without a suffix it is written as PNG and as SVG.
        x: What the first number of a point is.
        y: What the second is.
        marks: Where limits of x are.

    Returns:
        The paths of the pictures.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        TrainingError: Matplotlib writes no pictures of that suffix.

    >>> written = plot_front([(1, 0.5), (2, 0.4)], [(1, 0.5)], Path("front"), x="parameters", y="accuracy")
    >>> [path.name for path in written]
    ['front.png', 'front.svg']
    """
    _check_matplotlib()
    figure = _figure(6.4, 4.2)
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in known:
        raise TrainingError(
            f"{path} ends in {path.suffix!r}, of which there are no pictures; known are {', '.join(known)}"
        )
    axes = figure.subplots()
    for mark in dict.fromkeys(marks):
        axes.axvline(mark, color="#999999", linestyle=":", linewidth=1, zorder=1)
    axes.plot(*zip(*points, strict=True), ".", color="#9db4cc", markersize=5, label="measured", zorder=2)
    if front:
        ordered = sorted(front)
        axes.plot(*zip(*ordered, strict=True), ".-", color="#c44e52", linewidth=1.4, label="front", zorder=3)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    if path.suffix:
        figure.savefig(path, dpi=150)
        return [path]
    return _save(figure, path)
