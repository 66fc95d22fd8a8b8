"""What the trace of a candidate takes for granted, and whether it is still so.

A trace has followed the Python of the modules that it went through. So hooks, types, submodules and plain attributes of
those are watched, and what their code reads elsewhere: attributes of classes, global names, variables of closures.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from supernet.nn import Mutable

__all__: list[str] = []


class Unreadable(Exception):
    """Says why a candidate runs as it is."""


class Module(NamedTuple):
    """A module that a trace went through, as it was then."""

    module: nn.Module
    type: type
    children: tuple[nn.Module | None, ...]
    attributes: tuple[tuple[str, Any], ...]
    num_attributes: int

    def holds(self) -> bool:
        """Say whether the module is as it was."""
        # For every module of every candidate in every pass: so loops instead of generators, and instead of the names of
        # attributes their number, by which a new one is noticed too.
        module = self.module
        attributes = module.__dict__
        if (
            type(module) is not self.type
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or len(attributes) != self.num_attributes
            or "forward" in attributes
            or len(module._modules) != len(self.children)
        ):
            return False
        if self.children:
            for child, then in zip(module._modules.values(), self.children, strict=True):
                if child is not then:
                    return False
        if self.attributes:
            for name, value in self.attributes:
                now = attributes.get(name)
                if now is not value and not _is(now, value):
                    return False
        return True


class Name(NamedTuple):
    """A name that code reads outside of its module: of a class, or global."""

    names: Mapping[str, Any]
    name: str
    value: Any

    def holds(self) -> bool:
        """Say whether the name means what it meant."""
        now = self.names.get(self.name)
        return now is self.value or _is(now, self.value)


class Variable(NamedTuple):
    """A variable of a function around the code, which reads it."""

    cell: types.CellType
    value: Any

    def holds(self) -> bool:
        """Say whether the variable is as it was."""
        now = self.cell.cell_contents
        return now is self.value or _is(now, self.value)


Guard = Module | Name | Variable


def guards_of(candidate: nn.Module) -> tuple[Guard, ...]:
    """Return what the trace of a candidate takes for granted.

    Raises:
        Unreadable: Of something that it takes for granted nobody can say whether it is as it was.
    """
    own = [module for module in candidate.modules() if not is_torchs_own(module) and not follows_a_plan(module)]
    for module in own:
        if isinstance(module, Mutable):
            raise Unreadable(f"{type(module).__name__} depends on values that the plan decides")
        if module._parameters or module._buffers:
            raise Unreadable(f"{type(module).__name__} holds parameters or buffers itself, whose values may count")
    code = _Code(own)
    return *_modules(candidate, code.attributes), *code.found.values()


def is_torchs_own(module: nn.Module) -> bool:
    """Say whether the module is a layer of torch, of which it is known what it does."""
    return type(module).__module__.startswith("torch.nn.modules") and type(module) not in (
        nn.Sequential,
        nn.ModuleList,
        nn.ModuleDict,
    )


def follows_a_plan(module: nn.Module) -> bool:
    """Say whether the module stands in the place of a choice."""
    return "plan" in module.__dict__


def _modules(candidate: nn.Module, names_read: set[str]) -> Iterator[Module]:
    if follows_a_plan(candidate):
        return
    children = tuple(candidate._modules.values())
    attributes = attributes_of(candidate)
    if isinstance(candidate, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
        # These are read anew whenever they run; but for what decides how, and what the code around them reads.
        attributes = tuple((n, v) for n, v in attributes if n in names_read or n in ("padding", "padding_mode"))
    result = Module(candidate, type(candidate), children, attributes, len(candidate.__dict__))
    if not result.holds():
        raise Unreadable("it has hooks, or a forward put in the place of its own")
    yield result
    for child in children:
        if child is not None:
            yield from _modules(child, names_read)


# --- values that can be compared later -----------------------------------------------------------------------

_INTERNALS = frozenset(nn.Module().__dict__)
_SCALARS = (type(None), bool, int, float, str, torch.dtype, torch.device, type)
_STATELESS = (types.FunctionType, types.BuiltinFunctionType)


def attributes_of(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Return (name, value) of a module's plain attributes; of a layer of torch those that can be compared."""
    own = ((name, value) for name, value in module.__dict__.items() if name not in _INTERNALS)
    if is_torchs_own(module):
        return tuple((name, _frozen(value)) for name, value in own if isinstance(value, (*_SCALARS, list, tuple)))
    return tuple((name, _frozen(value)) for name, value in own)


def _frozen(value: Any) -> Any:
    """Return a value so that it can be compared later, or raise `Unreadable`."""
    if isinstance(value, (*_SCALARS, *_STATELESS)):
        return value
    if type(value) is tuple and all(isinstance(inner, _SCALARS) for inner in value):
        return value  # itself, for to be the same is seen at once
    if isinstance(value, list | tuple):
        return tuple(_frozen(inner) for inner in value)
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(inner)) for key, inner in value.items())
    raise Unreadable(f"it holds a {type(value).__name__}, which may change")


def _is(value: Any, frozen: Any) -> bool:
    """Say whether a value is still what it was."""
    if value is frozen:
        return True
    try:
        now = _frozen(value)
    except Unreadable:
        return False
    return type(now) is type(frozen) and bool(now == frozen)


# --- what code reads -----------------------------------------------------------------------------------------

_TRUSTED = frozenset({"torch", "numpy", *sys.stdlib_module_names})


class _Code:
    """The code that runs when modules are called: their forward, and what it calls in turn.

    Attributes:
        attributes: Names of all attributes that it reads, of whatever.
        found: Guards of what it reads outside of the modules.

    Raises:
        Unreadable: It reads something that cannot be compared later, or sets a global name.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.attributes: set[str] = set()
        self.found: dict[Hashable, Name | Variable] = {}
        self._classes = dict.fromkeys(cls for m in modules for cls in type(m).__mro__ if not _is_trusted(cls))
        self._functions: list[Any] = [value for m in modules for value in m.__dict__.values()]
        self._seen: set[types.CodeType] = set()
        self._look_up(frozenset({"forward"}))
        while self._functions:
            self._follow(self._functions.pop())

    def _look_up(self, attributes: frozenset[str]) -> None:
        """Look at what the modules' classes have under names of attributes that are read."""
        for name in attributes - self.attributes:
            for cls in self._classes:
                if name in vars(cls):
                    self._watch(cls, vars(cls), name, frozenset())
        self.attributes |= attributes

    def _follow(self, function: Any) -> None:
        if not isinstance(function, types.FunctionType) or _is_trusted(function) or function.__code__ in self._seen:
            return
        self._seen.add(function.__code__)
        names, attributes = _names_in(function.__code__)
        self._look_up(attributes)
        for name in names:
            if name in function.__globals__:  # else one of Python's own
                self._watch(function, function.__globals__, name, attributes)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.found[id(cell)] = Variable(cell, self._looked_into(name, cell.cell_contents, attributes))

    def _watch(self, owner: Any, names: Mapping[str, Any], name: str, attributes: frozenset[str]) -> None:
        """Watch what a name means; `attributes` are those that are read beside it."""
        if (id(owner), name) not in self.found:
            self.found[id(owner), name] = Name(names, name, None)  # for names that lead back here
            self.found[id(owner), name] = Name(names, name, self._looked_into(name, names[name], attributes))

    def _looked_into(self, name: str, value: Any, attributes: frozenset[str]) -> Any:
        """Return a value in a form that can be compared, having followed what it leads to."""
        if isinstance(value, types.ModuleType | type):
            if not _is_trusted(value):
                for attribute in attributes & vars(value).keys():
                    self._watch(value, vars(value), attribute, attributes)
            return value
        if isinstance(value, types.FunctionType | property | staticmethod | classmethod):
            self._functions.append(getattr(value, "fget", getattr(value, "__func__", value)))
            return value
        try:
            return _frozen(value)
        except Unreadable:
            raise Unreadable(f"its code reads {name}, a {type(value).__name__}, which may change") from None


def _is_trusted(thing: Any) -> bool:
    """Say whether a function, class or module is of a library of which nobody changes what it means."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return str(name).partition(".")[0] in _TRUSTED


@lru_cache(maxsize=1024)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the global names and the names of attributes that code reads."""
    names, attributes = set(), set()
    for instruction in dis.get_instructions(code):
        what, value = instruction.opname, instruction.argval
        if what == "STORE_GLOBAL":
            raise Unreadable(f"its code sets the global {value}")
        if what == "LOAD_GLOBAL":
            names.add(value)
        elif isinstance(value, str) and ("ATTR" in what or "METHOD" in what or what == "LOAD_CONST"):
            attributes.add(value)  # a text may be what getattr is asked for
        elif isinstance(value, types.CodeType):
            inner_names, inner_attributes = _names_in(value)
            names |= inner_names
            attributes |= inner_attributes
    return frozenset(names), frozenset(attributes)
