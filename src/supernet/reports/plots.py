"""Plots of a search, as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from supernet.errors import MissingExtraError
from supernet.reports.outline import Step, outline
from supernet.space import Architecture, LayerDomain, SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_architecture", "plot_probabilities"]

COLUMNS = 4  # of the small plots of probabilities


def plot_probabilities(space: SearchSpace, history: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Plot the probability of each candidate over the epochs, one small plot a choice.

    Args:
        space: the space that was searched.
        history: one dict an epoch, with "epoch" and "probabilities": label -> numbers.
        path: where to write, without a suffix.

    Returns:
        The PNG's and the SVG's path; none where the history has no probabilities.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    labels = [label for label in space if any(label in record["probabilities"] for record in history)]
    if not labels:
        return []
    _check_matplotlib()
    names = {label: _names(space, label) for label in labels}
    colours = _colours(sorted({name for label in labels for name in names[label]}))
    columns = min(COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = _figure(2.9 * columns + 1.6, 2.0 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epochs = [record["epoch"] for record in history]
    for axes, label in zip(grid.flat, labels, strict=False):
        for k, name in enumerate(names[label]):
            values = [record["probabilities"][label][k] for record in history]
            axes.plot(
                epochs,
                values,
                color=colours[name],
                label=name,
                linewidth=1.6,
                marker="." if len(epochs) == 1 else "",
            )
        axes.set_title(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    for axes in list(grid.flat)[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("probability", fontsize=9)
    lines = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=8, frameon=False)
    return _save(figure, path)


def plot_architecture(model: nn.Module, architecture: Architecture, path: Path) -> list[Path]:
    """Draw an architecture as a graph: its choices as decided, and how data flows between them.

    What does not reach the output, for no `InputChoice` takes it, is left out; other inputs that an `InputChoice`
    was offered and did not choose are dotted.

    Args:
        model: the model that the architecture decides, as written or with its choices replaced.
        architecture: label -> decision.
        path: where to write, without a suffix.

    Returns:
        The PNG's and the SVG's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _check_matplotlib()
    steps = _reaching_the_output(outline(model, SearchSpace(model).canonical(architecture)))
    places = _places(steps)
    colours = _colours(sorted({step.kind for step in steps} - {"end", "inputs"}))
    colours = {kind: tuple(0.5 + c / 2 for c in colour) for kind, colour in colours.items()}  # light, below text
    colours |= {"end": "#dddddd", "inputs": "#f4f4f4"}
    width = 1.5 * (1 + max(x for x, _ in places))
    heights = [y for _, y in places]
    figure = _figure(width + 0.6, 0.85 * (max(heights) - min(heights) + 1) + 0.6)
    axes = figure.subplots()
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "shrinkA": 26, "shrinkB": 28, "connectionstyle": "arc3,rad=0.08"}
    for index, step in enumerate(steps):
        for sources, style in (
            (step.dropped, {"ls": ":", "color": "#b5b5b5"}),
            (step.sources, {"color": "#444444"}),
        ):
            for source in sources:
                axes.annotate("", places[index], places[source], arrowprops={**arrow, **style}, zorder=1)
        box = {
            "boxstyle": "round,pad=0.35",
            "facecolor": colours[step.kind],
            "edgecolor": "#555555",
            "linewidth": 0.7,
        }
        axes.text(*places[index], step.text, ha="center", va="center", fontsize=8, bbox=box, zorder=2)
    axes.set_xlim(-0.6, max(x for x, _ in places) + 0.6)
    axes.set_ylim(min(heights) - 0.7, max(heights) + 0.7)
    return _save(figure, path)


def _reaching_the_output(steps: Sequence[Step]) -> list[Step]:
    """Return the steps without those whose result is not used; all, where no output is known."""
    wanted = [index for index, step in enumerate(steps) if step.text == "output"]
    kept = set(wanted)
    while wanted:
        sources = steps[wanted.pop()].sources - kept
        kept |= sources
        wanted.extend(sources)
    if not kept:
        return list(steps)
    new = {old: index for index, old in enumerate(sorted(kept))}
    return [
        Step(
            steps[old].text,
            steps[old].kind,
            {new[source] for source in steps[old].sources},
            {new[source] for source in steps[old].dropped & kept},
        )
        for old in new
    ]


def _places(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """Return (column, height) of each step: as far right as its longest way from an input, near its sources."""
    columns: list[int] = []
    for step in steps:
        columns.append(1 + max((columns[source] for source in step.sources | step.dropped), default=-1))
    heights = [0.0] * len(steps)
    for column in range(max(columns) + 1):
        members = [i for i, c in enumerate(columns) if c == column]
        wished = {i: _mean([heights[s] for s in steps[i].sources | steps[i].dropped]) for i in members}
        members.sort(key=lambda i: (wished[i], i))
        for rank, i in enumerate(members):
            heights[i] = rank - (len(members) - 1) / 2
    return list(zip(map(float, columns), (-h for h in heights), strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _names(space: SearchSpace, label: str) -> list[str]:
    domain = space[label]
    if isinstance(domain, LayerDomain):
        return list(domain.names)
    return list(domain.choose_from or (f"input {i}" for i in range(domain.n_candidates)))


def _colours(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = [*colormaps["tab10"].colors, *colormaps["tab20b"].colors, *colormaps["tab20c"].colors]  # type: ignore[attr-defined]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _check_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'supernet[plots]'") from error


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    for written in paths:
        figure.savefig(written, dpi=150)
    return paths
