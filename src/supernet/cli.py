"""The command line: `supernet demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from supernet.demo import run_demo
from supernet.errors import SupernetError

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
    options = parser.parse_args(arguments)
    try:
        run_demo(runs=options.runs)
    except SupernetError as error:
        print(f"supernet: {error}", file=sys.stderr)
        return 1
    return 0
