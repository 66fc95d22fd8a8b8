"""Modules of any class, parts of whose tensors, and numbers of whose code, follow choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.errors import ChoiceError
from supernet.nn.existing.groups import Places
from supernet.nn.existing.undo import changed_attributes
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes
from supernet.nn.value import Expression, ValueChoice

__all__: list[str] = []


class Kept:
    """The places of a dimension that are kept under an architecture.

    Attributes:
        places: The places, in order.
        length: How many the dimension has.
    """

    def __init__(self, places: Tensor, length: int) -> None:
        self.places, self.length, self.count = places, length, len(places)
        self.is_first = bool((places == torch.arange(self.count)).all())

    def of(self, tensor: Tensor, dim: int) -> Tensor:
        """Return this part of a tensor: a view where it is the first, the tensor itself where it is all."""
        if self.count == self.length:
            return tensor
        if self.is_first:
            return tensor.narrow(dim, 0, self.count)
        return tensor.index_select(dim, self.places.to(tensor.device))

    def within(self, largest: Kept) -> Kept:
        """Return these places, counted in the part that is kept where the most are."""
        return Kept(torch.searchsorted(largest.places, self.places), largest.count)

    def put(self, part: Tensor, dim: int) -> Tensor:
        """Return a tensor of the whole length that has this part, else zeros."""
        shape = list(part.shape)
        shape[dim] = self.length
        return part.new_zeros(shape).index_copy(dim, self.places.to(part.device), part)

    def __index__(self) -> int:
        return self.count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and self.length == other.length and self.places.equal(other.places)

    def __hash__(self) -> int:
        return hash((self.count, self.length))

    def __repr__(self) -> str:
        return str(self.count)


class Keeping:
    """Which places of a dimension are kept, as a function of the widths of the groups that they belong to.

    Args:
        places: Which groups and units the places are of.
        units: Group -> (value of its choice, whole width, units of it).
    """

    def __init__(self, places: Places, choices: Mapping[int, tuple[Any, int, int]]) -> None:
        self.places = places
        self.choices = {g: choices[g] for g in places.groups if g in choices}
        self._kept: dict[tuple[int, ...], Kept] = {}

    def __call__(self, *widths: int) -> Kept:
        """Return the places kept where the groups' layers have these widths."""
        if widths not in self._kept:
            units = {
                g: width * num_units // whole
                for (g, (_, whole, num_units)), width in zip(self.choices.items(), widths, strict=True)
            }
            self._kept[widths] = Kept(self.places.kept(units), len(self.places.group))
        return self._kept[widths]

    @property
    def is_chosen(self) -> bool:
        """Whether any choice decides what is kept."""
        return bool(self.choices)

    @property
    def kept(self) -> Expression:
        """What is kept, as a value decided later."""
        operands = [value for value, _, _ in self.choices.values()]
        return Expression(f"kept({', '.join(['{}'] * len(operands))})", self, operands)

    @property
    def count(self) -> Any:
        """How many places are kept, as a value decided later: as plain arithmetic as it can be."""
        length = len(self.places.group)
        if len(self.choices) == 1:
            ((value, whole, _),) = self.choices.values()
            widths = value.values()
            if all(int(self(w).count) * whole == w * length for w in widths):
                if length == whole:
                    return value
                return value * (length // whole) if length % whole == 0 else value * length // whole
        return ValueChoice.compute(Count(self), *(value for value, _, _ in self.choices.values()))

    def is_first_always(self) -> bool:
        """Say whether it is always the first places that are kept, so that a slice takes them."""
        return all(kept.is_first for kept in self.kept.values())


class Count:
    """How many places are kept, as a function of the widths."""

    __name__ = "count"

    def __init__(self, keeping: Keeping) -> None:
        self.keeping = keeping

    def __call__(self, *widths: int) -> int:
        return self.keeping(*widths).count


class _Part(NamedTuple):
    """A dimension of a weight, as `Sizes.entangled` asks for it: see `supernet.nn.sizes.Span`."""

    name: str

    def part(self, weight: Tensor, dim: int, size: Kept) -> Tensor:
        return size.of(weight, dim)

    def mask(self, size: Kept, largest: Kept) -> Tensor:
        return torch.isin(largest.places, size.places)


class Following(Mutable):
    """A module of some class, parts of whose tensors and numbers of whose code follow choices: see `follow`.

    It computes what its class does, with those parts and numbers in the places of the whole ones. A mixture is the sum
    of what all sizes give where the module is a layer of known kind or has no modules inside; one that has runs once,
    with its numbers at their largest and its own weights mixed, for the layers inside mix theirs.
    """

    plain_class: type[nn.Module]
    _takes: dict[str, dict[int, str]]  # name of a tensor -> dimension -> name of the size
    _numbers: dict[str, str]  # name of an attribute -> name of the size
    _input: tuple[int, str] | None  # the dimension of the input that is a width, and which
    _is_linear: bool

    def run(self, sizes: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the module's class on the parts that are kept."""
        with self._as(self._parts(sizes), self._attributes(sizes), sizes):
            return self.plain_class.forward(self, *args, **kwargs)

    def run_part(self, sizes: Mapping[str, Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on the part that is kept of an input as wide as the widest, and put the output's where it belongs."""
        if self._input is None:
            return self.run(sizes, x, *args, **kwargs)
        dim, name = self._input
        largest = self._largest(name)
        x = largest.of(x, dim) if x.shape[dim] == largest.length else x
        kept = sizes[name].within(largest)
        return kept.put(self.run(sizes, kept.of(x, dim), *args, **kwargs), dim)

    def mixed(self, *args: Any, **kwargs: Any) -> Any:
        """Return the mixture of all sizes."""
        if isinstance(self, _BatchNorm):
            assert self._input is not None
            dim, name = self._input  # what a channel becomes does not depend on which others there are
            normalized = self._largest(name).put(self.run({name: self._largest(name)}, *args), dim)
            spans: list[Any] = [None, _Part(name)]
            return self.sizes.entangled(normalized, *spans)
        if self._input is not None and not self._is_linear:
            return super().mixed(*args, **kwargs)
        parts = {name: self._entangled(name) for name in self._takes if name in self._parameters}
        largest = {size: self._largest(size) for size in self._numbers.values()}
        with self._as(parts, self._attributes(largest)):
            return self.plain_class.forward(self, *args, **kwargs)

    def _largest(self, name: str) -> Kept:
        """Return what the largest size takes of those that are mixed."""
        return max((one.sizes[name] for one in self.sizes.joint()), key=int)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a module of the plain class, with the parts that are kept."""
        sizes = self.sizes.under(decisions)
        plain = self.plain_class.__new__(self.plain_class)
        plain.__dict__.update({key: value for key, value in self.__dict__.items() if key not in _OF_OURS})
        for registry in ("_parameters", "_buffers", "_modules"):
            plain.__dict__[registry] = dict(self.__dict__[registry])
        plain._modules.pop("sizes")
        for name, part in self._parts(sizes).items():
            if name in plain._parameters:
                requires_grad = self._parameters[name].requires_grad  # type: ignore[union-attr]
                plain._parameters[name] = nn.Parameter(part.detach(), requires_grad=requires_grad)
            else:
                plain._buffers[name] = part.detach()
        plain.__dict__.update({**self._attributes(sizes), **changed_attributes(self)})
        return plain

    def _parts(self, sizes: Mapping[str, Any]) -> dict[str, Tensor]:
        parts = {}
        for name, dims in self._takes.items():
            tensor = self._tensor(name)
            for dim, size in dims.items():
                tensor = sizes[size].of(tensor, dim)
            parts[name] = tensor
        return parts

    def _tensor(self, name: str) -> Tensor:
        tensor = self._parameters.get(name, self._buffers.get(name))
        assert tensor is not None
        return tensor

    def _attributes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {name: int(sizes[size]) for name, size in self._numbers.items()}
        if "normalized_shape" in found:
            found["normalized_shape"] = (found["normalized_shape"],)
        return found

    def _entangled(self, name: str) -> Tensor:
        tensor, dims = self._tensor(name), self._takes[name]
        spans: list[Any] = [_Part(dims[dim]) if dim in dims else None for dim in range(max(dims) + 1)]
        return self.sizes.entangled(tensor, *spans)

    @contextmanager
    def _as(
        self, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any], sizes: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Let the module have these tensors and attributes for a moment; keep what it changed of buffers' parts."""
        whole = {name: self._tensor(name) for name in tensors}
        before = {name: self.__dict__[name] for name in attributes}
        try:
            self._set(tensors)
            self.__dict__.update(attributes)
            yield
        finally:
            self._set(whole)
            self.__dict__.update(before)
        if sizes is not None and self.training:
            with torch.no_grad():
                for name in self._buffers.keys() & tensors.keys():
                    ((dim, size),) = self._takes[name].items()
                    if not sizes[size].is_first:  # else the part is a view
                        whole[name].index_copy_(dim, sizes[size].places.to(whole[name].device), tensors[name])

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in the places of parameters and buffers, past torch's check that these are parameters."""
        for name, tensor in tensors.items():
            registry: dict[str, Any] = self._parameters if name in self._parameters else self._buffers
            registry[name] = tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let copies be made by the plain class, for this one is made anew for each."""
        return _remade, (self.plain_class,), self.__dict__


_OF_OURS = frozenset({"_takes", "_numbers", "_input", "_is_linear", "_supernet_plain"})


_CLASSES: dict[type[nn.Module], type[Following]] = {}


def following_class(plain_class: type[nn.Module]) -> type[Following]:
    """Return the class of modules that compute what this one does, on parts."""
    if plain_class not in _CLASSES:
        try:
            made = type(plain_class.__name__, (Following, plain_class), {"plain_class": plain_class})
        except TypeError as error:
            raise ChoiceError(
                f"{plain_class.__name__} cannot be made elastic, for its class cannot be extended: {error}"
            ) from error
        _CLASSES[plain_class] = made
    return _CLASSES[plain_class]


def _remade(plain_class: type[nn.Module]) -> Following:
    cls = following_class(plain_class)
    return cls.__new__(cls)


def follow(
    module: nn.Module,
    takes: Mapping[str, Mapping[int, Keeping]],
    numbers: Mapping[str, Keeping],
    input_of: tuple[int, Keeping] | None,
    is_linear: bool,
) -> None:
    """Let parts of a module's tensors, and numbers of its code, follow choices, in place."""
    sizes: dict[str, Any] = {}
    names: dict[int, str] = {}

    def name_of(keeping: Keeping, name: str) -> str:
        if id(keeping) not in names:
            names[id(keeping)], sizes[name] = name, keeping.kept
        return names[id(keeping)]

    by_tensor = {
        name: {dim: name_of(keeping, f"{name}_{dim}") for dim, keeping in dims.items()} for name, dims in takes.items()
    }
    by_attribute = {name: name_of(keeping, name) for name, keeping in numbers.items()}
    given = None if input_of is None else (input_of[0], name_of(input_of[1], "input"))
    module.__class__ = following_class(type(module))
    assert isinstance(module, Following)
    module.__dict__.update(_takes=by_tensor, _numbers=by_attribute, _input=given, _is_linear=is_linear)
    module._modules["sizes"] = Sizes(**sizes)
