"""`supernet front`: what a search has found, and the best of it within limits."""

from __future__ import annotations

import argparse
from typing import Any

from supernet.cli.given import Run, add_run, limits_of, print_found, table
from supernet.cli.search import FRONT
from supernet.errors import TrainingError
from supernet.search import Entry, Front
from supernet.space import save_architecture

__all__: list[str] = []


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "front",
        help="show what supernet search has found, or the best of it within limits",
        description=f"Show the architectures in a run's {FRONT} that no other beats in all objectives; with --limits, "
        "the one that is best in the first objective of those that keep them. Nothing is measured.",
    )
    add_run(parser)
    parser.add_argument(
        "--limits",
        type=limits_of,
        metavar="NAME=MOST,...",
        help="limits of costs or metrics, as numbers: parameters=60000 or NAME=LEAST:MOST",
    )
    parser.add_argument("--metric", metavar="NAME", help="the objective that the best is best in (default: the first)")
    parser.add_argument("--plot", metavar="PATH", help="write a picture of the front; without a suffix, PNG and SVG")
    parser.add_argument("--save", metavar="FILE", help="write the best architecture to a file, for --architecture")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    run = Run(options)
    front = front_of(run)
    if options.plot is not None:
        front.plot(options.plot)
    if options.limits is None and options.metric is None and options.save is None:
        print_found(options, front.to_json(), str(front))
        return 0
    best = front.best(options.limits, metric=options.metric)
    if options.save is not None:
        save_architecture(best.architecture, options.save, run.space)
    found = {"architecture": best.architecture, "metrics": best.metrics, "costs": best.costs}
    print_found(options, found, _in_words(best))
    return 0


def front_of(run: Run) -> Front:
    """Return the front that a search of a run has written.

    Raises:
        TrainingError: There is none.
    """
    try:
        return Front.load(run.directory / FRONT, run.space)
    except FileNotFoundError as error:
        raise TrainingError(f"{run.directory} has no {FRONT}; supernet search writes it") from error


def _in_words(best: Entry) -> str:
    numbers = {**best.metrics, **best.costs}
    decisions = [[label, str(decision)] for label, decision in best.architecture.items()]
    return table([*([name, f"{value:,.6g}"] for name, value in numbers.items()), *decisions])
