"""Layers of torch under Retiarii's names, where a ValueChoice may stand among a constructor's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import ChoiceError, MixtureError
from supernet.nn import Mutable, Sizes, Value, elastic

__all__ = ["layers_that_take_values"]

_NO_LAYERS = ("module", "container", "loss")


def layers_that_take_values(module: str) -> dict[str, type]:
    """Return name -> class that gives torch's layer, or where a value is to be decided one that follows it.

    Args:
        module: Name of the module in which they will be found, by those too who pickle them.
    """
    found: dict[str, type] = {}
    for name, theirs in vars(nn).items():
        room, _, file = getattr(theirs, "__module__", "").rpartition(".")
        if room != "torch.nn.modules" or file in _NO_LAYERS or not issubclass(theirs, nn.Module):
            continue
        ours = getattr(elastic, name) if name in elastic.__all__ else None
        found[name] = _TakesValues(name, (theirs,), {"__doc__": theirs.__doc__, "__module__": module}, ours=ours)
    return found


class _TakesValues(type):
    """The class of those classes, which are torch's for all else: in `isinstance`, `==` and as bases of others."""

    _theirs: type | None
    _ours: type | None

    def __new__(cls, name: str, bases: Any, members: dict[str, Any], ours: type | None = None) -> _TakesValues:
        made = super().__new__(cls, name, bases, members)
        is_users = any(isinstance(base, cls) for base in bases)
        made._theirs, made._ours = None if is_users else bases[0], ours
        return made

    def __init__(cls, name: str, bases: Any, members: dict[str, Any], ours: type | None = None) -> None:
        super().__init__(name, bases, members)

    @property
    def __signature__(cls) -> inspect.Signature:
        _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls._theirs is None:  # a user's own subclass
            return super().__call__(*args, **kwargs)
        if not any(map(_is_open, (*args, *kwargs.values()))):
            return cls._theirs(*args, **kwargs)
        return _ByValue(cls._theirs, args, kwargs) if cls._ours is None else cls._ours(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._theirs) if cls._theirs else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls._theirs) if cls._theirs else super().__subclasscheck__(subclass)

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls._theirs is not None and other is cls._theirs)

    def __hash__(cls) -> int:
        return type.__hash__(cls._theirs or cls)


def _is_open(argument: Any) -> bool:
    return isinstance(argument, Value) or (isinstance(argument, tuple | list) and any(map(_is_open, argument)))


def _as_value(argument: Any) -> Any:
    """Return a tuple or list in which values are to be decided as one value."""
    if isinstance(argument, tuple | list) and _is_open(argument):
        return Value.compute(lambda *parts: parts, *argument)
    return argument


class _ByValue(Mutable):
    """A layer that is not elastic, and has no weights: it is made anew for each value."""

    def __init__(self, make: type[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        given = {**{f"{i}": argument for i, argument in enumerate(args)}, **kwargs}
        self.sizes = Sizes(**{name: _as_value(argument) for name, argument in given.items()})
        self._make, self._count = make, len(args)
        first = self._made(self.sizes.under({str(leaf.label): leaf.candidates[0] for leaf in self.sizes.leaves()}))
        if next(first.parameters(), None) is not None or next(first.buffers(), None) is not None:
            raise ChoiceError(
                f"{make.__name__} has weights, and takes no ValueChoice; use a LayerChoice between such layers, or one "
                f"of those that do: {', '.join(elastic.__all__)}"
            )

    def _made(self, sizes: Mapping[str, Any]) -> nn.Module:
        positional, named = list(sizes.values())[: self._count], dict(list(sizes.items())[self._count :])
        layer = self._make(*positional, **named)
        layer.training = self.training
        return layer

    def run(self, sizes: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the layer of these values gives."""
        return self._made(sizes)(*args, **kwargs)

    def mixed(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the weighted sum of what all values give, which is to be of one shape."""
        outputs = [self._weighted(one, *args, **kwargs) for one in self.sizes.joint()]
        shapes = {tuple(output.shape) for output in outputs}
        if len(shapes) > 1:
            names = ", ".join(repr(str(leaf.label)) for leaf in self.sizes.leaves())
            raise MixtureError(
                f"{self._make.__name__} gives {' and '.join(map(str, sorted(shapes)))} for values of {names}, which "
                "cannot be mixed; let its padding follow, such as kernel // 2, or use a trainer that samples"
            )
        return torch.stack(outputs).sum(0)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return torch's layer of the values that are decided."""
        return self._made(self.sizes.under(decisions))
