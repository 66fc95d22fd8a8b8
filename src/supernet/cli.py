"""The command line: `supernet demo`, `supernet runs`, `supernet rerun`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from supernet.demo import run_demo
from supernet.errors import SupernetError
from supernet.printable import printable
from supernet.rerun import rerun
from supernet.runs import load_runs, print_runs

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser(prog="supernet", description="One-shot neural architecture search on PyTorch.")
    parser.add_argument("--version", action="version", version=f"supernet {version('supernet')}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="search a network for real handwritten digits, and compare it with random ones (about 3 minutes)",
        description="Search a network for scikit-learn's handwritten digits with first-order DARTS, train what was "
        "found from new weights, train random architectures in the same way, and print how they compare.",
    )
    demo.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directory is made (default: runs)")
    again = commands.add_parser(
        "rerun",
        help="run a run again by its directory, and say whether the result is the same",
        description="Execute the command that run.json names (so the directory must be one that you trust), with its "
        "run directories made elsewhere, and compare architecture, metrics and weights. Exits with 1 if they differ. "
        "What else the command does it does again: if it begins by removing RUN_DIR, the first run's files are gone.",
    )
    again.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    again.add_argument("--into", type=Path, help="where its run directories are made (default: RUN_DIR-rerun-1, ...)")
    again.add_argument(
        "--trust",
        action="store_true",
        help="run it though its script is not the file that made the run, or may run any code that it is given",
    )
    runs = commands.add_parser(
        "runs",
        help="print what runs have found, side by side",
        description="Print trainer, seed, figures of the last epoch, time and architecture of each run, and the "
        "options in which the runs differ; and means over the seeds of runs that have all else in common.",
    )
    runs.add_argument(
        "paths",
        nargs="*",
        default=["runs"],
        metavar="PATH",
        help="run directories, or directories with some below them",
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "runs":
            # Whoever reads from a pipe wants whole lines.
            print_runs(load_runs(options.paths), Console(width=None if sys.stdout.isatty() else 400))
            return 0
        if options.command == "rerun":
            return _rerun(options.run_dir, options.into, options.trust)
        # Its images are so small that a second thread gains nothing, and loses much where cores are shared.
        torch.set_num_threads(1)
        run_demo(runs=options.runs)
    except SupernetError as error:
        print(printable(f"supernet: {error}"), file=sys.stderr)
        return 1
    return 0


def _rerun(run_dir: Path, into: Path | None, trust: bool) -> int:
    differing = rerun(run_dir, into, trust=trust)
    if differing:
        print(printable("\n  ".join([f"not the same as {run_dir}:", *differing])))
        return 1
    print(printable(f"the same as {run_dir}: architecture, metrics and weights, bit for bit"))
    return 0
