"""The state that a trainer names by `stateful()`: what a checkpoint holds of it, and how it comes back.

At a resume each object is brought back in place, so that whoever else holds it, say an optimizer, goes on with the same
one: tensors, generators, containers, dataclasses, and objects by their `load_state_dict`. What cannot change in place,
such as a number, is set as the trainer's attribute of that name.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
import inspect
import json
import logging
import random
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from supernet.errors import FileFormatError, TrainingError
from supernet.execution.state import overwritten
from supernet.files.checkpoint import StateDict
from supernet.files.digests import bits, digest_of
from supernet.files.encoding import check_can_be_saved, encoded

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []

logger = logging.getLogger("supernet")

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LEAVES = (
    *(torch.Tensor, np.ndarray, torch.Generator, random.Random),
    *(np.random.Generator, np.random.BitGenerator, np.random.RandomState),
)
_MISSING = object()


class NamedState:
    """The state that a trainer names, and what it may have forgotten to name.

    A trainer of somebody else that does not override `stateful`, as those written before there was one, has its
    attributes scanned: see `can_be_scanned`. So has one of ours for what is set on it from outside.

    Args:
        trainer: The trainer whose state it is.
    """

    def __init__(self, trainer: TrainingLoop) -> None:
        self._trainer = trainer
        self._before_fit: frozenset[str] | None = None  # attributes that the constructor has made
        self._watched: dict[str, str] = {}
        self._warned: set[str] = set()
        self._classes: set[type] = set()  # those that may be made at a resume, as far as the beginning knows them
        self._refused: set[str] = set()  # of what is scanned

    def begin(self) -> None:
        """Look before the first step whether all that is named can be saved and brought back.

        Raises:
            TrainingError: Something of it cannot be; names it.
        """
        trainer = self._trainer
        if self._before_fit is None:
            self._before_fit = frozenset(vars(trainer))
        named = self._named()
        self._classes = self.classes()
        self._check(named, _for_saving(named, {}))
        self._leave_out_what_cannot_be_saved(named)
        self._warn_of_scanned(self._scanned(named))
        self._watched = dict(self._digests(named))

    def to_tree(self) -> dict[str, Any]:
        """Return what a checkpoint holds.

        Raises:
            TrainingError: Something that was not there at the beginning cannot be brought back; names it.
        """
        named = self._named()
        self._warn_of_forgotten(named)
        memo: dict[int, Any] = {}
        tree, scanned = _for_saving(named, memo), self._scanned(named)
        self._warn_of_scanned(scanned)
        self._check(named, tree)
        made = [name for name in scanned if name not in (self._before_fit or ())]
        return {"named": tree, "scanned": _for_saving(scanned, memo), "made_in_training": made}

    def load(self, tree: Mapping[str, Any], own: Any, saved: Any, source: Any) -> None:
        """Bring the trainer's state back.

        Args:
            tree: The tree as `to_tree` returned it, read again.
            own: Objects that the loop itself has loaded, in containers.
            saved: What was read for these objects, which `tree` may contain too.
            source: The file, for messages.

        Raises:
            TrainingError: The trainer cannot take it; names what.
        """
        trainer, named = self._trainer, self._named()
        restoration, here, wanted = self._paired(tree, own, saved, source)
        for name in [name for name in self._scanned(named) if name not in here]:
            delattr(trainer, name)  # training made it, after the checkpoint
        for name, value in wanted.items():
            result = restoration.result(value)
            if result is here.get(name, _MISSING):
                continue
            if name in named and not _holds(trainer, name, named[name]):
                raise TrainingError(
                    f"{source} has another {type(result).__name__} as {name!r} than can be brought back into the one "
                    f"that {self._method()} gives; name it as the attribute of the trainer that holds it"
                )
            setattr(trainer, name, result)

    def check(self, tree: Mapping[str, Any], own: Any, saved: Any, source: Any) -> None:
        """Look whether `load` can take these, as far as that can be known; the trainer stays as it is.

        Raises:
            TrainingError: It cannot; names what.
            FileFormatError: Something is lacking.
        """
        restoration, _, wanted = self._paired(tree, own, saved, source)
        for name, value in wanted.items():
            restoration.check(name, value)

    def _paired(
        self, tree: Mapping[str, Any], own: Any, saved: Any, source: Any
    ) -> tuple[_Restoration, dict[str, Any], dict[str, Any]]:
        """Return what restores, and by name what is here and what is to be."""
        named, tree = self._named(), {**tree, "named": self._trainer.upgraded_state(tree["named"])}
        scanned = self._scanned(named)
        if missing := [name for name in named if name not in tree["named"]]:
            raise FileFormatError(f"{source} has no state of {', '.join(missing)}, which {self._method()} names")
        for name in [name for name in scanned if name not in tree["scanned"]]:
            if name in (self._before_fit or ()):
                raise FileFormatError(f"{source} has no state of {name}, which the constructor makes")
            del scanned[name]  # training made it, after the checkpoint
        made = {name for name in tree["made_in_training"] if name not in scanned}
        known = {n: v for n, v in tree["scanned"].items() if n in scanned or n in made}
        wanted, here = {**tree["named"], **known}, {**named, **scanned}
        restoration = _Restoration(source)
        restoration.pair(own, saved)
        restoration.take_as_done()
        restoration.pair(here, wanted)
        return restoration, here, wanted

    def check_version_1(self, saved: Mapping[str, Any], made: list[str], source: Any) -> None:
        """Look whether `load_version_1` can take these, as far as that can be known; the trainer stays as it is."""
        named, saved = self._named(), self._trainer.upgraded_state(saved)
        for name in {**named, **self._scanned(named)}:
            if name not in saved and name in (self._before_fit or ()):
                raise FileFormatError(f"{source} has no state of {name}, which this trainer has")
        for name in set(made) - vars(self._trainer).keys():
            _check_is_no_object(name, saved[name], source)

    def load_version_1(self, saved: Mapping[str, Any], made: list[str]) -> None:
        """Bring back what a checkpoint of version 1 holds: attributes by name, whether they are named now or not."""
        trainer, named = self._trainer, self._named()
        saved = trainer.upgraded_state(saved)
        for name, value in {**named, **self._scanned(named)}.items():
            if name in saved or name in (self._before_fit or ()):
                setattr(trainer, name, _loaded(value, saved[name]))
            else:  # training made it, after the checkpoint
                delattr(trainer, name)
        for name in set(made) - vars(trainer).keys():
            setattr(trainer, name, saved[name])

    def values(self) -> dict[str, Any]:
        """Return name -> what is named and what is scanned, as it is now."""
        named = self._named()
        return dict(sorted({**named, **self._scanned(named)}.items()))

    def digest(self) -> str:
        """Return a digest of all that a checkpoint holds of what is named and what is scanned."""
        return digest_of(_for_saving(self.values(), {}))

    def unnoted_options(self) -> dict[str, Any]:
        """Return the attributes that are numbers and texts, which may be options that were not noted."""
        return {n: v for n, v in self._others().items() if isinstance(v, bool | int | float | str)}

    def unnamed(self) -> list[str]:
        """Return the attributes that checkpoints hold only since they are scanned, which will end."""
        return self._found(self._scanned(self._named()))

    def _found(self, scanned: Mapping[str, Any]) -> list[str]:
        return sorted(scanned.keys() - _own_arguments(type(self._trainer)))

    def classes(self) -> set[type]:
        """Return the classes that a checkpoint's content may have beside those of Python, NumPy and torch.

        They are those that the modules of the trainer's classes know, and those of the state as it is now.
        """
        result: set[type] = {StateDict}
        for cls in type(self._trainer).__mro__:
            for found in (*vars(sys.modules.get(cls.__module__, cls)).values(), *vars(cls).values()):
                if isinstance(found, type) and _makes_content(found):
                    result.add(found)
        for value in _objects(_for_saving(self.values(), {})):
            if _makes_content(type(value)):
                result.add(type(value))
        return result

    # --- what there is ---------------------------------------------------------------------------------------

    def _method(self) -> str:
        return f"{type(self._trainer).__name__}.stateful()"

    def _named(self) -> dict[str, Any]:
        named = self._trainer.stateful()
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
            raise TrainingError(f"{self._method()} is to return a dict, name -> state, not {named!r:.80}")
        return named

    def _others(self) -> dict[str, Any]:
        """Return the attributes that are neither the loop's nor free options."""
        trainer = self._trainer
        left_out = trainer._ours | trainer._free_options
        return {name: value for name, value in sorted(vars(trainer).items()) if name not in left_out}

    def _scanned(self, named: Mapping[str, Any]) -> dict[str, Any]:
        if _names_its_state(self._trainer):
            return {}
        cls = type(self._trainer)
        left_out = {*named, *self._refused, *(_own_arguments(cls) if _is_ours(cls) else ())}
        return {name: v for name, v in self._others().items() if name not in left_out and can_be_scanned(v)}

    def _check(self, named: Mapping[str, Any], tree: Any) -> None:
        """Raise `TrainingError` unless what is named can be saved and brought back."""
        for name, value in named.items():
            if _changes_in_place(value) and not _is_part_of_others(value):
                continue
            if not _holds(self._trainer, name, value):
                raise TrainingError(
                    f"{self._method()} names {name!r}, a {type(value).__name__}, which can only be set as an "
                    "attribute, and the trainer has none of that name that holds it; name it as the attribute that does"
                )
            of_class = getattr(type(self._trainer), name, None)
            if isinstance(of_class, property) and of_class.fset is None:
                raise TrainingError(
                    f"{self._method()} names {name!r}, a property that cannot be set; name the attribute behind it"
                )
        check_can_be_saved(tree, self._method(), self._classes)

    def _leave_out_what_cannot_be_saved(self, named: Mapping[str, Any]) -> None:
        """Scan no attribute that a checkpoint cannot hold, and say which."""
        for name, value in self._scanned(named).items():
            if problem := _problem_of_saving(name, value):
                self._refused.add(name)
                logger.warning("checkpoints of %s do not hold %s: %s", type(self._trainer).__name__, name, problem)

    def _warn_of_scanned(self, scanned: Mapping[str, Any]) -> None:
        trainer = self._trainer
        found = [name for name in self._found(scanned) if name not in self._warned]
        if found and trainer._run.directory is not None and trainer.fabric.is_global_zero:
            self._warned |= set(found)
            warnings.warn(
                f"{type(trainer).__name__} has state that it does not name ({', '.join(found)}), which checkpoints "
                "hold since its attributes are scanned; that will end: override stateful() and return it there, "
                f'{{**super().stateful(), "{found[0]}": self.{found[0]}, ...}}',
                DeprecationWarning,
                stacklevel=_outside(),
            )

    # --- what was forgotten ----------------------------------------------------------------------------------

    def _digests(self, named: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a digest of each plain attribute that no checkpoint holds."""
        trainer = self._trainer
        left_out = {*named, *self._scanned(named)}
        others = {name: value for name, value in self._others().items() if name not in left_out}
        if not others:
            return
        modules = [m for m in (trainer.model, trainer.loss) if isinstance(m, nn.Module)]
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())] + trainer.parameters_outside()
        of_the_loop = [vars(trainer).get(name) for name in trainer._ours]
        inner = [m for module in modules for m in module.modules()]
        # What a checkpoint holds in another place, under another name.
        known = {id(value) for value in (*_objects(named), *_objects(of_the_loop), *inner, *tensors)}
        memory = {_memory_of(tensor) for tensor in tensors}
        for name, value in others.items():
            if inspect.isroutine(value) or _is_elsewhere(value, known, memory):
                continue
            table = None
            with suppress(Exception):  # of what is nothing plain
                table = encoded(_for_saving(value, dict.fromkeys(known)), name)
            if table is None:
                continue
            digest = hashlib.sha256(json.dumps([table.nodes, table.root]).encode())
            for tensor in table.tensors:
                if _memory_of(tensor) not in memory:
                    digest.update(bits(tensor).data)
            yield name, digest.hexdigest()

    def _warn_of_forgotten(self, named: Mapping[str, Any]) -> None:
        if not self._trainer.fabric.is_global_zero:
            return
        changed = [n for n, d in self._digests(named) if n not in self._warned and self._watched.get(n) != d]
        if changed:
            self._warned |= set(changed)
            logger.warning(
                "%s has changed in training, and %s does not name it: no checkpoint holds it, so a search that goes on "
                "would be without it; return it there if it is state",
                *(", ".join(changed), self._method()),
            )


def can_be_scanned(value: Any) -> bool:
    """Say whether an attribute that is not named is kept nevertheless, as it was before there was `stateful`."""
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor | torch.Generator):
        return True
    if isinstance(value, list | tuple):
        return all(can_be_scanned(item) for item in value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and can_be_scanned(item) for key, item in value.items())
    return _has_state_dict(value)


def _problem_of_saving(name: str, value: Any) -> TrainingError | None:
    try:
        check_can_be_saved(_for_saving(value, {}), name)
    except TrainingError as error:
        return error
    return None


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load the state, each tensor in its parameter's memory format: kernels sum in the order of memory."""
    optimizer.load_state_dict(state)
    inner = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper has the optimizer inside
    for parameter, own_state in inner.state.items():
        for name, value in own_state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                own_state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "supernet"


def _names_its_state(trainer: TrainingLoop) -> bool:
    """Say whether somebody else than this library has written the trainer's `stateful`."""
    return "stateful" in vars(trainer) or not _is_ours(next(c for c in type(trainer).__mro__ if "stateful" in vars(c)))


def _own_arguments(cls: type) -> set[str]:
    """Return the arguments of our constructors: attributes of these names are options, or named."""
    ours = [c for c in cls.__mro__ if _is_ours(c) and "__init__" in vars(c)]
    return {name for c in ours for name in inspect.signature(vars(c)["__init__"]).parameters}


def _outside() -> int:
    """Return the `stacklevel` of the first caller of the one that asks who is not of this library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("supernet", "contextlib"):
        level, frame = level + 1, frame.f_back
    return level


def _holds(trainer: Any, name: str, value: Any) -> bool:
    """Say whether the trainer's attribute of that name holds the value."""
    present = getattr(trainer, name, _MISSING)
    is_scalar = type(present) is type(value) and isinstance(value, int | float | str)
    return present is value or (is_scalar and present == value)


# --- kinds of values ---------------------------------------------------------------------------------------


def _has_state_dict(value: Any) -> bool:
    is_object = not isinstance(value, torch.Tensor | type)
    return is_object and hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _makes_content(cls: type) -> bool:
    is_namedtuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum) or is_namedtuple


def _is_tuple(value: Any) -> bool:
    return type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _changes_in_place(value: Any) -> bool:
    if type(value) in (list, set, deque, bytearray, *_DICTS):
        return True
    return isinstance(value, _LEAVES) or _has_state_dict(value) or _is_dataclass(value)


def _parts(value: Any) -> list[Any]:
    """Return what stands in a container; of a dict the values alone."""
    if type(value) in _DICTS:
        return list(value.values())
    if type(value) in (list, deque) or _is_tuple(value):
        return list(value)
    if _is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if type(value) is np.random.Generator:
        return [value.bit_generator]
    return []


def _objects(value: Any) -> Iterator[Any]:
    """Yield the value and what stands in it to any depth, each once, but for what has no identity of its own."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or value is None or isinstance(value, bool | int | float | str):
            continue
        seen.add(id(value))
        yield value
        if not _has_state_dict(value):
            keys = value if type(value) in (set, frozenset, *_DICTS) else ()
            waiting += [*keys, *_parts(value)]


def _is_elsewhere(value: Any, known: set[int], memory: set[int]) -> bool:
    """Say whether all that stands in a value is known from another place."""
    if id(value) in known or (isinstance(value, torch.Tensor) and _memory_of(value) in memory):
        return True
    parts = _parts(value)
    return bool(parts) and all(_is_elsewhere(part, known, memory) for part in parts)


def _for_saving(value: Any, memo: dict[int, Any]) -> Any:
    """Return the value with a `StateDict` in the place of each object that has one; what has none in it stays itself.

    Args:
        value: A value of any kind.
        memo: Identity of a value -> what stands for it.
    """
    if id(value) in memo:
        return memo[id(value)]
    if _has_state_dict(value):
        state = value.state_dict()
        buffers = dict(value.named_buffers()) if isinstance(value, nn.Module) else {}
        left_out = {name: buffer for name, buffer in buffers.items() if name not in state}
        memo[id(value)] = StateDict(type(value).__qualname__, state, left_out)
        return memo[id(value)]
    parts = _parts(value)
    if not parts or type(value) is np.random.Generator:
        return value
    memo[id(value)] = value  # a cycle ends here; the codec names it
    new = [_for_saving(part, memo) for part in parts]
    if any(a is not b for a, b in zip(parts, new, strict=True)):
        memo[id(value)] = _rebuilt(value, new)
    return memo[id(value)]


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """Return a container of the same kind with other parts."""
    if _is_tuple(value):
        return tuple.__new__(type(value), parts)
    result = copy.copy(value)
    _fill(result, parts, list(value) if type(value) in _DICTS else [])
    return result


def _fill(container: Any, parts: list[Any], keys: list[Any]) -> None:
    """Put other parts into a container."""
    if type(container) in _DICTS:
        container.clear()
        for key, part in zip(keys, parts, strict=True):
            container[key] = part
    elif type(container) in (list, deque):
        container.clear()
        container.extend(parts)
    else:
        for field, part in zip(dataclasses.fields(container), parts, strict=True):
            object.__setattr__(container, field.name, part)  # a frozen one too


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


# --- loading -------------------------------------------------------------------------------------------------


class _Restoration:
    """Lets objects that are here become what was read.

    Args:
        source: The file, for messages.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._here: dict[int, Any] = {}  # id of what was read -> the object that is to become it
        self._matched: set[int] = set()  # objects here, each of which becomes one thing alone
        self._memory: Counter[int] = Counter()  # of tensors here -> how many stand in it
        self._done: dict[int, Any] = {}  # id of what was read -> what stands for it here

    def pair(self, here: Any, saved: Any) -> None:
        """Find for each object that was read the one that is to become it."""
        is_object = isinstance(saved, StateDict) and _has_state_dict(here)
        if id(saved) in self._here or not (is_object or type(here) is type(saved)):
            return
        if is_object or _changes_in_place(saved):
            if id(here) in self._matched:
                return
            self._here[id(saved)] = here
            self._matched.add(id(here))
            if isinstance(here, torch.Tensor):
                self._memory[_memory_of(here)] += 1
        if is_object:
            return
        if type(saved) in _DICTS:
            for key, part in saved.items():
                key = self._here.get(id(key), key)
                if key in here:
                    self.pair(here[key], part)
        else:
            for part_here, part in zip(_parts(here), _parts(saved), strict=False):
                self.pair(part_here, part)

    def take_as_done(self) -> None:
        """Leave all that has been paired as it is."""
        self._done |= self._here

    def check(self, name: str, saved: Any) -> None:
        """Raise if an object's state was read, and the object is not here."""
        for value in _objects(saved):
            if isinstance(value, StateDict) and id(value) not in self._here:
                raise TrainingError(
                    f"{self._source} has the state of a {value.kind} in {name!r}, which this trainer makes only while "
                    "it trains; make it in the constructor, where it can be brought back"
                )

    def result(self, saved: Any) -> Any:
        """Return what stands for it here: the object that has become it, or where there is none what was read."""
        if id(saved) in self._done:
            return self._done[id(saved)]
        here = self._here.get(id(saved), saved)
        if isinstance(saved, StateDict):
            self._load(here, saved)
        elif type(saved) is frozenset:
            here = frozenset(map(self.result, saved))
        elif type(saved) is set:
            items = list(map(self.result, saved))
            here.clear()
            here.update(items)
        elif _is_tuple(saved):
            here = tuple.__new__(type(saved), map(self.result, saved))
        elif type(saved) is deque and here.maxlen != saved.maxlen:
            here = deque(map(self.result, saved), saved.maxlen)
        elif type(saved) is np.random.Generator:
            bits = self.result(saved.bit_generator)
            here = here if here.bit_generator is bits else np.random.Generator(bits)
        elif type(saved) in (list, deque, *_DICTS) or _is_dataclass(saved):
            keys = list(map(self.result, saved)) if type(saved) in _DICTS else []
            _fill(here, list(map(self.result, _parts(saved))), keys)
            if type(saved) is defaultdict:
                here.default_factory = saved.default_factory
        elif here is not saved and not self._becomes(here, saved):
            here = saved
        self._done[id(saved)] = here
        return here

    def _load(self, here: Any, saved: StateDict) -> None:
        if isinstance(here, torch.optim.Optimizer):
            load_optimizer(here, saved.state)
        else:
            here.load_state_dict(saved.state)
        if saved.buffers:
            buffers = dict(here.named_buffers())
            with torch.no_grad():
                for name, value in saved.buffers.items():
                    overwritten(buffers[name], value)

    def _becomes(self, here: Any, saved: Any) -> bool:
        """Let a tensor, an array or a generator have the value of another one, if it can in place; say whether."""
        if isinstance(saved, torch.Tensor):
            return self._tensor_becomes(here, saved)
        if isinstance(saved, np.ndarray):
            is_own = _is_of_its_own(here) or id(here.base) in self._matched  # else others' data would change
            alike = all(getattr(here, a) == getattr(saved, a) for a in ("shape", "dtype"))
            alike &= here.strides == saved.strides or here.base is not None  # a view keeps its own
            if not (is_own and alike and here.flags.writeable and saved.flags.writeable):
                return False
            here[...] = saved
        if isinstance(saved, np.random.BitGenerator):
            if not _has_the_seeds(here, saved):
                return False
            here.state = saved.state
        elif isinstance(saved, np.random.RandomState):
            if type(here._bit_generator) is not type(saved._bit_generator):
                return False
            here.set_state(saved.get_state(legacy=False))
        elif isinstance(saved, random.Random):
            here.setstate(saved.getstate())
        elif isinstance(saved, torch.Generator):
            if here.device != saved.device:
                return False
            here.set_state(saved.get_state())
        else:  # a bytearray
            here[:] = saved
        return True

    def _tensor_becomes(self, here: torch.Tensor, saved: torch.Tensor) -> bool:
        if not here.is_leaf or here.layout != torch.strided or saved.layout != torch.strided:
            return False
        is_part = _is_part(here)
        if is_part and not _is_of_its_own(here) and self._memory[_memory_of(here)] < 2:
            return False  # it is a part of something else, the data say, which must not change
        alike = (here.shape, here.dtype) == (saved.shape, saved.dtype)
        with torch.no_grad():
            if alike and (is_part or here.stride() == saved.stride()):
                overwritten(here, saved)
            elif not is_part:
                here.data = saved.detach().to(here.device)  # in its order of memory, in which kernels sum
            else:
                return False
        here.requires_grad_(saved.requires_grad)
        return True


def _is_of_its_own(value: Any) -> bool:
    """Say whether an array or a tensor is all that there is of its memory, or nobody else holds the rest."""
    base = value._base if isinstance(value, torch.Tensor) else value.base
    if base is None:
        return not (isinstance(value, torch.Tensor) and _is_part(value))
    # By the view, by this function's name, and by the call.
    return sys.getrefcount(base) <= (_count_of_base() if isinstance(value, torch.Tensor) else 3)


@cache
def _count_of_base() -> int:
    """Return how often a tensor is held of which there is a view; torch 2.13 counts the view, 2.9 does not."""
    view = torch.zeros(2)[:1]
    base = view._base
    return sys.getrefcount(base)


def _is_part(tensor: torch.Tensor) -> bool:
    """Say whether there is more in the memory of a dense tensor than the tensor itself."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _is_part_of_others(value: Any) -> bool:
    """Say whether what is brought back of an array or tensor may have to be a new one."""
    if isinstance(value, torch.Tensor):
        return value.layout != torch.strided or not value.is_leaf or (_is_part(value) and not _is_of_its_own(value))
    return isinstance(value, np.ndarray) and not (_is_of_its_own(value) and value.flags.writeable)


def _has_the_seeds(here: Any, saved: Any) -> bool:
    """Say whether a generator spawns what another one would, after letting it spawn as many as that has.

    Of one that has not spawned, and so is not known to, the seeds do not matter: it may have been made without any.
    """
    ours, theirs = here.seed_seq, saved.seed_seq
    if ours is not None and theirs is not None and not theirs.state["n_children_spawned"]:
        return True
    if ours is None or theirs is None:
        return ours is theirs
    spawned, wanted = ours.state["n_children_spawned"], theirs.state["n_children_spawned"]
    if {**ours.state, "n_children_spawned": wanted} != theirs.state or spawned > wanted:
        return False
    ours.spawn(wanted - spawned)
    return True


# --- checkpoints of version 1 ------------------------------------------------------------------------------


def _check_is_no_object(name: str, state: Any, source: Any) -> None:
    """Raise unless the state is the attribute itself, as it is of numbers, texts, and lists and dicts of these."""
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    for item in inner:
        _check_is_no_object(name, item, source)
    if isinstance(state, torch.Tensor) or (isinstance(state, Mapping) and "param_groups" in state):
        raise TrainingError(
            f"{source} has the state of {name!r}, which this trainer makes only while it trains; make it in the "
            "constructor, where it can be brought back"
        )


def _loaded(value: Any, state: Any) -> Any:
    """Return `value` in that state: the same object, where it is one that others may hold."""
    if isinstance(value, torch.Tensor) and (value.requires_grad or isinstance(value, nn.Parameter)):
        with torch.no_grad():
            value.copy_(state)
        return value
    if isinstance(value, torch.Tensor):
        return state.to(value.device)
    if isinstance(value, torch.Generator):
        value.set_state(state)
        return value
    if isinstance(value, list | tuple) and len(value) == len(state):
        return type(value)(_loaded(item, inner) for item, inner in zip(value, state, strict=True))
    if isinstance(value, Mapping) and list(value) == list(state):
        for key, item in list(value.items()):
            value[key] = _loaded(item, state[key])  # type: ignore[index]
        return value
    if isinstance(value, torch.optim.Optimizer):
        load_optimizer(value, state)
        return value
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(state.state if isinstance(state, StateDict) else state)
        return value
    return state
