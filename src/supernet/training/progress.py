"""What a person sees of a run: a bar with metrics where there is a terminal, log lines everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

__all__: list[str] = []

logger = logging.getLogger("supernet")


class ProgressBar:
    """A bar over the steps of a run, with a line of metrics for each epoch; silent without a terminal."""

    def __init__(self, title: str, num_epochs: int, *, shown: bool) -> None:
        # Here, not above, so that not all who import the library import rich.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.title, self.num_epochs = title, num_epochs
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def begin_epoch(self, epoch: int, steps: int | None, done: int = 0) -> None:
        """Start the bar of an epoch of that many steps (None: not known), some of which may be done."""
        self.begin(f"{self.title} epoch {epoch + 1}/{self.num_epochs}", steps, done)

    def begin(self, title: str, total: int | None, done: int = 0) -> None:
        """Start the bar anew under a title."""
        self._bar.reset(self._task, total=total, completed=done, description=title)

    def advance(self, count: int = 1) -> None:
        """Count so many steps."""
        self._bar.advance(self._task, count)

    def end_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Show and log an epoch's metrics."""
        line = f"{self.title} epoch {epoch + 1}/{self.num_epochs}  {formatted(metrics)}"
        logger.info(line)
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False)


@contextmanager
def counting(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` things; what this yields moves it by a count. Silent without a terminal."""
    bar = ProgressBar(title, 1, shown=shown)
    with bar:
        bar.begin(title, total)
        yield bar.advance


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a record that go into one line."""
    cost = record.get("cost", {})
    return {name: v for name, v in {**record, **cost}.items() if isinstance(v, int | float) and name != "epoch"}


def formatted(metrics: Mapping[str, float], last: Mapping[str, float] | None = None) -> str:
    """Return metrics as one line; where there are last values beside them, as `name value (mean)`."""
    last = last or {}
    return "  ".join(
        f"{name} {last[name]:.4g} ({value:.4g})" if name in last else f"{name} {value:.4g}"
        for name, value in metrics.items()
    )
