"""`supernet`: which command it is, and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from supernet.cli import cost, evaluate, export, front, runs, search
from supernet.cli.importing import UsageError
from supernet.errors import SupernetError
from supernet.printable import printable

__all__ = ["main"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit statuses


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failure, 2 for arguments that cannot be."""
    parser = argparse.ArgumentParser(prog="supernet", description="One-shot neural architecture search on PyTorch.")
    parser.add_argument("--version", action="version", version=f"supernet {version('supernet')}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (runs, cost, evaluate, search, front, export):
        module.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()  # here, where a reader that has gone is noticed
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # of `supernet ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        elif isinstance(error, UsageError):
            print(printable(f"supernet {options.command}: {error}; see supernet {options.command} -h"), file=sys.stderr)
        elif isinstance(error, SupernetError):
            print(printable(f"supernet: {error}"), file=sys.stderr)
        else:  # mostly of the user's own code
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename}, line {last.lineno}; supernet --traceback {options.command} ... shows more"
            print(printable(f"supernet: {type(error).__name__}: {error} ({where})"), file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    return status
