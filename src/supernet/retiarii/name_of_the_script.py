"""Letting a script have a module of its own that is called `supernet`, as this package is."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from supernet.errors import NameTakenError

__all__ = ["leave_name_to_script"]

NAME = "supernet"


class _ItsOwn(MetaPathFinder):
    """Finds the script's module, and below it what either package has."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = list(places)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the script's module where Python would, and let it have this package's modules below it."""
        spec = PathFinder.find_spec(fullname) if fullname == NAME else None
        if spec is not None:
            spec.submodule_search_locations = [*(spec.submodule_search_locations or []), *self._places]
        return spec


def leave_name_to_script() -> None:
    """Where a `supernet` of the script's is found before this package, let `import supernet` give that one from now on.

    The modules of this package stay what they are under their full names.

    Raises:
        NameTakenError: The script's is a package with a module that is called as one of this package's.
    """
    ours = list(sys.modules[NAME].__path__)
    theirs = PathFinder.find_spec(NAME)
    if theirs is None or list(theirs.submodule_search_locations or []) == ours:
        return
    shared = [
        module.name
        for module in pkgutil.iter_modules(ours)
        if theirs.submodule_search_locations
        and PathFinder.find_spec(f"{NAME}.{module.name}", theirs.submodule_search_locations) is not None
    ]
    if shared:
        raise NameTakenError(
            f"the package {theirs.origin or theirs.submodule_search_locations} has the name of this one, and modules "
            f"that this one has too: {', '.join(shared)}; rename it, or these"
        )
    for module in pkgutil.walk_packages(ours, f"{NAME}."):  # so that none of them has to be found below the script's
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    del sys.modules[NAME]
    sys.meta_path.insert(0, _ItsOwn(ours))
