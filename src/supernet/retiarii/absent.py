"""Names of NNI that this package has not: they import, and say so when they are used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from supernet.errors import ChoiceError

__all__: list[str] = []

_NOT_HERE = (
    "is not here: it belongs to multi-trial search, to NNI's own insides or to another version of it; train a supernet "
    "by a trainer of supernet, then freeze(model, trainer.export()) and supernet.train"
)


class _Absent(type):
    """A class that cannot be made, as cannot whatever it seems to hold."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return absent(f"{cls.__qualname__}.{name}", cls.__doc__)


def absent(name: str, why: str | None = None) -> type:
    """Return a class of that name that cannot be made: its error says why, and what to use."""
    why = why or _NOT_HERE

    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ChoiceError(f"{name} {why}")

    members = {"__init__": refuse, "__doc__": why, "__qualname__": name}
    return _Absent(name.rpartition(".")[2], (), members)


def without_meaning(name: str, instead: str) -> type:
    """Return the same for what Retiarii's one-shot trainers could not run either."""
    return absent(name, f"had no meaning for Retiarii's one-shot trainers, and has none here: {instead}")


def names_absent_from(module: str, theirs: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of one of our modules: what NNI's has and ours has not is absent.

    Args:
        module: Name of our module, whose own parts are found before.
        theirs: Name of NNI's module.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {theirs!r} has no attribute {name!r}")
        part = f"{module}.{name}"
        if importlib.util.find_spec(module).submodule_search_locations and importlib.util.find_spec(part):  # type: ignore[union-attr]
            return importlib.import_module(part)
        return absent(f"{theirs}.{name}")

    return __getattr__


class AbsentModule(ModuleType):
    """A module that only multi-trial search used, or that NNI itself dropped: each of its names is absent."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # it may have submodules, which are as absent

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{self.__name__}.{name}")
