"""Plots of a search, as PNG and SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from supernet.errors import MissingExtraError
from supernet.reports.outline import Step, outline
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_architecture", "plot_probabilities"]

COLUMNS = 4  # of the small plots of probabilities
FONT_SIZE, PADDING = 8, 3  # of a box of an architecture, in points
LABEL_WIDTH = 30  # letters a line in a box
GAPS = 0.5, 0.25  # between columns and between rows of boxes, in inches
LARGEST = 60_000  # pixels of a side: matplotlib draws fewer than 65,536


def plot_probabilities(space: SearchSpace, history: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Plot the probability of each candidate over the epochs, one small plot a choice.

    Args:
        space: The space that was searched.
        history: One dict an epoch, with "epoch" and "probabilities": label -> numbers.
        path: Path of the pictures, without a suffix.

    Returns:
        The PNG's and the SVG's path; none where the history has no probabilities.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    labels = [label for label in space if any(label in record["probabilities"] for record in history)]
    if not labels:
        return []
    _check_matplotlib()
    names = {label: space[label].names() for label in labels}
    colours = _colours(sorted({name for label in labels for name in names[label]}))
    columns = min(COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = _figure(2.9 * columns + 1.6, 2.0 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epochs = [record["epoch"] for record in history]
    lines: dict[str, Any] = {}
    for axes, label in zip(grid.flat, labels, strict=False):
        for k, name in enumerate(names[label]):
            values = [record["probabilities"][label][k] for record in history]
            marker = "." if len(epochs) == 1 else ""
            lines[name], *_ = axes.plot(epochs, values, color=colours[name], linewidth=1.6, marker=marker)
        axes.set_title(label, fontsize=8, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    for axes in list(grid.flat)[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("probability", fontsize=9)
    unnamed = ["-"] * len(lines)  # a name that begins with _ would be left out
    legend = figure.legend(list(lines.values()), unnamed, loc="outside right center", fontsize=8, frameon=False)
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set(text=name, parse_math=False)
    return _save(figure, path)


def plot_architecture(model: nn.Module, architecture: Architecture, path: Path) -> list[Path]:
    """Draw an architecture as a graph: its choices as decided, and how data flows between them.

    What does not reach the output, for no `InputChoice` takes it, is left out; other inputs that an `InputChoice`
    was offered and did not choose are dotted.

    Args:
        model: The model that the architecture decides, as written or with its choices replaced.
        architecture: Label -> decision.
        path: Path of the pictures, without a suffix.

    Returns:
        The PNG's and the SVG's path.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    _check_matplotlib()
    steps = _reaching_the_output(outline(model, SearchSpace(model).canonical(architecture)))
    colours = _colours(sorted({step.kind for step in steps} - {"end", "inputs"}))
    colours = {kind: tuple(0.5 + c / 2 for c in colour) for kind, colour in colours.items()}  # light, below text
    colours |= {"end": "#dddddd", "inputs": "#f4f4f4"}
    figure = _figure(1, 1, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    boxes = []
    for step in steps:
        text = "\n".join(map(_wrapped, step.text.split("\n")))
        shape = {"boxstyle": f"square,pad={PADDING / FONT_SIZE}", "facecolor": colours[step.kind]}
        box = axes.text(0, 0, text, fontsize=FONT_SIZE, bbox={**shape, "edgecolor": "#555555"}, zorder=2)
        box.set(ha="center", va="center", parse_math=False)
        box.set_multialignment("left" if text.count("\n") > 1 else "center")
        boxes.append(box)
    extents = [box.get_window_extent() for box in boxes]
    padding = 2 * PADDING / 72  # in inches
    sizes = [(extent.width / figure.dpi + padding, extent.height / figure.dpi + padding) for extent in extents]
    places = _places(steps, sizes)
    left, right, bottom, top = _bounds(places, sizes)
    axes.set(xlim=(left - 0.2, right + 0.2), ylim=(bottom - 0.2, top + 0.2))
    figure.set_size_inches(right - left + 0.4, top - bottom + 0.4)  # so a unit of the axes is an inch
    for index, step in enumerate(steps):
        boxes[index].set_position(places[index])
        for sources, style in (
            (step.dropped, {"ls": ":", "color": "#b5b5b5"}),
            (step.sources, {"color": "#444444"}),
        ):
            for source in sources:
                begin = places[source][0] + sizes[source][0] / 2, places[source][1]
                end = places[index][0] - sizes[index][0] / 2, places[index][1]
                arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "connectionstyle": "arc3,rad=0.08", **style}
                axes.annotate("", end, begin, arrowprops=arrow, zorder=1)
    return _save(figure, path)


def _wrapped(line: str) -> str:
    """Return a line as lines of a label's width, broken behind dots and the like, each indented as it is."""
    indent = line[: len(line) - len(line.lstrip())]
    lines = [""]
    for part in re.findall(rf"[^._/ -]{{1,{LABEL_WIDTH}}}[._/ -]*|[._/ -]+", line.strip()):
        if lines[-1] and len(lines[-1] + part.rstrip()) > LABEL_WIDTH:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(indent + part.rstrip() for part in lines)


def _reaching_the_output(steps: Sequence[Step]) -> list[Step]:
    """Return the steps without those whose result is not used; all, where no output is known."""
    wanted = [index for index, step in enumerate(steps) if step.text == "output"]
    used = set(wanted)
    while wanted:
        sources = steps[wanted.pop()].sources - used
        used |= sources
        wanted.extend(sources)
    if not used:
        return list(steps)
    new = {old: index for index, old in enumerate(sorted(used))}
    return [
        Step(
            steps[old].text,
            steps[old].kind,
            {new[source] for source in steps[old].sources},
            {new[source] for source in steps[old].dropped & used},
        )
        for old in new
    ]


def _places(steps: Sequence[Step], sizes: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where the middle of each step stands: as far right as its longest way from an input, near its sources."""
    columns: list[int] = []
    for step in steps:
        columns.append(1 + max((columns[source] for source in step.sources | step.dropped), default=-1))
    places = [(0.0, 0.0)] * len(steps)
    left = 0.0
    for column in range(max(columns) + 1):
        members = [i for i, c in enumerate(columns) if c == column]
        wished = {i: _mean([places[s][1] for s in steps[i].sources | steps[i].dropped]) for i in members}
        members.sort(key=lambda i: (-wished[i], i))
        width = max(sizes[i][0] for i in members)
        top = (sum(sizes[i][1] for i in members) + GAPS[1] * (len(members) - 1)) / 2
        for i in members:
            places[i] = left + width / 2, top - sizes[i][1] / 2
            top -= sizes[i][1] + GAPS[1]
        left += width + GAPS[0]
    return places


def _bounds(
    places: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]]
) -> tuple[float, float, float, float]:
    """Return the least and the largest x, and the least and the largest y, of all boxes."""
    xs = [x + sign * w / 2 for (x, _), (w, _) in zip(places, sizes, strict=True) for sign in (-1, 1)]
    ys = [y + sign * h / 2 for (_, y), (_, h) in zip(places, sizes, strict=True) for sign in (-1, 1)]
    return min(xs), max(xs), min(ys), max(ys)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _colours(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = [*colormaps["tab10"].colors, *colormaps["tab20b"].colors, *colormaps["tab20c"].colors]  # type: ignore[attr-defined]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _check_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'supernet[plots]'") from error


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _save(figure: Figure, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    for file in paths:
        figure.savefig(file, dpi=min(150, LARGEST / max(figure.get_size_inches())))
    return paths
