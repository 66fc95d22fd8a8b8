"""What the network of an architecture is made of: its layers, their weights, and the shapes that go through them.

It is recorded on a copy of the model without values, on the device "meta", which takes neither memory nor arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from operator import add
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._mode_utils import no_dispatch

from supernet.cost.terms import key_of
from supernet.errors import CostError, SupernetError
from supernet.execution.replace import restore
from supernet.execution.state import preserve_random_numbers
from supernet.execution.structure import leaves_of, mapped, parts_of
from supernet.execution.supernet import Supernet
from supernet.nn import Choice, Mutable, Sizes, Value
from supernet.space import Architecture, SearchSpace
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.flops import counting, flop_counter
from supernet.space.original import (
    model_itself,
    original_branches,
    original_children,
    original_modules,
    replaced_children,
)
from supernet.space.summary import called_with, moved, on_meta

__all__ = ["Call", "Part", "Recorder"]

Shape = tuple[int, ...]
Size = tuple[int, int]  # number of elements, and the bytes of one


class Call(NamedTuple):
    """One pass through a layer.

    Attributes:
        layer: The plain layer, as it stands in the frozen network, on the device "meta".
        arguments: What it is called with, (args, kwargs), its tensors on the device "meta".
        inputs: Shapes of the tensors that it is given.
        outputs: Shapes of the tensors that it gives.
        macs: Multiply-accumulates of its own matrix products, convolutions and attention.
        kind: What is equal in two layers that are alike.
        signature: What is equal in two calls that are alike.
    """

    layer: nn.Module
    arguments: Any
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: int
    kind: Any
    signature: Any


class Part(NamedTuple):
    """What stands in the network of an architecture in the place of one module of the model, without its children.

    Attributes:
        parameters: Number of elements and bytes of one element, of each of its own parameters.
        buffers: The same of its own buffers that are saved.
        calls: The passes through it in one pass of the network.
        signature: What is equal in two parts that are alike.
    """

    parameters: tuple[Size, ...]
    buffers: tuple[Size, ...]
    calls: tuple[Call, ...]
    signature: Any


class Recorder:
    """Records the parts of the networks of a model.

    A module that is called with the same shapes and under the same decisions of the choices inside it is run once:
    what went on inside is noted again from memory. Forwards that look at more than that are found out by `is_sure_of`.

    Args:
        model: A module with choices, as written or replaced, or a `Supernet`. It stays as it is.
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument. Default: nothing is run, and there are no calls.

    Attributes:
        space: The space of the model.
        remembers: Whether modules of the model's are noted from memory; else layers of torch alone, which are known to
            look at nothing else.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        model = model_itself(model)
        self.space = SearchSpace(model)
        self.remembers = True
        self._original, self._example = model, example
        self._decided: Architecture = {}
        self._use(on_meta(model), moved(example, "meta"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy begin with nothing in memory, for that is of modules by their places in this process."""
        return _copied, (type(self), self._original, self._example, self.remembers)

    def _use(self, model: nn.Module, example: Any) -> None:
        """Record on a copy of the model."""
        self._model, self._given = restore(model).eval(), example
        self._paths = {id(module): path for path, module in original_modules(self._model)}
        self._frozen_modules: dict[tuple[int, Any], nn.Module] = {}
        self._memory: dict[Any, Any] = {}  # `_Outcome`s
        self._labels: dict[int, tuple[str, ...]] = {}  # of the choices inside a module
        self._alive: list[nn.Module] = []
        self._kinds: dict[int, Any] = {}
        self._constants: dict[int, int | None] = {}  # of layers that are torch's own: which of `_alike`
        self._alike: dict[Any, int] = {}
        self._calls: dict[Any, Call] = {}  # of these layers
        self._stands: dict[Any, list[_Standing]] = {}
        self._resolved: dict[Any, nn.Module] = {}  # what choices resolve to
        self._places: dict[Any, int] = {}  # of weights in memory
        self._decisive: dict[int, tuple[str, ...]] = {}
        self._counter = flop_counter()
        self._supernet = Supernet(self._model) if self.space else None
        parents = [module for _, module in original_modules(self._model)]
        replaced = [one for parent in parents for one in replaced_children(parent).values()]
        self._choices: dict[int, nn.Module] = {id(one.module): one.choice for one in replaced}
        # What runs in the place of a choice is no module of the network.
        self._noted = {id(m): self._paths[id(m)] for m in parents if not isinstance(m, Choice | Sizes)}

    def record(self, architecture: Mapping[str, Any], *, afresh: bool = False) -> dict[str, Part]:
        """Return path in the model -> what stands there in the network of an architecture, where something does.

        Args:
            architecture: An architecture of the space, in the form that this writes.
            afresh: Whether to run the model's own modules, whatever is remembered of them. Default: not.
        """
        self._decided, self._remembering = dict(architecture), self.remembers and not afresh
        standing = self._standing(self._model, "")
        if self._given is None:
            return self._parts(standing, [])
        try:
            return self._parts(standing, self._pass())
        except Exception as error:
            if next(self._tensors(), None) is not None:
                # What needs values, such as `.item()` or `.numpy()`, runs on a copy that has them, on the CPU.
                values = with_what_cannot_be_copied(lambda memo: copy.deepcopy(self._original, memo)).cpu()
                self._use(values, moved(self._example, "cpu"))
                return self.record(architecture, afresh=afresh)
            if isinstance(error, SupernetError):
                raise
            why = f"{type(error).__name__}: {error}".splitlines()[0]  # torch lists signatures in the lines after
            raise CostError(
                f"{type(self._original).__name__} does not run on the example under {self._decided}: {why}; give what "
                "it is called with, or require what its networks need"
            ) from error

    def is_sure_of(self, architecture: Mapping[str, Any]) -> bool:
        """Say whether a network is the same from memory as it is afresh."""
        remembered, found = self.record(architecture), self.record(architecture, afresh=True)
        return remembered.keys() == found.keys() and all(
            part.signature == remembered[path].signature for path, part in found.items()
        )

    def _parts(self, standing: list[_Standing], noted: list[tuple[str, Call]]) -> dict[str, Part]:
        counts: dict[str, _Counts] = {}
        seen: set[int] = set()
        for one in standing:
            counted = one.counts if seen.isdisjoint(one.places) else one.counts_without(seen)
            before = counts.get(one.path)
            counts[one.path] = counted if before is None else _Counts(*map(add, before, counted))
            seen |= one.places
        calls: dict[str, list[Call]] = {}
        for path, call in noted:
            calls.setdefault(path, []).append(call)
        found = {}
        for path in counts.keys() | calls.keys():
            numbers, called = counts.get(path, _NOTHING), tuple(calls.get(path, ()))
            if called or any(numbers):
                signature = *numbers, tuple([call.signature for call in called])
                found[path] = Part(*numbers, called, signature)
        return found

    def _tensors(self) -> Iterator[torch.Tensor]:
        every = (*self._model.parameters(), *self._model.buffers(), *leaves_of(self._given))
        return (t for t in every if isinstance(t, torch.Tensor) and t.device.type == "meta")

    def _pass(self) -> list[tuple[str, Call]]:
        """Run the network, and return path and call of each of its layers."""
        mode = self._begin()
        with preserve_random_numbers(torch.device("cpu")), counting(), mode, _calls_by(self._call):
            if self._supernet is None:
                called_with(self._model, self._given)
            else:
                with self._supernet.following(self._decided):
                    called_with(self._model, self._given)
        return self._frames[0].noted

    def _begin(self) -> AbstractContextManager[Any]:
        """Begin a pass, and return what sees its operations."""
        self._counter.flop_counts.clear()
        self._frames: list[Any] = [_Frame(0)]
        return self._counter

    # --- what runs ---------------------------------------------------------------------------------------------

    def _call(self, run: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module, or remember what it gave, and note what is a layer."""
        path = self._noted.get(id(module))
        if path is None:  # a module that is none of the model's, or a choice
            return run(module, *args, **kwargs)
        stands_alone = is_layer(module)
        is_of_torch = stands_alone and self._is_of_torch(module)
        key = self._key(module, (args, kwargs), is_of_torch) if is_of_torch or self._remembering else None
        known = None if key is None else self._memory.get(key)
        if known is not None and not is_of_torch:
            self._frames[-1].noted += known.noted
            return detached(known.output)
        frame = _Frame(self._flops())
        if known is None:
            self._frames.append(frame)
            if isinstance(module, Mutable):  # runs as what it is when frozen, whose own operations are those that count
                output = self._watched(module, path)(*args, **kwargs)
            else:
                output = run(module, *args, **kwargs)
            self._frames.pop()
            inside = self._flops() - frame.start
            macs = (inside - frame.inner) // 2
            self._frames[-1].inner += inside
        else:
            output, macs = detached(known.output), known.macs
        if stands_alone or macs:
            of_layer = (id(module), key) if is_of_torch and key is not None else None
            call = self._calls.get(of_layer)
            if call is None:
                given = detached((args, kwargs))
                kind, inputs, outputs = self._kind(module), _shapes(given), _shapes(output)
                call = Call(module, given, inputs, outputs, macs, kind, (kind, inputs, outputs, macs))
                if of_layer is not None:
                    self._calls[of_layer] = call
            frame.noted.append((path, call))
        self._frames[-1].noted += frame.noted
        if known is None and key is not None and described(output) is not None:
            self._memory[key] = _Outcome(frame.noted, detached(output), macs)
        return output

    def _key(self, module: nn.Module, given: Any, is_of_torch: bool) -> Any:
        """Return what tells what a module does in a pass; None where this cannot be known."""
        what = described(given)
        if what is None:
            return None
        if is_of_torch:
            return self._constants[id(module)], what
        return id(module), key_of(self._labels_inside(module), self._decided), what

    def _is_of_torch(self, layer: nn.Module) -> bool:
        """Say whether what a layer gives follows from its constants: whether it is one of torch's own."""
        if id(layer) not in self._constants:
            weights = tuple((name, p.shape, p.dtype) for name, p in layer.named_parameters())
            constants = described({name: value for name, value in vars(layer).items() if name not in _OF_ALL_MODULES})
            hooks = layer._forward_hooks or layer._forward_pre_hooks
            is_of_torch = type(layer).__module__.startswith("torch.nn.modules.") and not hooks and constants is not None
            alike = self._alike.setdefault((type(layer), weights, constants), len(self._alike)) if is_of_torch else None
            self._constants[id(layer)] = alike
        return self._constants[id(layer)] is not None

    def _labels_inside(self, module: nn.Module) -> tuple[str, ...]:
        """Return the labels of all choices on which it may depend what goes on inside a module."""
        if id(module) not in self._labels:
            found: set[str] = set()
            stack, seen = [module], set()
            while stack:
                one = stack.pop()
                one = self._choices.get(id(one), one)
                if id(one) in seen:
                    continue
                seen.add(id(one))
                if type(one).__module__.startswith("torch.nn.modules.") and not one._modules:
                    continue  # holds no values: see `SearchSpace`
                values: list[Any] = []
                for value in vars(one).values():
                    values += value if type(value) in (list, tuple) else [value]
                choices: list[Choice] = [leaf for each in values if isinstance(each, Value) for leaf in each.leaves()]
                if isinstance(one, Choice):
                    choices.append(one)
                    stack += [child for branch in original_branches(one) for child in branch]
                elif isinstance(one, Mutable):
                    choices += one.choices()
                found.update(str(choice.label) for choice in choices)
                stack += [child for _, child in original_children(one)]
            self._labels[id(module)] = tuple(sorted(found))
            self._alive.append(module)  # so that no other module gets its place in memory
        return self._labels[id(module)]

    def _flops(self) -> int:
        return self._counter.get_total_flops()

    def _kind(self, layer: nn.Module) -> Any:
        if id(layer) not in self._kinds:
            weights = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
            self._kinds[id(layer)] = type(layer).__qualname__, layer.extra_repr(), weights
        return self._kinds[id(layer)]

    # --- what stands -------------------------------------------------------------------------------------------

    def _frozen(self, module: Mutable) -> nn.Module:
        """Return what a module that depends on values is under the present architecture; each is made once."""
        if id(module) not in self._decisive:
            self._decisive[id(module)] = tuple(str(choice.label) for choice in module.choices())
        decided = {label: self._decided.get(label) for label in self._decisive[id(module)]}
        key = id(module), tuple(decided.values())
        if key not in self._frozen_modules:
            self._frozen_modules[key] = module.frozen(decided)
        return self._frozen_modules[key]

    def _watched(self, module: Mutable, path: str) -> nn.Module:
        """Return the same, whose passes are noted under a path."""
        frozen = self._frozen(module)
        if id(frozen) not in self._paths:
            for each in frozen.modules():
                if id(each) not in self._paths:  # else it is the model's own
                    self._paths[id(each)] = self._noted[id(each)] = path
            frozen.eval()
        return frozen

    def _standing(self, module: nn.Module, path: str) -> list[_Standing]:
        """Return what has weights in the frozen network, under the path of the module in the model it stands for."""
        module = self._choices.get(id(module), module)  # for a Repeat resolves to its blocks as they are now
        path = self._paths.get(id(module), path)
        key = id(module), path, key_of(self._labels_inside(module), self._decided)
        if key not in self._stands:
            if isinstance(module, Choice):
                self._stands[key] = self._standing(self._resolve(module), path)
            else:
                frozen = self._frozen(module) if isinstance(module, Mutable) else module
                saved = [b for n, b in frozen._buffers.items() if n not in frozen._non_persistent_buffers_set]
                own = _Standing(path, self._sizes(frozen._parameters.values()), self._sizes(saved))
                found = [own] if own.places else []
                for _, child in original_children(frozen):
                    if not isinstance(child, Sizes):
                        found += self._standing(child, path)
                self._stands[key] = found
        return self._stands[key]

    def _resolve(self, choice: Choice) -> nn.Module:
        """Return what a choice is under the present architecture, which may be made anew each time, but once here."""
        key = id(choice), key_of((str(choice.label),), self._decided)
        if key not in self._resolved:
            self._resolved[key] = choice.resolve(self._decided[str(choice.label)])
        return self._resolved[key]

    def _sizes(self, tensors: Iterable[torch.Tensor | None]) -> dict[int, Size]:
        sizes = {}
        for tensor in tensors:
            if tensor is not None:
                place = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()
                sizes[self._places.setdefault(place, len(self._places))] = tensor.numel(), tensor.element_size()
        return sizes


def _copied(kind: type[Recorder], model: nn.Module, example: Any, remembers: bool) -> Recorder:
    recorder = kind(model, example)
    recorder.remembers = remembers
    return recorder


@contextmanager
def _calls_by(call: Callable[..., Any]) -> Iterator[None]:
    """Let every call of a module go by a function of (what calls it, the module, args, kwargs)."""
    run = nn.Module.__call__

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(run, module, args, kwargs)

    with patch.object(nn.Module, "__call__", called):
        yield


class _Frame:
    """A pass that is under way: the FLOPs before it, those of the modules inside, and what was noted of these."""

    def __init__(self, start: int) -> None:
        self.start, self.inner = start, 0
        self.noted: list[tuple[str, Call]] = []


class _Outcome(NamedTuple):
    noted: list[tuple[str, Call]]
    output: Any
    macs: int


class _Counts(NamedTuple):
    parameters: tuple[Size, ...]
    buffers: tuple[Size, ...]


_NOTHING = _Counts((), ())


class _Standing:
    """The weights of a module, by their places in memory: tied ones are the same part of one memory."""

    def __init__(self, path: str, parameters: dict[int, Size], buffers: dict[int, Size]) -> None:
        self.path, self._parameters, self._buffers = path, parameters, buffers
        self.places = parameters.keys() | buffers.keys()
        self.counts = self.counts_without(set())

    def counts_without(self, seen: set[int]) -> _Counts:
        """Return the sizes of those that are not counted yet."""
        parameters = tuple(size for place, size in self._parameters.items() if place not in seen)
        seen = seen | self._parameters.keys()
        return _Counts(parameters, tuple(size for place, size in self._buffers.items() if place not in seen))


_OF_ALL_MODULES = frozenset(vars(nn.Module()))


def is_layer(module: nn.Module) -> bool:
    """Say whether a module is one that has no others inside, or calls none of them."""
    # Attention reads the weights of its projection and never calls it.
    return isinstance(module, nn.MultiheadAttention) or not (module._modules or isinstance(module, Mutable))


def detached(structure: Any) -> Any:
    """Return the same without history; that is no operation of the network, and no mode sees it."""
    with no_dispatch():
        return mapped(structure, torch.Tensor.detach)


def _shapes(structure: Any) -> tuple[Shape, ...]:
    return tuple(tuple(leaf.shape) for leaf in leaves_of(structure) if isinstance(leaf, torch.Tensor))


def described(value: Any) -> Any:
    """Return what tells a structure from others, of tensors without their values; None where it may have a state."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta" or type(value) not in (torch.Tensor, nn.Parameter):
            return None
        return value.shape, value.stride(), value.dtype
    parts = parts_of(value)
    if parts is None:
        is_constant = isinstance(value, bool | int | float | str | torch.dtype | torch.device | None)
        return (type(value), value) if is_constant else None
    inner = [(name, described(part)) for name, part in parts.items()]
    return None if any(of_part is None for _, of_part in inner) else (type(value), tuple(inner))
