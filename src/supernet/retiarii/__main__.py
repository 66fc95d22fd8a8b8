"""Run a script that was written for Retiarii: `python -m supernet.retiarii script.py [args]`.

Where the script's author has a `supernet.py` too, `supernet-retiarii script.py` finds this package in any directory.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

from supernet.errors import NameTakenError
from supernet.retiarii.install import install
from supernet.retiarii.name_of_the_script import leave_name_to_script


def main(arguments: list[str] | None = None) -> None:
    """Install the old names, then run the script as Python would."""
    parser = argparse.ArgumentParser(prog="supernet-retiarii", description=main.__doc__)
    parser.add_argument(
        "--over-real-nni", action="store_true", help="let these names win where a real nni is installed"
    )
    parser.add_argument("script", type=Path)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="what the script is called with")
    options = parser.parse_args(arguments)
    if not options.script.is_file():
        parser.error(f"there is no file {options.script}")
    try:
        install(over_real_nni=options.over_real_nni)
    except NameTakenError as error:
        parser.error(f"{error} (here: --over-real-nni)")
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(levelname)s (%(name)s) %(message)s")
    sys.argv = [str(options.script), *options.args]
    if not getattr(sys.flags, "safe_path", False):  # else Python has put no directory there (-P, from 3.11 on)
        sys.path[0] = str(options.script.resolve().parent)
    sys.path.insert(1, str(Path(__file__).with_name("in_workers")))  # goes along to processes that are spawned
    try:
        leave_name_to_script()
    except NameTakenError as error:
        parser.error(str(error))
    runpy.run_path(str(options.script), run_name="__main__")


if __name__ == "__main__":
    main()
