"""A front: what a search has measured, which of it no other beats, and the best within limits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from supernet.cost import Limits
from supernet.cost.limits import bounds_in_words
from supernet.errors import CostError, FileFormatError, NonFiniteError, TrainingError
from supernet.reports.fronts import plot_front
from supernet.search.dominance import nondominated
from supernet.space import Architecture, SearchSpace
from supernet.space.files import check_fingerprint, read_json, write_json
from supernet.space.space import check_space

__all__ = ["Entry", "Front"]

FORMAT, VERSION = "supernet/front", 1
SHOWN = 60  # letters of an architecture in a table

Bounds: TypeAlias = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """An architecture, what was measured of it, and what its network costs.

    Args:
        architecture: Label -> decision.
        metrics: Name -> what an evaluation gave.
        costs: Name -> what the network costs.
    """

    architecture: Architecture
    metrics: dict[str, float]
    costs: dict[str, float]

    def value(self, name: str) -> float:
        """Return a cost or a metric by its name; NaN where there is none."""
        return self.costs.get(name, self.metrics.get(name, math.nan))


class Front:
    """What a search has measured, which of it no other beats in all objectives, and the best within limits.

    An architecture one of whose objectives is NaN stays among the entries, and is neither on the front nor the best.

    Args:
        space: The space of the architectures.
        objectives: Name of a metric or a cost -> "max" or "min". The first is what `best` goes by.
        entries: What was measured, each architecture once.
        budgets: The limits that were searched under, name of a cost -> (least, most).

    Attributes:
        entries: Everything that was measured, in its order.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}, label="op")))
    >>> slow = Entry({"op": "conv"}, metrics={"accuracy": 0.9}, costs={"ms": 7.0})
    >>> fast = Entry({"op": "skip"}, metrics={"accuracy": 0.6}, costs={"ms": 1.0})
    >>> front = Front(space, {"accuracy": "max", "ms": "min"}, [slow, fast])
    >>> front.best({"ms": 5}).architecture
    {'op': 'skip'}
    >>> print(front)
    accuracy  ms  architecture
         0.6   1  op=skip
         0.9   7  op=conv
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Mapping[str, str],
        entries: Sequence[Entry] = (),
        *,
        budgets: Sequence[Bounds] = (),
    ) -> None:
        check_space(space)
        self.space, self.objectives = space, checked_objectives(objectives)
        self.entries, self.budgets = list(entries), [dict(budget) for budget in budgets]

    def scores(self, entry: Entry) -> tuple[float, ...]:
        """Return a number for each objective; higher is better."""
        return tuple(_signed(entry.value(name), way) for name, way in self.objectives.items())

    @property
    def nondominated(self) -> list[Entry]:
        """The entries that no other beats: the front itself, in the order of the last objective."""
        # NaN is neither more nor less than any number, so nothing would beat it.
        known = [entry for entry in self.entries if not any(map(math.isnan, self.scores(entry)))]
        best = [known[i] for i in nondominated([self.scores(entry) for entry in known])]
        *_, last = self.objectives
        return sorted(best, key=lambda entry: (entry.value(last), self.scores(entry)))

    def best(self, limits: Limits | Mapping[str, Any] | None = None, *, metric: str | None = None) -> Entry:
        """Return the entry that is best in one objective, of those that keep limits; of equal ones the first.

        Args:
            limits: Name of a cost or metric -> the most that it may be, or (least, most), either None; or `Limits`.
                Default: none.
            metric: Name of the objective. Default: the first.

        Raises:
            CostError: No entry keeps the limits: names the nearest; or a limit is about nothing that is known.
            NonFiniteError: What keeps the limits has NaN for the objective.
            TrainingError: There is no such objective, or nothing was measured.
        """
        name = next(iter(self.objectives)) if metric is None else metric
        if name not in self.objectives:
            raise TrainingError(f"there is no objective {name!r}; the front has: {', '.join(self.objectives)}")
        if not self.entries:
            raise TrainingError("the front is empty: nothing was measured")
        bounds = self._bounds(limits)
        allowed = [entry for entry in self.entries if not self._excess(entry, bounds)]
        if not allowed:
            nearest = min(self.entries, key=lambda entry: self._excess(entry, bounds))
            has = ", ".join(f"{name} {nearest.value(name):,.6g} ({bounds_in_words(*bounds[name])})" for name in bounds)
            raise CostError(
                f"none of {len(self.entries):,} architectures that were measured keeps the limits; the nearest has "
                f"{has}, as {nearest.architecture}; search under these limits"
            )
        numbers = [entry for entry in allowed if not math.isnan(entry.value(name))]
        if not numbers:
            raise NonFiniteError(
                f"{name} of each of {len(allowed)} architectures that keep the limits is NaN, so none of them is the "
                f"best; look at what the network of one gives, say of {allowed[0].architecture}"
            )
        return max(numbers, key=lambda entry: _signed(entry.value(name), self.objectives[name]))

    def _bounds(self, limits: Limits | Mapping[str, Any] | None) -> Bounds:
        if isinstance(limits, Limits):
            bounds = limits.bounds
        elif not (limits is None or isinstance(limits, Mapping)):
            raise CostError(f"limits are a dict such as {{'parameters': 60_000}}, or Limits, not {limits!r:.80}")
        else:
            bounds = {name: _range(name, limit) for name, limit in (limits or {}).items()}
        known = dict.fromkeys(name for entry in self.entries for name in (*entry.costs, *entry.metrics))
        for name in bounds:
            if name not in known:
                raise CostError(f"a limit is of {name!r}, which was not measured; the front knows: {', '.join(known)}")
        return bounds

    def _excess(self, entry: Entry, bounds: Bounds) -> float:
        """Return by which share of its limits an entry is beyond them; 0 where it keeps them."""
        total = 0.0
        for name, (low, high) in bounds.items():
            value = entry.value(name)
            beyond = max(low - value, value - high)
            if not beyond <= 0:  # NaN is beyond every limit
                limit = high if not value <= high else low
                total += beyond / max(abs(limit), 1e-12) if math.isfinite(beyond) else math.inf
        return total

    # --- for people and files ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        entries = self.nondominated
        names = list(dict.fromkeys([*self.objectives, *(name for entry in entries for name in entry.costs)]))
        rows = [[f"{entry.value(name):,.6g}" for name in names] for entry in entries]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        texts = ["architecture", *(_short(entry.architecture) for entry in entries)]
        lines = [
            "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), text])
            for row, text in zip([names, *rows], texts, strict=True)
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        objectives = ", ".join(f"{name} {way}" for name, way in self.objectives.items())
        return f"Front({objectives}; {len(self.nondominated)} of {len(self.entries)} architectures)"

    def plot(self, path: str | os.PathLike[str]) -> list[Path]:
        """Plot the first objective over the second, or over the first cost where there is one objective alone.

        Args:
            path: Path of the picture. Without a suffix it is written as PNG and as SVG.

        Returns:
            The paths of the pictures.

        Raises:
            MissingExtraError: Matplotlib is not installed.
            TrainingError: There is nothing to plot, no second number, or no picture of that suffix.
        """
        first, *others = [*self.objectives, *(name for entry in self.entries[:1] for name in entry.costs)]
        others = [name for name in others if name != first]
        if not self.entries or not others:
            raise TrainingError("a front is plotted over a second objective or a cost, and there is none")
        x, y = others[0], first

        def points(entries: Sequence[Entry]) -> list[tuple[float, float]]:
            return [(entry.value(x), entry.value(y)) for entry in entries]

        marks = [bound for budget in self.budgets for bound in budget.get(x, ()) if math.isfinite(bound)]
        return plot_front(points(self.entries), points(self.nondominated), Path(path), x=x, y=y, marks=marks)

    def to_json(self) -> dict[str, Any]:
        """Return this front as JSON has it. Numbers that are not finite are texts, such as "nan"."""
        best = {id(entry) for entry in self.nondominated}
        return {
            "space": self.space.fingerprint,
            "objectives": self.objectives,
            "budgets": [
                {name: [_as_json(bound) for bound in bounds] for name, bounds in budget.items()}
                for budget in self.budgets
            ],
            "entries": [
                {
                    "architecture": entry.architecture,
                    "metrics": {name: _as_json(value) for name, value in entry.metrics.items()},
                    "costs": {name: _as_json(value) for name, value in entry.costs.items()},
                    "nondominated": id(entry) in best,
                }
                for entry in self.entries
            ],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file.

        Args:
            path: Path of the file.
        """
        write_json(Path(path), FORMAT, VERSION, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str], space: SearchSpace) -> Front:
        """Read a front of `space` from a file that `save` wrote.

        Args:
            path: Path of the file.
            space: The space that it must belong to.

        Raises:
            FileFormatError: The file is not such a file, is broken, or belongs to another space.
            FileNotFoundError: There is no such file.
        """
        check_space(space)
        content = read_json(Path(path), FORMAT, VERSION, "is not a front's file")
        mend = "load it with the space of the model that was searched"
        check_fingerprint(content.get("space"), space, f"{path} holds a front", mend)
        try:
            entries = [
                Entry(space.canonical(one["architecture"]), _numbers(one["metrics"]), _numbers(one["costs"]))
                for one in content["entries"]
            ]
            budgets = [
                {name: (float(low), float(high)) for name, (low, high) in budget.items()}
                for budget in content["budgets"]
            ]
            return cls(space, content["objectives"], entries, budgets=budgets)
        except Exception as error:  # whatever wrong content leads to
            raise FileFormatError(f"{path} holds no front of this space: {error}") from error


def checked_objectives(objectives: Any) -> dict[str, str]:
    """Return name -> "max" or "min", or raise `TrainingError`."""
    if not isinstance(objectives, Mapping) or not objectives:
        raise TrainingError(f'objectives are a dict such as {{"accuracy": "max"}}, not {objectives!r:.80}')
    for name, way in objectives.items():
        if way not in ("max", "min"):
            raise TrainingError(f'the objective {name!r} is to be "max" or "min", not {way!r:.80}')
    return dict(objectives)


def _signed(value: float, way: str) -> float:
    return value if way == "max" else -value


def _range(name: str, limit: Any) -> tuple[float, float]:
    low, high = limit if isinstance(limit, tuple | list) and len(limit) == 2 else (None, limit)
    bounds = [b for b in (low, high) if b is not None]
    if not bounds or any(isinstance(b, str | bool) or not hasattr(b, "__float__") or math.isnan(b) for b in bounds):
        raise CostError(
            f"the limit of {name!r} is a number or (least, most), not {limit!r}; of shares of the largest network "
            "Limits(model, ...) knows"
        )
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _short(architecture: Architecture) -> str:
    text = ", ".join(f"{label}={decision}" for label, decision in architecture.items())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
