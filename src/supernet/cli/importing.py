"""What a user names on the command line by an import path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from supernet.errors import SupernetError

__all__: list[str] = []


class UsageError(Exception):
    """What was given on the command line cannot be."""


class UsersError(SupernetError, RuntimeError):
    """The user's own code has failed; says where."""


def imported(path: str, option: str) -> Any:
    """Return what an import path names.

    Args:
        path: "package.module:name" or "directory/file.py:name"; the name may have dots.
        option: The option that it was given for, for messages.

    Raises:
        UsageError: There is no such module, file or name.
        UsersError: The module fails where it is imported.
    """
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{option} is MODULE:NAME or FILE.py:NAME, not {path!r}")
    module = called(lambda: _of_file(Path(place), option) if place.endswith(".py") else _of_name(place, option), place)
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        known = ", ".join(each for each in vars(module) if not each.startswith("_"))
        raise UsageError(f"{option}: {place} has no {name!r}; it has: {known:.300}") from None


def called(function: Any, what: str) -> Any:
    """Return what the user's own code returns, or raise `UsersError` that says where it failed."""
    try:
        return function()
    except (UsageError, SupernetError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UsersError(
            f"{what} raises {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        ) from error


def _of_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{option}: there is no file {path}")
    name, path = path.stem, path.resolve()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known  # of another option: what is made of one file twice would be of two classes
    _find_in(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known is None:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is None:
            del sys.modules[name]
        raise
    return module


def _of_name(name: str, option: str) -> ModuleType:
    _find_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"{option}: there is no module {name!r} here, nor is it installed") from None
        raise


def _find_in(directory: Path) -> None:
    """Let modules of a directory be found, as those beside a script are."""
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
