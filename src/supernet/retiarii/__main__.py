"""Run a script that was written for Retiarii: `python -m supernet.retiarii script.py [args]`."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

from supernet.errors import NameTakenError
from supernet.retiarii.install import install


def main(arguments: list[str] | None = None) -> None:
    """Install the old names, then run the script as Python would."""
    parser = argparse.ArgumentParser(prog="python -m supernet.retiarii", description=main.__doc__)
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
    sys.path[0] = str(options.script.resolve().parent)
    runpy.run_path(str(options.script), run_name="__main__")


if __name__ == "__main__":
    main()
