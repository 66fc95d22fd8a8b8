"""What a network holds in memory while it runs: which operations read and make which tensors.

What a module does is noted as a function: of the tensors that it is given, operations and calls of other modules, by
names that mean something in it alone. So it depends on few choices, and a whole network is put together from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from supernet.cost.parts import Parts
from supernet.cost.recording import Recorder, described, detached
from supernet.errors import CostError
from supernet.execution.structure import mapped, tensors_of
from supernet.nn import Mutable
from supernet.space import Architecture

__all__: list[str] = []

# What a module calls a tensor's memory: ("given", i), ("made", i), or ("from", call, i) for what a call in it returned.
# None is what is no activation: weights, and constants.
Name: TypeAlias = tuple[Any, ...] | None


class Operation(NamedTuple):
    """An operation of torch.

    Attributes:
        reads: What it reads.
        makes: Bytes of each memory that it makes, and whether that is more than a by-product, such as indices.
    """

    reads: tuple[Name, ...]
    makes: tuple[tuple[int, bool], ...]


class Invocation(NamedTuple):
    """A call of another module.

    Attributes:
        path: Which.
        gives: What it is given.
    """

    path: str
    gives: tuple[Name, ...]


class Body(NamedTuple):
    """What goes on in one pass through a module.

    Attributes:
        items: Operations and calls, in their order.
        returns: What it returns.
    """

    items: tuple[Operation | Invocation, ...]
    returns: tuple[Name, ...]


class Bodies(NamedTuple):
    """What goes on in each pass through a module; the same is its signature.

    Attributes:
        signature: The passes, in the order in which they begin.
    """

    signature: tuple[Body, ...]


class BodyRecorder(Recorder):
    """Records what goes on in each module, in the place of its weights and calls: see `Recorder`."""

    def _use(self, model: nn.Module, example: Any) -> None:
        super()._use(model, example)
        for identity, choice in self._choices.items():  # where it depends on a choice what is called
            self._noted[identity] = self._paths[id(choice)]

    def _parts(self, standing: Any, noted: Any) -> dict[str, Any]:
        found: dict[str, list[Body]] = {}
        for path, body in noted:
            found.setdefault(path, []).append(body)
        return {path: Bodies(tuple(bodies)) for path, bodies in found.items()}

    def _begin(self) -> AbstractContextManager[Any]:
        self._memories: dict[int, int] = {}  # address of a storage -> its number, if it is an activation
        self._storages: list[torch.UntypedStorage] = []  # which must live on, so that no two have one address
        self._number = 0
        given: list[int | None] = [self._enter(tensor) for tensor in tensors_of(self._given)]
        self._frames = [_Frame("", given)]
        return self._watching()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        # Without gradients, as a network is deployed: torch takes other operations where a tensor has one.
        with torch.no_grad(), _Watching(self):
            yield

    def _enter(self, tensor: torch.Tensor, number: int | None = None) -> int:
        """Give the memory of a tensor a number: a new one, or that of the memory that it stands for."""
        storage = tensor.untyped_storage()
        if number is None:
            number, self._number = self._number, self._number + 1
        self._storages.append(storage)
        return self._memories.setdefault(storage._cdata, number)

    def _of(self, tensors: list[torch.Tensor]) -> list[int | None]:
        return [self._memories.get(tensor.untyped_storage()._cdata) for tensor in tensors]

    def _call(self, run: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module, or remember what it gave, and note what goes on in it."""
        path = self._noted.get(id(module))
        if path is None:
            return run(module, *args, **kwargs)
        given = self._of(tensors_of((args, kwargs)))
        is_of_torch = self._is_of_torch(module) and not module._modules
        key = self._key(module, (args, kwargs), is_of_torch) if is_of_torch or self._remembering else None
        key = None if key is None else (key, tuple(given.index(number) for number in given))
        known = None if key is None else self._memory.get(key)
        if known is None:
            frame = _Frame(path, given)
            self._frames.append(frame)
            if isinstance(module, Mutable):  # runs as what it is when frozen
                output = self._watched(module, path)(*args, **kwargs)
            else:
                output = run(module, *args, **kwargs)
            self._frames.pop()
            returns = tuple(frame.name(number) for number in self._of(tensors_of(output)))
            body, inside = Body(tuple(frame.items), returns), frame.noted
            if key is not None and described(output) is not None:
                self._memory[key] = (body, inside, detached(output))
        else:
            body, inside, output = known
            output = self._again(output, body.returns, given)
        self._frames[-1].call(path, given, self._of(tensors_of(output)))
        self._frames[-1].noted += [(path, body), *inside]
        return output

    def _again(self, output: Any, returns: tuple[Name, ...], given: list[int | None]) -> Any:
        """Return tensors as those that a module returned, in memory of their own."""
        with no_dispatch():
            output = mapped(output, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device))
        made: dict[Name, int] = {}
        for tensor, name in zip(tensors_of(output), returns, strict=True):
            if name is not None and name[0] == "given":
                number = given[name[1]]
                if number is not None:
                    self._enter(tensor, number)
            elif name is not None:
                made[name] = self._enter(tensor, made.get(name))
        return output

    def _operate(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation, and note what it reads and makes."""
        output = run(*args, **kwargs)
        given = tensors_of((args, kwargs))
        known = {tensor.untyped_storage()._cdata for tensor in given} | self._memories.keys()
        makes = []
        for position, tensor in enumerate(tensors_of(output)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:  # else it is a view, or changed in place
                known.add(storage._cdata)
                self._frames[-1].make(self._enter(tensor))
                makes.append((storage.nbytes(), position == 0))
        reads = tuple(dict.fromkeys(self._frames[-1].name(number) for number in self._of(given) if number is not None))
        if reads or makes:
            self._frames[-1].items.append(Operation(reads, tuple(makes)))
        return output


class _Watching(TorchDispatchMode):
    def __init__(self, recorder: BodyRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._recorder._operate(func, args, kwargs or {})


class _Frame:
    """A pass that is under way: what it has done, and what it calls the memories that it knows."""

    def __init__(self, path: str, given: list[int | None]) -> None:
        self.path = path
        self.items: list[Operation | Invocation] = []
        self.noted: list[tuple[str, Body]] = []  # of the modules inside, in the order in which they begin
        self._names: dict[int, Name] = {}
        self._num_made = self._num_calls = 0
        for position, number in enumerate(given):
            if number is not None:
                self._names.setdefault(number, ("given", position))

    def name(self, number: int | None) -> Name:
        if number is not None and number not in self._names:
            raise CostError(
                f"{self.path or 'the model'!r} reads a tensor that it was not given, but found in an attribute or a "
                "closure; how long that lives cannot be told: pass it as an argument"
            )
        return None if number is None else self._names[number]

    def make(self, number: int) -> None:
        self._names[number] = ("made", self._num_made)
        self._num_made += 1

    def call(self, path: str, given: list[int | None], returned: list[int | None]) -> None:
        self.items.append(Invocation(path, tuple(self.name(number) for number in given)))
        for position, number in enumerate(returned):
            if number is not None:
                self._names.setdefault(number, ("from", self._num_calls, position))
        self._num_calls += 1


class BodyParts(Parts):
    """What goes on in the parts of a model's networks: see `Parts`."""

    recorder = BodyRecorder

    def peak(self, architecture: Architecture, given: list[int]) -> int:
        """Return the most bytes that are alive at once in the network of an architecture.

        Args:
            architecture: An architecture in the form that the space writes.
            given: Bytes of each tensor of the example.
        """
        for _ in range(3):
            before = self.version
            try:
                peak = _Life(self, architecture).peak(given)
            except (LookupError, AttributeError):  # a part that is called otherwise than was foretold
                self._record(dict(architecture))
                continue
            if self.version == before:
                return peak
        return _Life(self, architecture).peak(given)


class _Life:
    """One pass of a network: when each memory is made, and when it is read last."""

    def __init__(self, parts: BodyParts, architecture: Mapping[str, Any]) -> None:
        self._parts, self._architecture = parts, architecture
        self._turns: dict[str, int] = {}
        self._now = 0
        self._sizes: list[int] = []
        self._born: list[int] = []
        self._last: list[int] = []

    def peak(self, given: list[int]) -> int:
        returned = self._call("", [self._make(size, True) for size in given])
        for memory in returned:
            if memory is not None:
                self._last[memory] = self._now
        change = [0] * (self._now + 2)
        for size, born, last in zip(self._sizes, self._born, self._last, strict=True):
            if last >= born:
                change[born] += size
                change[last + 1] -= size
        return max(accumulate(change))

    def _make(self, size: int, counts: bool) -> int:
        """Make a memory; a by-product that nothing reads is not counted."""
        self._sizes.append(size)
        self._born.append(self._now)
        self._last.append(self._now if counts else -1)
        return len(self._sizes) - 1

    def _call(self, path: str, given: list[int | None]) -> list[int | None]:
        turn = self._turns[path] = self._turns.get(path, -1) + 1
        part: Any = self._parts.part(path, self._architecture)
        body = part.signature[turn]
        made: list[int] = []
        returned: list[list[int | None]] = []

        def memory(name: Name) -> int | None:
            if name is None:
                return None
            if name[0] == "given":
                return given[name[1]]
            return made[name[1]] if name[0] == "made" else returned[name[1]][name[2]]

        for item in body.items:
            if isinstance(item, Operation):
                self._now += 1
                for name in item.reads:
                    if (read := memory(name)) is not None:
                        self._last[read] = self._now
                made += [self._make(size, counts) for size, counts in item.makes]
            else:
                returned.append(self._call(item.path, [memory(name) for name in item.gives]))
        return [memory(name) for name in body.returns]
