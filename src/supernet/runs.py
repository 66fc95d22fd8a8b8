"""What runs have left behind, side by side: as rows, and as a table for people."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from supernet.errors import FileFormatError
from supernet.space.files import read_architecture_file
from supernet.training.options import NOT_COMPARED

if TYPE_CHECKING:  # rich is imported where a table is made, and not by all who import the library
    from rich.console import Console
    from rich.table import Table
from supernet.training.run_directory import DESCRIPTION, is_in_use, read_description, read_metrics

__all__ = ["load_runs", "print_runs"]


def load_runs(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Return the records of runs, a row each, as `pandas.DataFrame` takes them, ordered by their paths.

    A row has "run" (the directory), "trainer", "seed", "status" ("running", "interrupted", "failed", "finished", or
    "killed" where no process says any more that it runs), "epochs", the figures of the last epoch by the names
    that `metrics.jsonl` has for them, "seconds", "architecture" (None before the end) and "options".

    Args:
        paths: Run directories, directories with runs anywhere below them, or patterns such as "runs/*".

    Raises:
        FileFormatError: A file of a run is broken, or there is no run; names the path.

    >>> network, data = nn.Linear(1, 1), TensorDataset(torch.randn(8, 1), torch.randn(8, 1))
    >>> history = train(network, nn.MSELoss(), None, SGD(network.parameters(), 0.1), 2, data, run_dir="runs/linear")
    >>> [(row["run"], row["status"], row["epochs"]) for row in load_runs("runs/*")]
    [('runs/linear', 'finished', 2)]
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    directories: dict[Path, None] = {}
    for path in paths:
        found = [match for text in _matches(os.fspath(path)) for match in _runs_in(Path(text))]
        if not found:
            raise FileFormatError(f"there is no run in {os.fspath(path)}: no directory there has a {DESCRIPTION}")
        directories |= dict.fromkeys(found)
    return [_row(directory) for directory in sorted(directories)]


def print_runs(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print runs as a table, and means over the seeds of those that have all else in common.

    Architectures are shown by a name of four letters, equal ones by the same; options where the runs differ in them.

    Args:
        rows: Rows as `load_runs` returns them.
        console: Console to print on.
    """
    from rich.text import Text

    given = [_flat(row["options"]) for row in rows]
    options = _differing(given)
    figures = _figures(rows)
    table = _table("run", "trainer", *options, "seed", "status", "epochs")
    for name in (*figures, "seconds"):
        table.add_column(Text(name), justify="right")
    table.add_column("architecture")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row, known in zip(rows, given, strict=True):
        of_options = [_text(known.get(name)) for name in options]
        if row["status"] == "finished":
            groups.setdefault((row["trainer"], *of_options), []).append(row)
        of_figures = [_text(row.get(name)) for name in figures]
        line = [row["run"], row["trainer"], *of_options, _text(row["seed"]), row["status"], _text(row["epochs"])]
        line += [*of_figures, f"{row['seconds']:.1f}", _short_name(row["architecture"])]
        table.add_row(*map(Text, line))
    console.print(table)

    if all(len(group) < 2 for group in groups.values()):
        return
    table = _table("trainer", *options, "runs", title="Finished runs, mean ± deviation", title_justify="left")
    for name in (*figures, "seconds", "architectures"):
        table.add_column(Text(name), justify="right")
    for names, group in groups.items():
        spreads = [_spread([row[name] for row in group if name in row]) for name in (*figures, "seconds")]
        distinct = len({_short_name(row["architecture"]) for row in group})
        table.add_row(*map(Text, (*names, str(len(group)), *spreads, str(distinct))))
    console.print(table)


def _table(*headings: str, **options: Any) -> Table:
    """Return a table; its texts are a user's, so that brackets and colons in them mean nothing."""
    from rich.table import Table
    from rich.text import Text

    table = Table(**options)
    for heading in headings:
        table.add_column(Text(heading))
    return table


def _matches(path: str) -> list[str]:
    return [path] if Path(path).exists() else glob.glob(path, recursive=True)  # noqa: PTH207  # may be absolute


def _runs_in(path: Path) -> list[Path]:
    """Return `path` itself if it is a run directory, else those below it."""
    return [path] if (path / DESCRIPTION).is_file() else [found.parent for found in path.rglob(DESCRIPTION)]


def _row(directory: Path) -> dict[str, Any]:
    description, history = read_description(directory), read_metrics(directory)
    last = history[-1] if history else {}
    of_epochs = sum(_numbers(record.get("cost", {})).get("seconds", 0.0) for record in history)
    return {
        "run": str(directory),
        "trainer": str(description.get("trainer")),
        "seed": description.get("seed"),
        "status": _status(description, directory),
        "epochs": len(history),
        **{name: value for name, value in _numbers(last).items() if name != "epoch"},
        # A run that was killed has said how long it had run when it began, and after each epoch.
        "seconds": max(_numbers(description).get("seconds", 0.0), of_epochs),
        "architecture": _architecture(directory),
        "options": _mapping(description.get("hyperparameters")),
    }


def _status(description: Mapping[str, Any], directory: Path) -> str:
    """Return how a run is: a process that is killed cannot say so, but it holds its directory no longer."""
    status = str(description.get("status"))
    return "killed" if status == "running" and not is_in_use(directory) else status


def _architecture(directory: Path) -> Any:
    try:
        return read_architecture_file(directory / "architecture.json")["architecture"]
    except FileNotFoundError:
        return None


def _numbers(record: Any) -> dict[str, float]:
    numbers = {name: value for name, value in _mapping(record).items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if not isinstance(value, bool)}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return all plain values in options, to any depth, by names such as `optimizer.lr`."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(i) if len(value) > 1 else "", item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {full: v for key, item in items for full, v in _flat(item, ".".join(filter(None, (name, key)))).items()}


def _differing(given: Sequence[dict[str, Any]]) -> list[str]:
    """Return the options in which runs differ, other than those by which they differ anyway."""
    names = dict.fromkeys(name for known in given for name in known if name.split(".")[0] not in NOT_COMPARED)
    return [name for name in names if len({json.dumps(known[name]) for known in given if name in known}) > 1]


def _figures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures that are compared: those of the validation part, else those of the training part."""
    for part in ("valid_", "train_"):
        names = dict.fromkeys(name for row in rows for name in row if name.startswith(part))
        if names:
            return list(names)
    return []


def _short_name(architecture: Any) -> str:
    if architecture is None:
        return ""
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:4]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.4g} ± {stdev(values):.2g}" if len(values) > 1 else f"{values[0]:.4g}"
