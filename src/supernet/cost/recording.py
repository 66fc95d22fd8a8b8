"""What the network of an architecture is made of: its layers, their weights, and the shapes that go through them.

It is recorded on a copy of the model without values, on the device "meta", which takes neither memory nor arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.execution.replace import restore
from supernet.execution.state import preserve_random_numbers
from supernet.execution.structure import leaves_of
from supernet.execution.supernet import Supernet
from supernet.nn import Choice, Mutable, Sizes
from supernet.space import Architecture, SearchSpace
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.original import model_itself, original_children, original_modules, replaced_children
from supernet.space.summary import called_with, moved, on_meta

__all__ = ["Call", "Part", "Recorder"]

Shape = tuple[int, ...]


class Call(NamedTuple):
    """One pass through a layer.

    Attributes:
        layer: The plain layer, as it stands in the frozen network, on the device "meta".
        inputs: Shapes of the tensors that it is given.
        outputs: Shapes of the tensors that it gives.
        macs: Multiply-accumulates of its own matrix products, convolutions and attention.
    """

    layer: nn.Module
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: int


class Part(NamedTuple):
    """What stands in the network of an architecture in the place of one module of the model, without its children.

    Attributes:
        parameters: Number of elements and bytes of one element, of each of its own parameters.
        buffers: The same of its own buffers that are saved.
        calls: The passes through it in one pass of the network.
        signature: What is equal in two parts that are alike.
    """

    parameters: tuple[tuple[int, int], ...]
    buffers: tuple[tuple[int, int], ...]
    calls: tuple[Call, ...]
    signature: Any


class Recorder:
    """Records the parts of the networks of a model.

    Args:
        model: A module with choices, as written or replaced, or a `Supernet`. It stays as it is.
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument. Default: nothing is run, and there are no calls.

    Attributes:
        space: The space of the model.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        model = model_itself(model)
        self.space = SearchSpace(model)
        self._original, self._example = model, example
        self._decided: Architecture = {}
        self._use(on_meta(model), moved(example, "meta"))

    def _use(self, model: nn.Module, example: Any) -> None:
        """Record on a copy of the model."""
        self._model, self._given = restore(model), example
        self._paths = {id(module): path for path, module in original_modules(self._model)}
        self._plain: dict[tuple[int, Any], nn.Module] = {}
        self._stack: list[_Frame] = []
        self._calls: dict[str, list[Call]] = {}
        self._counter = FlopCounterMode(display=False)
        self._supernet = Supernet(self._model) if self.space else None
        parents = [module for _, module in original_modules(self._model)]
        replaced = [one for parent in parents for one in replaced_children(parent).values()]
        self._choices: dict[int, nn.Module] = {id(one.module): one.choice for one in replaced}
        if example is not None:
            for path, module in original_modules(self._model):
                if isinstance(module, Mutable):
                    # Runs as what it is when frozen, whose own operations are those that count.
                    module.__dict__["forward"] = _AsFrozen(self, module)
                if not isinstance(module, Choice | Sizes):
                    self._watch(module, path)

    def record(self, architecture: Mapping[str, Any]) -> dict[str, Part]:
        """Return path in the model -> what stands there in the network of an architecture, where something does.

        Args:
            architecture: An architecture of the space, in the form that this writes.
        """
        self._decided, self._calls = dict(architecture), {}
        if self._given is not None:
            self._run()
        parts: dict[str, _Counts] = {}
        seen: set[Any] = set()
        for path, plain in self._plain_modules(self._model, "", {}):
            counts = parts.setdefault(path, _Counts([], []))
            counts.parameters.extend(_sizes(plain._parameters, seen))
            saved = {n: b for n, b in plain._buffers.items() if n not in plain._non_persistent_buffers_set}
            counts.buffers.extend(_sizes(saved, seen))
        found = {}
        for path in parts.keys() | self._calls.keys():
            counts, calls = parts.get(path, _Counts([], [])), tuple(self._calls.get(path, ()))
            if counts.parameters or counts.buffers or calls:
                numbers = tuple(counts.parameters), tuple(counts.buffers)
                signature = *numbers, tuple((_kind(c.layer), c.inputs, c.outputs, c.macs) for c in calls)
                found[path] = Part(*numbers, calls, signature)
        return found

    def _run(self) -> None:
        try:
            self._pass()
        except (RuntimeError, NotImplementedError):
            if next(self._tensors(), None) is None:  # it has values already, so what is wrong is the user's to know
                raise
            # What needs values, such as `.item()`, runs on a copy that has them.
            values = with_what_cannot_be_copied(lambda memo: copy.deepcopy(self._original, memo))
            self._use(values, self._example)
            self._pass()

    def _tensors(self) -> Iterator[torch.Tensor]:
        every = (*self._model.parameters(), *self._model.buffers(), *leaves_of(self._given))
        return (t for t in every if isinstance(t, torch.Tensor) and t.device.type == "meta")

    def _pass(self) -> None:
        for _ in self._plain_modules(self._model, "", {}):
            pass  # what depends on values is frozen now: making a weight may take products that no network has
        self._model.eval()
        self._counter.flop_counts.clear()
        self._stack = [_Frame("", 0)]
        # With gradients: without, torch's MultiheadAttention takes a way of its own, which is not counted.
        with preserve_random_numbers(torch.device("cpu")), torch.enable_grad(), self._counter:
            if self._supernet is None:
                called_with(self._model, self._given)
            else:
                with self._supernet.following(self._decided):
                    called_with(self._model, self._given)

    # --- what runs ---------------------------------------------------------------------------------------------

    def _watch(self, module: nn.Module, path: str) -> None:
        """Let each pass through a module be noted under a path."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append(_Frame(path, self._flops()))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            frame = self._stack.pop()
            inside = self._flops() - frame.start
            self._stack[-1].inner += inside
            macs = (inside - frame.inner) // 2
            if _stands_alone(module) or macs:
                call = Call(module, _shapes((args, kwargs)), _shapes(output), macs)
                self._calls.setdefault(path, []).append(call)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    def _flops(self) -> int:
        return sum(self._counter.flop_counts["Global"].values())

    # --- what stands -------------------------------------------------------------------------------------------

    def frozen(self, module: Mutable) -> nn.Module:
        """Return what a module that depends on values is under the present architecture; each is made once."""
        decided = {str(choice.label): self._decided.get(str(choice.label)) for choice in module.choices()}
        key = id(module), tuple(decided.values())
        if key not in self._plain:
            self._plain[key] = module.frozen(decided)
        return self._plain[key]

    def watched(self, module: Mutable, path: str) -> nn.Module:
        """Return the same, whose passes are noted under a path."""
        plain = self.frozen(module)
        if id(plain) not in self._paths:
            for each in plain.modules():
                if id(each) not in self._paths:  # else it is the model's own
                    self._paths[id(each)] = path
                    self._watch(each, path)
            plain.eval()
        return plain

    def _plain_modules(
        self, module: nn.Module, path: str, seen: dict[int, nn.Module]
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the frozen network, each with the path of the one in the model that it stands for."""
        module = self._choices.get(id(module), module)  # for a Repeat resolves to its blocks as they are now
        if id(module) in seen or isinstance(module, Sizes):
            return
        seen[id(module)] = module  # which must live on: what a choice resolves to may be made anew, in its memory
        path = self._paths.get(id(module), path)
        if isinstance(module, Choice):
            yield from self._plain_modules(module.resolve(self._decided[str(module.label)]), path, seen)
            return
        plain = self.frozen(module) if isinstance(module, Mutable) else module
        yield path, plain
        for _, child in original_children(plain):
            yield from self._plain_modules(child, path, seen)


class _AsFrozen:
    """The forward of a module that depends on values, as the plain module that it becomes."""

    def __init__(self, recorder: Recorder, module: Mutable) -> None:
        self._recorder, self._module = recorder, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path = self._recorder._paths[id(self._module)]
        return self._recorder.watched(self._module, path)(*args, **kwargs)


class _Frame:
    """A pass that is under way: its path, the FLOPs before it, and those of the modules inside."""

    def __init__(self, path: str, start: int) -> None:
        self.path, self.start, self.inner = path, start, 0


class _Counts(NamedTuple):
    parameters: list[tuple[int, int]]
    buffers: list[tuple[int, int]]


def _stands_alone(module: nn.Module) -> bool:
    # Attention reads the weights of its projection and never calls it.
    return isinstance(module, nn.MultiheadAttention) or not (module._modules or isinstance(module, Mutable))


def _sizes(tensors: Mapping[str, torch.Tensor | None], seen: set[Any]) -> Iterator[tuple[int, int]]:
    """Yield numbers of elements and their bytes, of each tensor once: tied ones are the same part of one memory."""
    for tensor in tensors.values():
        if tensor is None:
            continue
        place = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()
        if place not in seen:
            seen.add(place)
            yield tensor.numel(), tensor.element_size()


def _shapes(structure: Any) -> tuple[Shape, ...]:
    return tuple(tuple(leaf.shape) for leaf in leaves_of(structure) if isinstance(leaf, torch.Tensor))


def _kind(layer: nn.Module) -> Any:
    weights = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
    return type(layer).__qualname__, layer.extra_repr(), weights
