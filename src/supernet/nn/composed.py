"""Modules of ours that are made of choices, and the modules of torch that they become."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from supernet.nn.choice import ShowsConstructor, is_following

__all__: list[str] = []


class _GraphModuleWhenDecided(ShowsConstructor):
    """Lets a constructor inside `fixed_architecture` give a module of torch's own, as those of choices do."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        return module.as_graph_module() if is_following() else module


class Composed(nn.Module, metaclass=_GraphModuleWhenDecided):
    """A module of ours in a user's model: a cell, or a part of a published network. `freeze` makes it a graph module.

    Its `forward` is traced, so what it does may depend on how it was made, but not on its inputs or on its form.
    """

    def as_graph_module(self) -> nn.Module:
        """Return a graph module of torch that does what `forward` does, with the same submodules and names.

        A subclass with a `forward` of its own is somebody else's module, and is returned as it is.
        """
        is_ours = type(self).forward.__module__.partition(".")[0] == __name__.partition(".")[0]
        return as_graph_module(self) if is_ours else self


def as_graph_module(module: nn.Module) -> fx.GraphModule:
    """Return a graph module of torch that does what a module's `forward` does, with the same submodules and names.

    A graph module carries its code with it, so it can be copied, pickled and compiled, and needs nothing of this
    library where it is loaded.
    """
    graph = fx.Graph()  # one that does not know the tracer, which is ours
    graph.output(graph.graph_copy(_OwnForwardOnly().trace(module), {}))
    for node in graph.nodes:
        node.type = None  # annotations are texts here, which cannot be pickled as types
    return fx.GraphModule(module, graph, class_name=type(module).__name__.strip("_"))


class _OwnForwardOnly(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True
