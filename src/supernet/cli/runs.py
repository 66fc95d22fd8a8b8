"""`supernet demo`, `supernet runs`, `supernet rerun`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from supernet.demo import run_demo
from supernet.printable import printable
from supernet.rerun import rerun
from supernet.runs import load_runs, print_runs

__all__: list[str] = []


def add_to(commands: Any) -> None:
    """Add the commands."""
    demo = commands.add_parser(
        "demo",
        help="search small networks for real handwritten digits under three budgets, and compare (about 7 minutes)",
        description="Train a supernet for scikit-learn's handwritten digits, search it under three budgets of "
        "parameters, and print how what was found compares with random networks under the same budgets and with random "
        "search in equal time. The run directory receives the rows, a picture, and the networks as ONNX files.",
    )
    demo.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directory is made (default: runs)")
    demo.set_defaults(run=_demo)
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
    again.set_defaults(run=_rerun)
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
    runs.set_defaults(run=_runs)


def _demo(options: argparse.Namespace) -> int:
    # Its images are so small that a second thread gains nothing, and loses much where cores are shared.
    torch.set_num_threads(1)
    run_demo(processes=min(max(os.cpu_count() or 1, 2), 4), runs=options.runs)
    return 0


def _runs(options: argparse.Namespace) -> int:
    # Whoever reads from a pipe wants whole lines.
    print_runs(load_runs(options.paths), Console(width=None if sys.stdout.isatty() else 400))
    return 0


def _rerun(options: argparse.Namespace) -> int:
    run_dir = options.run_dir
    differing = rerun(run_dir, options.into, trust=options.trust)
    if differing:
        print(printable("\n  ".join([f"not the same as {run_dir}:", *differing])))
        return 1
    print(printable(f"the same as {run_dir}: architecture, metrics and weights, bit for bit"))
    return 0
