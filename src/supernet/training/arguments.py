"""Arguments of trainers' constructors: which one takes, and what it was given."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any

from supernet.training.config import unknown_argument
from supernet.training.description import as_json, is_plain, name_of

__all__: list[str] = []

NOTED = "_noted_arguments"  # the attribute that has what a trainer's constructors were given, until the last one runs
_MANY = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass
class Noted:
    """Arguments and their defaults by name, as JSON has them.

    Attributes:
        given: All of them.
        ours: Names of those that a constructor of this library takes.
        added: Names of those that a constructor of the form `(self, *task, its_own=..., **config)` adds, so that they
            are options of the algorithm; of numbers, texts, functions, partials and containers of these alone, since an
            object of whatever class may say when or where it was made.
    """

    given: dict[str, Any] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)


def noting_arguments(cls: type) -> Callable[..., None]:
    """Return a class's constructor, which then notes what it is given.

    Its signature is the whole one: what it takes as `*task` and `**config` has the names that the constructor has which
    it hands them to. That one notes them. The model is no option.
    """
    constructor: Callable[..., None] = vars(cls)["__init__"]
    signature = inspect.signature(constructor)
    many = {name for name, parameter in signature.parameters.items() if parameter.kind in _MANY}
    unnoted = {next(iter(signature.parameters)), *many, "model", "network"}
    is_ours = cls.__module__.split(".")[0] == "supernet"
    adds_options = {parameter.kind for parameter in signature.parameters.values()}.issuperset(_MANY)

    whole = whole_signature(cls.__mro__, signature)

    @functools.wraps(constructor)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_ours:
            _check_number(whole, type(self), self, *args, **kwargs)
        with suppress(TypeError):  # which the constructor raises itself, and says why
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            values = {name: value for name, value in bound.arguments.items() if name not in unnoted}
            noted = vars(self).setdefault(NOTED, Noted())
            noted.given = {name: _as_json(value, is_ours) for name, value in values.items()} | noted.given
            noted.ours |= values.keys() if is_ours else set()
            if adds_options:
                noted.added |= {name for name, value in values.items() if _is_said(value)}
        try:
            constructor(self, *args, **kwargs)
        except TypeError as error:
            name = _given_twice(error, kwargs, constructor)
            if name is None:
                raise
            raise TypeError(f"{cls.__name__} sets {name} itself; leave it out") from None

    noting.__signature__ = whole  # type: ignore[attr-defined]
    return noting


def _check_number(whole: Signature, cls: type, /, *args: Any, **kwargs: Any) -> None:
    """Raise `TypeError` if arguments are missing or too many, by the name of the class wherever that is noticed."""
    try:
        whole.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in whole.parameters]
        known = [*whole.parameters][1:]
        if "missing" in str(error) and any(get_close_matches(name, known) for name in unknown):
            raise TypeError(unknown_argument(cls.__name__, unknown, known)) from None
        if "unexpected keyword" not in str(error):  # which is refused with the nearest name
            raise TypeError(f"{cls.__name__}: {error}") from None


def _given_twice(error: TypeError, given: Mapping[str, Any], constructor: Callable[..., None]) -> str | None:
    """Return the argument that a constructor was given and hands on too, if that is what is wrong; else None."""
    found = re.search("got multiple values for keyword argument '(.*)'", str(error))
    calls = error.__traceback__ and error.__traceback__.tb_next
    is_its_own = calls is not None and calls.tb_next is None and calls.tb_frame.f_code is constructor.__code__
    return found[1] if found and is_its_own and found[1] in given else None


def _is_said(value: Any) -> bool:
    """Say whether all that an option is stands in what JSON has of it."""
    if isinstance(value, functools.partial):
        return all(map(_is_said, (value.func, *value.args, *value.keywords.values())))
    if isinstance(value, list | tuple):
        return len(value) <= 100 and all(map(_is_said, value))
    return is_plain(value) or inspect.isroutine(value) or inspect.isclass(value)


def whole_signature(classes: Sequence[type], signature: Signature) -> Signature:
    """Return the signature of a class's constructor with the names of what it hands on to the next one's.

    Args:
        classes: The class, and those whose constructors may come next: `__mro__`, or what is left of a subclass's.
        signature: Signature of the constructor as it is written.
    """
    position = next(position for position, base in enumerate(classes[1:], 1) if "__init__" in vars(base))
    base = classes[position]
    own = list(signature.parameters.values())
    kinds = {parameter.kind for parameter in own}
    if base is object or Parameter.VAR_KEYWORD not in kinds:
        return signature
    its_own = _handed_on(vars(classes[0])["__init__"])
    names = {parameter.name for parameter in own if parameter.kind not in _MANY} | its_own
    constructor = vars(base)["__init__"]
    written = inspect.signature(getattr(constructor, "__wrapped__", constructor))
    theirs = list(whole_signature(classes[position:], written).parameters.values())[1:]
    handed_on = [
        parameter for parameter in theirs if parameter.name not in names and not _is_given_by_itself(parameter)
    ]
    if Parameter.VAR_POSITIONAL not in kinds:  # then what is not given by the class itself is handed on by its name
        handed_on = [
            parameter if parameter.kind is Parameter.VAR_KEYWORD else parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for parameter in handed_on
            if parameter.kind is Parameter.VAR_KEYWORD or parameter.default is not Parameter.empty
        ]
    parameters = [parameter for parameter in own if parameter.kind not in _MANY] + handed_on
    with suppress(ValueError):  # of one whose own positional ones have defaults, and come first
        return signature.replace(parameters=sorted(parameters, key=lambda parameter: parameter.kind))
    return signature


@functools.cache  # reading sources is half of what importing the trainers takes
def _handed_on(constructor: Callable[..., None]) -> set[str]:
    """Return the names that a constructor gives to the next one itself, and so does not take, as its source says."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(constructor)))
    except (OSError, TypeError, SyntaxError):  # there is none
        return set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    to_next = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__"]
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}  # such as in config.pop("terms")
    return {keyword.arg for call in to_next for keyword in call.keywords if keyword.arg} - texts


def _is_given_by_itself(parameter: Parameter) -> bool:
    """Say whether a class that does not name it gives it to its base itself, which needs it."""
    return parameter.kind is Parameter.KEYWORD_ONLY and parameter.default is Parameter.empty


def with_options(signature: Signature, options: Mapping[str, Any]) -> Signature:
    """Return a signature in which `**options` are named: name -> the field of a config."""
    named = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type)
        for name, option in options.items()
    ]
    kept = [parameter for parameter in signature.parameters.values() if parameter.kind not in _MANY]
    return signature.replace(parameters=[*kept, *named])


def _as_json(value: Any, is_ours: bool) -> Any:
    """Return an option that nobody has checked as JSON has it; of one that is large or odd, its class."""
    try:
        is_list = isinstance(value, list | tuple | set | frozenset) or (isinstance(value, Mapping) and not is_ours)
        if is_list and len(value) > 100:  # but ours are tables of costs, which are compared as they are
            return {"class": name_of(type(value)), "length": len(value)}
        return as_json(value)
    except Exception:  # such as of an object that answers to any name
        return {"class": name_of(type(value))}
