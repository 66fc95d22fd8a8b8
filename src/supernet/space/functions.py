"""Functions of a user's own as plain data, so that fingerprints tell apart what computes different things."""

from __future__ import annotations

import functools
import hashlib
import json
import types
from collections.abc import Callable, Mapping, Set
from typing import Any

from supernet.nn.value import Value

__all__: list[str] = []


class Described:
    """What a function computes, as far as it can be known.

    That is its code, as this version of Python compiles it, and what it takes from elsewhere: defaults, arguments of a
    `functools.partial`, variables around it, globals, and functions that it calls. The same in each process.

    Args:
        function: The function, or anything that can be called.

    Attributes:
        digest: A text that differs where that does.
        opaque: Objects in it of which the class alone is known.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.opaque: list[Any] = []
        of = getattr(function, "func", function)
        self._package = _package_of(of if isinstance(of, types.FunctionType) else type(of))
        self._met: dict[int, int] = {}  # identity -> number, of what has been described or is being so
        self.digest = hashlib.sha256(json.dumps(self._form(function)).encode()).hexdigest()[:16]

    def _form(self, thing: Any) -> Any:
        if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
            return [type(thing).__name__, repr(thing)]
        if isinstance(thing, Value):
            return ["value", str(thing), *map(self._form, thing.functions())]
        if id(thing) in self._met:
            return ["again", self._met[id(thing)]]
        self._met[id(thing)] = len(self._met)
        if isinstance(thing, list | tuple):
            return [type(thing).__name__, *map(self._form, thing)]
        if isinstance(thing, Set):
            return ["set", *sorted(json.dumps(self._form(each)) for each in thing)]
        if isinstance(thing, Mapping):
            return ["dict", *([self._form(key), self._form(value)] for key, value in thing.items())]
        if isinstance(thing, functools.partial):
            return ["partial", *map(self._form, (thing.func, thing.args, thing.keywords))]
        if isinstance(thing, types.MethodType):
            return ["method", self._form(thing.__func__), self._form(thing.__self__)]
        if isinstance(thing, types.FunctionType):
            return self._form_of_function(thing)
        if isinstance(thing, types.CodeType):
            consts = [self._form(const) for const in thing.co_consts]
            return ["code", thing.co_code.hex(), thing.co_names, thing.co_varnames, thing.co_freevars, consts]
        if isinstance(thing, type | types.ModuleType | types.BuiltinFunctionType):
            return [getattr(thing, "__module__", None), getattr(thing, "__qualname__", thing.__name__)]
        self.opaque.append(thing)
        call = next((vars(cls)["__call__"] for cls in type(thing).__mro__ if "__call__" in vars(cls)), None)
        code = self._form(call) if isinstance(call, types.FunctionType) else None
        return ["object", type(thing).__module__, type(thing).__qualname__, code]

    def _form_of_function(self, function: types.FunctionType) -> Any:
        if _package_of(function) != self._package:  # a library's, which has versions
            return [function.__module__, function.__qualname__]
        code, of_module = function.__code__, function.__globals__
        around = [_content(cell) for cell in function.__closure__ or ()]
        taken = {name: of_module[name] for name in code.co_names if name in of_module}
        return ["function", *map(self._form, (code, function.__defaults__, function.__kwdefaults__, around, taken))]


def _package_of(thing: Any) -> str:
    package: str = (thing.__module__ or "").partition(".")[0]
    return package


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def is_known_by_name(function: Callable[..., Any]) -> bool:
    """Say whether a function's name says what it computes: Python's own, and ours."""
    of = function if hasattr(function, "__name__") else type(function)
    return _package_of(of) in ("builtins", "_operator", "math", "numpy", "torch", __name__.partition(".")[0])
