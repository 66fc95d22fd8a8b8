"""What a module was before it was made elastic, and taking that back.

A module remembers it as an ordinary attribute, so that it goes along with `copy.deepcopy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from supernet.nn.layer_choice import LayerChoice

__all__: list[str] = []

_MEMORY = "_supernet_plain"


class Plain(NamedTuple):
    """What a module was.

    Attributes:
        cls: Its class.
        attributes: Names of its attributes.
        changed: Name of an attribute that was given another value -> the one that it had.
    """

    cls: type[nn.Module]
    attributes: frozenset[str]
    changed: Mapping[str, Any]


def remember_plain(module: nn.Module, *changed: str) -> None:
    """Let a module that is about to be made elastic remember what it is, and the values of attributes to be changed."""
    values = {name: module.__dict__[name] for name in changed}
    module.__dict__[_MEMORY] = Plain(type(module), frozenset(module.__dict__), values)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as its user made it."""
    memory = module.__dict__.get(_MEMORY)
    return memory.cls if isinstance(memory, Plain) else type(module)


def changed_attributes(module: nn.Module) -> Mapping[str, Any]:
    """Return the values that attributes had which were given others when the module was made elastic."""
    memory = module.__dict__.get(_MEMORY)
    return memory.changed if isinstance(memory, Plain) else {}


def is_made_elastic(module: nn.Module) -> bool:
    """Say whether a module has been made elastic in place."""
    return isinstance(module.__dict__.get(_MEMORY), Plain)


def remember_chosen(choice: LayerChoice, name: str) -> None:
    """Let a choice that is about to be put over a layer remember which candidate that layer is."""
    choice.__dict__[_MEMORY] = name


def take_back(modules: Iterable[nn.Module]) -> None:
    """Make elastic modules what they were, and put layers in the places of the choices over them."""
    for module in list(modules):
        memory = module.__dict__.get(_MEMORY)
        if isinstance(memory, Plain):
            for name in module.__dict__.keys() - memory.attributes:
                del module.__dict__[name]
            module.__dict__.update(memory.changed)
            module._modules.pop("sizes", None)  # it lacks where making the module elastic has failed on the way
            module.__class__ = memory.cls
        for name, child in module._modules.items():
            if isinstance(child, LayerChoice) and _MEMORY in child.__dict__:
                module._modules[name] = child[child.__dict__[_MEMORY]]


def transplant(module: nn.Module, elastic: nn.Module) -> None:
    """Make a module the elastic one that was built to take its place, with the weights, hooks and form that it has."""
    for name, value in elastic.__dict__.items():
        module.__dict__.setdefault(name, value)
    registry: Mapping[str, Any] = elastic._modules
    module._modules.update(registry)
    module.__class__ = type(elastic)
