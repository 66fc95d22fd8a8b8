"""Run a script that was written for Retiarii: `supernet-retiarii script.py [args]`.

This stands outside of the package that it runs, so that it finds that one where a `supernet.py` of the script's author
is found before it: in the directory that the command is given in, or on PYTHONPATH.
"""

import importlib.util
import sys
from pathlib import Path

__all__ = ["load", "main"]


def load() -> None:
    """Load the package that this file was installed with, unless it has been."""
    if "supernet.retiarii" in sys.modules:
        return
    package = Path(__file__).with_name("supernet")
    spec = importlib.util.spec_from_file_location(
        "supernet", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["supernet"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    """Run the script."""
    load()
    from supernet.retiarii.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
