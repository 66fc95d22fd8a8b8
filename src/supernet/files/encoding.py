"""Any tree of plain values as a table of JSON and tensors, and back: the same values, of the same types.

Each value that JSON has no form of is a node of the table: its kind, what the kind notes of it, and its parts. A part
stands in JSON itself or is the number of an earlier node, so that what occurs twice in a tree is one object after
reading too, no depth is too deep, and nothing that is read can hold itself.

A class is never looked up by a name that a file gives: whoever reads says which classes may be made.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import pathlib
import random
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from supernet.errors import FileFormatError, TrainingError

__all__ = ["Encoded", "check_can_be_saved", "decoded", "encoded"]

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # says nothing of what is read

Parts = list[tuple[str, Any]]  # how a part is reached from its whole, for messages; and the part


class UnknownClassError(FileFormatError):
    """A table that is whole holds something of a class that may not be made, or that has changed."""


class Encoded(NamedTuple):
    """A tree as a table: JSON can hold `nodes` and `root`; a node names tensors by their number."""

    nodes: list[Any]
    root: Any
    tensors: list[torch.Tensor]


def check_can_be_saved(value: Any, where: str, classes: Iterable[type] | None = None) -> None:
    """Raise unless a checkpoint can hold the value. No tensor is copied.

    Args:
        value: The value that a checkpoint is to have.
        where: Name of its place in messages, such as "state.baseline".
        classes: The dataclasses, namedtuples and enums that will be known at reading. Default: any.

    Raises:
        TrainingError: Something in it cannot be held, or is of another class; names its place and its type.
    """
    _encoded(value, where, None if classes is None else set(classes))


def encoded(value: Any, where: str, order_of_sets: Callable[[Any], str] | None = None) -> Encoded:
    """Return the tree as a table. Its tensors are not copied; they are those of the tree or views of them.

    Args:
        value: The tree.
        where: Name of its place in messages.
        order_of_sets: A function item -> text, by which the items of sets are ordered. Default: as they are, which
            differs between processes.

    Raises:
        TrainingError: Something in it cannot be held; names its place and its type.
    """
    return _encoded(value, where, None, order_of_sets)


def decoded(table: Encoded, classes: Iterable[type] = (), device: torch.device | str = "cpu") -> Any:
    """Return the tree of a table.

    Args:
        table: A table from `encoded`, or from a file that anybody may have written.
        classes: The dataclasses, namedtuples and enums that may be made. Default: none.
        device: Device of the tensors and generators that were not on the CPU. Default: the CPU.

    Raises:
        FileFormatError: The table is none, or holds something of a class that may not be made; says which.
    """
    reader = _Reader(table.tensors, classes, torch.device(device))
    try:
        if not isinstance(table.nodes, list):
            raise ValueError("its nodes are no list")
        for kind, notes, parts in table.nodes:
            make = _KINDS[kind].make
            reader.values.append(make(reader, notes, [reader.part(part) for part in parts]))
        return reader.part(table.root)
    except (FileFormatError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # whatever wrong content leads to in whatever is made of it
        raise FileFormatError(f"its content cannot be read: {type(error).__name__}: {error}") from error


class _Frame(NamedTuple):
    """A value whose parts are being encoded."""

    value: Any
    where: str
    kind: str
    notes: Any
    rest: Iterator[tuple[str, Any]]
    parts: list[Any]


def _encoded(
    root: Any, where: str, classes: set[type] | None, order_of_sets: Callable[[Any], str] | None = None
) -> Encoded:
    table = Encoded([], None, [])
    numbers: dict[int, int] = {}  # id of a value -> its node
    begun: dict[int, str] = {}  # id of a value whose parts are not all encoded yet -> where it is
    alive: list[Any] = []  # or another value could get the id of one that is gone
    stack = [_Frame(None, where, "", None, iter([("", root)]), [])]
    while True:
        frame = stack[-1]
        for name, value in frame.rest:
            if _is_json(value):
                frame.parts.append(value)
            elif id(value) in numbers:
                frame.parts.append([numbers[id(value)]])
            else:
                place = frame.where + name
                if id(value) in begun:
                    raise TrainingError(f"{place} is {begun[id(value)]} again, and a checkpoint holds no cycles")
                begun[id(value)] = place
                alive.append(value)
                kind, notes, parts = _kind_and_parts(value, place, table.tensors, classes)
                if order_of_sets is not None and kind in ("set", "frozenset"):
                    parts = sorted(parts, key=lambda part: order_of_sets(part[1]))
                stack.append(_Frame(value, place, kind, notes, iter(parts), []))
                break
        else:
            stack.pop()
            if not stack:
                return table._replace(root=frame.parts[0])
            table.nodes.append([frame.kind, frame.notes, frame.parts])
            del begun[id(frame.value)]
            numbers[id(frame.value)] = len(table.nodes) - 1
            stack[-1].parts.append([len(table.nodes) - 1])


def _is_json(value: Any) -> bool:
    """Say whether JSON itself holds the value exactly."""
    kind = type(value)
    if kind is int:
        return -(2**63) <= value < 2**63
    if kind is float:
        return math.isfinite(value)
    if kind is str:
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or kind is bool


def _kind_and_parts(
    value: Any, where: str, tensors: list[torch.Tensor], classes: set[type] | None
) -> tuple[str, Any, Parts]:
    kind = _KIND_OF.get(type(value)) or next((name for name, k in _KINDS.items() if k.is_of and k.is_of(value)), None)
    if kind is None:
        raise TrainingError(
            f"{where} is {_named(type(value))}, which a checkpoint cannot hold: it holds tensors, arrays, numbers, "
            "texts, generators of random numbers, dataclasses, and the containers of Python of all these"
        )
    if classes is not None and _KINDS[kind].is_of and type(value) not in classes:
        raise TrainingError(
            f"{where} is {_named(type(value))}, which could not be made again at a resume: its class is not among "
            "those that may be made; define it at the top of the module of the trainer, or import it there"
        )
    notes, parts = _KINDS[kind].take_apart(value, where, tensors)
    return kind, notes, parts


def class_name(cls: type) -> str:
    """Return the name that a file gives a class by."""
    return str(getattr(cls, "NAME_IN_FILES", f"{cls.__module__}.{cls.__qualname__}"))


def _named(cls: type) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else class_name(cls)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


class _Reader:
    """What is read so far of a table."""

    def __init__(self, tensors: Sequence[torch.Tensor], classes: Iterable[type], device: torch.device) -> None:
        self.tensors, self.device = tensors, device
        self.values: list[Any] = []
        self._classes = {class_name(cls): cls for cls in classes}

    def part(self, part: Any) -> Any:
        if isinstance(part, list):
            (number,) = part
            return self.values[_index(number, len(self.values))]
        if not _is_json(part):
            raise ValueError(f"{part!r:.80} stands where none is written")
        return part

    def tensor(self, number: Any) -> torch.Tensor:
        return self.tensors[_index(number, len(self.tensors))]

    def where(self, device: str) -> torch.device:
        return torch.device("cpu") if torch.device(device).type == "cpu" else self.device

    def cls(self, name: Any) -> Any:
        if name not in self._classes:
            raise UnknownClassError(
                f"it holds something of the class {name}, which is not among those that may be made: "
                f"{', '.join(sorted(self._classes)) or 'none'}"
            )
        return self._classes[name]


def _index(number: Any, length: int) -> int:
    if type(number) is not int or not 0 <= number < length:
        raise ValueError(f"number {number!r:.80} of {length}")
    return number


# --- kinds -------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A kind of value: into what notes (JSON) and parts it is taken apart, and how it is made of them."""

    take_apart: Callable[[Any, str, list[torch.Tensor]], tuple[Any, Parts]]
    make: Callable[[_Reader, Any, list[Any]], Any]
    is_of: Callable[[Any], bool] | None = None  # for kinds that are no single type


def _items(value: Iterable[Any], *_: Any) -> tuple[Any, Parts]:
    return None, [(f"[{position}]", item) for position, item in enumerate(value)]


def _pairs(value: Any, where: str, _: Any) -> tuple[Any, Parts]:
    parts: Parts = []
    for key, item in value.items():
        text = repr(key)[:80] if isinstance(key, str | int | float | None) else f"<{type(key).__name__}>"
        is_name = type(key) is str and key.isidentifier()
        parts += [("'s key", key), (f".{key}" if is_name else f"[{text}]", item)]
    return None, parts


def _dict_of(parts: list[Any]) -> dict[Any, Any]:
    result = dict(zip(parts[::2], parts[1::2], strict=True))
    if len(result) != len(parts) // 2:
        raise ValueError("a key occurs twice")
    return result


def _noted(note: Callable[[Any], Any], make: Callable[[Any], Any]) -> _Kind:
    """A kind of value without parts."""
    return _Kind(lambda value, *_: (note(value), []), lambda _, notes, parts: make(notes))


def _ordered_dict(value: OrderedDict[Any, Any], where: str, _: Any) -> tuple[Any, Parts]:
    if vars(value).keys() - {"_metadata"}:  # versions of modules, in what their state_dict returns
        raise TrainingError(f"{where} is an OrderedDict with attributes ({', '.join(vars(value))})")
    noted = [(f".{name}", content) for name, content in vars(value).items()]
    return len(noted), noted + _pairs(value, where, _)[1]


def _make_ordered_dict(_: _Reader, noted: Any, parts: list[Any]) -> OrderedDict[Any, Any]:
    result = OrderedDict(_dict_of(parts[1:] if noted else parts))
    if noted:
        result._metadata = parts[0]  # type: ignore[attr-defined]
    return result


_FACTORIES = {
    factory.__name__: factory
    for factory in (
        *(bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset),
        *(deque, Counter, OrderedDict),
    )
}


def _defaultdict(value: defaultdict[Any, Any], where: str, _: Any) -> tuple[Any, Parts]:
    factory: Any = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise TrainingError(
            f"{where} is a defaultdict of {factory!r}, which a checkpoint cannot hold; it holds those of "
            f"{', '.join(_FACTORIES)}"
        )
    return factory and factory.__name__, _pairs(value, where, _)[1]


def _counter(_: _Reader, notes: Any, parts: list[Any]) -> Counter[Any]:
    result: Counter[Any] = Counter()
    result.update(_dict_of(parts))
    return result


# Tensors.

_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
# Those that every version of safetensors knows. The others are held as bytes.
_NATIVE = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool),
}
_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
PARTS_OF_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), _ROWS),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), _COLUMNS),
}


def _tensor(value: torch.Tensor, where: str, tensors: list[torch.Tensor]) -> tuple[Any, Parts]:
    # What a graph computed is held without the graph.
    requires_grad = value.requires_grad and value.is_leaf
    about: list[Any] = [str(value.device), isinstance(value, nn.Parameter), requires_grad]
    detached = value.detach()
    if detached.is_meta or detached.is_quantized:
        what = "on the device meta" if detached.is_meta else f"of {detached.dtype}"
        raise TrainingError(f"{where} is a tensor {what}, which a checkpoint cannot hold")
    if detached.layout in PARTS_OF_SPARSE:
        parts = [(f".{part}()", getattr(detached, part)()) for part in PARTS_OF_SPARSE[detached.layout]]
        is_coalesced = detached.is_coalesced() if detached.layout == torch.sparse_coo else None
        return [about, str(detached.layout), list(detached.shape), is_coalesced], parts
    if detached.layout != torch.strided:
        raise TrainingError(f"{where} is a tensor of layout {detached.layout}, which a checkpoint cannot hold")
    # A dense tensor is kept in its order of memory, since kernels sum in that; it needs no copy then.
    order = list(range(detached.dim()))
    if not detached.is_contiguous():
        by_stride = sorted(order, key=lambda dim: detached.stride()[dim], reverse=True)
        order = by_stride if detached.permute(by_stride).is_contiguous() else order
    detached = detached.permute(order).resolve_conj().resolve_neg()
    notes = [about, len(tensors), order, str(value.dtype), list(detached.shape)]
    if detached.dtype not in _NATIVE:
        try:
            detached = detached.reshape(-1).view(torch.uint8)
        except RuntimeError as error:
            raise TrainingError(f"{where} is a tensor of {value.dtype}, which a checkpoint cannot hold") from error
    tensors.append(detached)
    return notes, []


def _make_tensor(reader: _Reader, notes: Any, parts: list[Any]) -> torch.Tensor:
    (device, is_parameter, requires_grad), *notes = notes
    if isinstance(notes[0], str):
        layout, size, is_coalesced = notes
        result = sparse(layout, size, is_coalesced, parts)
    else:
        number, order, dtype, shape = notes
        result = reader.tensor(number)
        if result.dtype != _DTYPES[dtype]:
            result = result.view(_DTYPES[dtype]).reshape(shape)
        if list(result.shape) != shape or result.layout != torch.strided:
            raise ValueError(f"tensor {number} is {list(result.shape)}, not {shape}")
        result = result.permute([order.index(dim) for dim in range(len(order))])
    result = result.to(reader.where(device))
    return nn.Parameter(result, requires_grad) if is_parameter else result.requires_grad_(requires_grad)


def sparse(layout: str, size: list[int], is_coalesced: bool | None, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return a sparse tensor of these parts, having looked whether they make one."""
    kind = {str(known): known for known in PARTS_OF_SPARSE}[layout]
    make: Any = torch.sparse_compressed_tensor
    options: dict[str, Any] = {"layout": kind}
    if kind == torch.sparse_coo:
        make, options = torch.sparse_coo_tensor, {"is_coalesced": is_coalesced}
    result: torch.Tensor = make(*parts, size, check_invariants=True, **options)
    return result


def _bytes(value: bytes | bytearray, where: str, tensors: list[torch.Tensor]) -> tuple[Any, Parts]:
    tensors.append(torch.from_numpy(np.frombuffer(bytes(value), np.uint8).copy()))
    return len(tensors) - 1, []


def _vector_of_bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError("bytes are a vector of uint8")
    return tensor.numpy()


# NumPy.

_NUMPY_KINDS = "biufcSUmM"  # structured ones, and those that refer to objects, have no bytes of their own


def _name_of_dtype(dtype: np.dtype[Any], where: str) -> str:
    if dtype.kind not in _NUMPY_KINDS or dtype.fields:
        raise TrainingError(f"{where} is of NumPy's dtype {dtype}, which a checkpoint cannot hold")
    # Some platforms have two integers of one size, which have one `str`.
    return dtype.str if np.dtype(dtype.str).char == dtype.char or not dtype.isnative else dtype.char


def _dtype(name: Any) -> np.dtype[Any]:
    result = np.dtype(name)
    if type(name) is not str or result.kind not in _NUMPY_KINDS:
        raise ValueError(f"NumPy's dtype {name!r:.80}")
    return result


def _array(value: np.ndarray[Any, Any], where: str, tensors: list[torch.Tensor]) -> tuple[Any, Parts]:
    name = _name_of_dtype(value.dtype, where)
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    content = np.ascontiguousarray(value if order == "C" else value.T).reshape(-1)
    content = content.view(np.uint8) if value.dtype.itemsize else np.empty(0, np.uint8)
    # torch warns of arrays that may not be written to.
    tensors.append(torch.from_numpy(content if content.flags.writeable else content.copy()))
    return [len(tensors) - 1, name, list(value.shape), order, value.flags.writeable], []


def _make_array(reader: _Reader, notes: Any, parts: list[Any]) -> np.ndarray[Any, Any]:
    number, name, shape, order, is_writeable = notes
    content, dtype = _vector_of_bytes(reader.tensor(number)), _dtype(name)
    if content.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {shape} {name} out of {content.size} bytes")
    result = np.ndarray(shape, dtype, content, order=order).copy(order="K")
    result.flags.writeable = is_writeable
    return result


def _scalar(value: np.generic, where: str, _: Any) -> tuple[Any, Parts]:
    name = _name_of_dtype(value.dtype, where)
    # Those of text have no zeros at their end as elements of an array.
    if isinstance(value, np.str_ | np.bytes_):
        return value.dtype.kind, [("", str(value) if isinstance(value, np.str_) else bytes(value))]
    return [name, value.tobytes().hex()], []


def _make_scalar(_: _Reader, notes: Any, parts: list[Any]) -> np.generic:
    if parts:
        (content,) = parts
        if (type(content), notes) not in ((str, "U"), (bytes, "S")):
            raise ValueError(f"a scalar of {notes!r:.80}")
        return np.str_(content) if notes == "U" else np.bytes_(content)
    name, content = notes
    (result,) = np.frombuffer(bytes.fromhex(content), _dtype(name))
    return result


_BIT_GENERATORS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}


def _bit_generator(value: Any, where: str, _: Any) -> tuple[Any, Parts]:
    seeds = value.seed_seq  # None in MT19937 where a RandomState has seeded it
    if seeds is not None and type(seeds) is not np.random.SeedSequence:
        raise TrainingError(f"{where} has its seeds from {_named(type(seeds))}, which a checkpoint cannot hold")
    return type(value).__name__, [(".state", value.state), (".seed_seq", None if seeds is None else seeds.state)]


def _make_bit_generator(_: _Reader, name: Any, parts: list[Any]) -> Any:
    state, seeds = parts
    if seeds is not None and not 4 <= seeds["pool_size"] <= 2**10:  # memory of that size is taken
        raise ValueError(f"a pool of {seeds['pool_size']} for seeds")
    if seeds is None:
        result = np.random.RandomState(0)._bit_generator
    else:
        result = _BIT_GENERATORS[name](np.random.SeedSequence(**seeds))
    result.state = state
    return result


def _make_numpy_generator(_: _Reader, notes: Any, parts: list[Any]) -> np.random.Generator:
    (bits,) = parts
    return np.random.Generator(bits)


def _make_random_state(_: _Reader, notes: Any, parts: list[Any]) -> np.random.RandomState:
    bits, state = parts
    result = np.random.RandomState(bits)
    result.set_state(state)
    return result


def _make_random(_: _Reader, notes: Any, parts: list[Any]) -> random.Random:
    result = random.Random()
    result.setstate(*parts)
    return result


def _make_torch_generator(reader: _Reader, device: Any, parts: list[Any]) -> torch.Generator:
    (state,) = parts
    result = torch.Generator(reader.where(device))
    result.set_state(state)
    return result


_LAYOUTS = [value for value in vars(torch).values() if isinstance(value, torch.layout)]
_MEMORY_FORMATS = [value for value in vars(torch).values() if isinstance(value, torch.memory_format)]
_PATHS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)
}

# Classes of others.


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _dataclass(value: Any, where: str, _: Any) -> tuple[Any, Parts]:
    cls = type(value)
    try:
        object.__new__(cls)
    except TypeError as error:  # it is a dict, say, too
        raise TrainingError(f"{where} is {_named(cls)}, which has content beside its fields: {error}") from error
    names = [field.name for field in dataclasses.fields(value)]
    if missing := [name for name in names if not hasattr(value, name)]:
        raise TrainingError(f"{where} is {_named(cls)} whose field {missing[0]} is not set")
    if others := [name for name in getattr(value, "__dict__", {}) if name not in names]:
        raise TrainingError(
            f"{where} is {_named(cls)} with the attribute {others[0]} beside its fields, which are what a checkpoint "
            "holds of it; make it a field"
        )
    return [class_name(cls), names], [(f".{name}", getattr(value, name)) for name in names]


def _make_dataclass(reader: _Reader, notes: Any, parts: list[Any]) -> Any:
    name, names = notes
    cls = reader.cls(name)
    now = [field.name for field in dataclasses.fields(cls)]
    if now != names:
        raise UnknownClassError(f"it holds a {name} of the fields {', '.join(names)}, which are {', '.join(now)} now")
    result = object.__new__(cls)
    for field, part in zip(names, parts, strict=True):
        object.__setattr__(result, field, part)  # no code of the class runs, and a frozen one is made too
    return result


def _is_namedtuple(value: Any) -> bool:
    cls = type(value)
    has_more = bool(getattr(value, "__dict__", {}))
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple) and not has_more


def _namedtuple(value: Any, where: str, _: Any) -> tuple[Any, Parts]:
    names = list(type(value)._fields)
    if len(names) != len(value):
        raise TrainingError(f"{where} is {_named(type(value))} of {len(value)} items and {len(names)} fields")
    return [class_name(type(value)), names], [(f".{name}", item) for name, item in zip(names, value, strict=True)]


def _make_namedtuple(reader: _Reader, notes: Any, parts: list[Any]) -> Any:
    name, names = notes
    cls = reader.cls(name)
    if list(cls._fields) != names or len(parts) != len(names):
        raise UnknownClassError(f"it holds a {name} of the fields {names}, which are {list(cls._fields)} now")
    return tuple.__new__(cls, parts)


def _member(value: enum.Enum, where: str, _: Any) -> tuple[Any, Parts]:
    cls = type(value)
    if value._name_ in cls.__members__ and cls.__members__[value._name_] is value:
        return [class_name(cls), value._name_], []
    return [class_name(cls), None], [(".value", value.value)]  # flags that are set together


def _make_member(reader: _Reader, notes: Any, parts: list[Any]) -> enum.Enum:
    name, member = notes
    cls = reader.cls(name)
    if not issubclass(cls, enum.Enum):
        raise ValueError(f"{name} is no enum")
    return cls(*parts) if member is None else cls[member]


_KINDS: dict[str, _Kind] = {
    "int": _noted(hex, lambda digits: int(digits, 16)),
    "float": _noted(lambda value: struct.pack(">d", value).hex(), lambda h: struct.unpack(">d", bytes.fromhex(h))[0]),
    "str": _noted(
        lambda value: value.encode("utf-8", "surrogatepass").hex(),
        lambda content: bytes.fromhex(content).decode("utf-8", "surrogatepass"),
    ),
    "complex": _noted(
        lambda value: struct.pack(">dd", value.real, value.imag).hex(),
        lambda content: complex(*struct.unpack(">dd", bytes.fromhex(content))),
    ),
    "bytes": _Kind(_bytes, lambda reader, number, _: _vector_of_bytes(reader.tensor(number)).tobytes()),
    "bytearray": _Kind(_bytes, lambda reader, number, _: bytearray(_vector_of_bytes(reader.tensor(number)).tobytes())),
    "ellipsis": _noted(lambda value: None, lambda notes: ...),
    "list": _Kind(_items, lambda reader, notes, parts: parts),
    "tuple": _Kind(_items, lambda reader, notes, parts: tuple(parts)),
    "set": _Kind(_items, lambda reader, notes, parts: set(parts)),
    "frozenset": _Kind(_items, lambda reader, notes, parts: frozenset(parts)),
    "deque": _Kind(
        lambda value, *_: (value.maxlen, _items(value)[1]), lambda reader, maxlen, parts: deque(parts, maxlen)
    ),
    "dict": _Kind(_pairs, lambda reader, notes, parts: _dict_of(parts)),
    "OrderedDict": _Kind(_ordered_dict, _make_ordered_dict),
    "defaultdict": _Kind(
        _defaultdict, lambda reader, name, parts: defaultdict(name and _FACTORIES[name], _dict_of(parts))
    ),
    "Counter": _Kind(_pairs, _counter),
    "range": _Kind(
        lambda value, *_: (None, [(".start", value.start), (".stop", value.stop), (".step", value.step)]),
        lambda reader, notes, parts: range(*parts),
    ),
    "slice": _Kind(
        lambda value, *_: (None, [(".start", value.start), (".stop", value.stop), (".step", value.step)]),
        lambda reader, notes, parts: slice(*parts),
    ),
    "torch.Tensor": _Kind(_tensor, _make_tensor),
    "torch.Size": _Kind(_items, lambda reader, notes, parts: torch.Size(parts)),
    "torch.dtype": _noted(str, lambda name: _DTYPES[name]),
    "torch.device": _noted(str, lambda name: torch.device(name)),
    "torch.layout": _noted(str, lambda name: {str(layout): layout for layout in _LAYOUTS}[name]),
    "torch.memory_format": _noted(str, lambda name: {str(known): known for known in _MEMORY_FORMATS}[name]),
    "torch.Generator": _Kind(
        lambda value, *_: (str(value.device), [(".get_state()", value.get_state())]), _make_torch_generator
    ),
    "random.Random": _Kind(lambda value, *_: (None, [(".getstate()", value.getstate())]), _make_random),
    "numpy.ndarray": _Kind(_array, _make_array),
    "numpy.generic": _Kind(_scalar, _make_scalar),
    "numpy.dtype": _Kind(
        lambda value, where, _: (_name_of_dtype(value, where), []), lambda reader, name, _: _dtype(name)
    ),
    "numpy.random.BitGenerator": _Kind(_bit_generator, _make_bit_generator),
    "numpy.random.Generator": _Kind(
        lambda value, *_: (None, [(".bit_generator", value.bit_generator)]), _make_numpy_generator
    ),
    "numpy.random.RandomState": _Kind(
        lambda value, *_: (
            None,
            [("._bit_generator", value._bit_generator), (".get_state()", value.get_state(legacy=False))],
        ),
        _make_random_state,
    ),
    "path": _Kind(
        lambda value, *_: ([type(value).__name__, str(value)], []), lambda reader, notes, _: _PATHS[notes[0]](notes[1])
    ),
    "enum": _Kind(_member, _make_member, lambda value: isinstance(value, enum.Enum)),
    "dataclass": _Kind(_dataclass, _make_dataclass, _is_dataclass),
    "namedtuple": _Kind(_namedtuple, _make_namedtuple, _is_namedtuple),
}
_KIND_OF: dict[type, str] = {
    **{int: "int", float: "float", str: "str", complex: "complex", bytes: "bytes", bytearray: "bytearray"},
    **{types.EllipsisType: "ellipsis", list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"},
    **{deque: "deque", dict: "dict", OrderedDict: "OrderedDict", defaultdict: "defaultdict", Counter: "Counter"},
    **{range: "range", slice: "slice", torch.Tensor: "torch.Tensor", nn.Parameter: "torch.Tensor"},
    **{torch.Size: "torch.Size", torch.dtype: "torch.dtype", torch.device: "torch.device"},
    **{torch.layout: "torch.layout", torch.memory_format: "torch.memory_format"},
    **{torch.Generator: "torch.Generator", random.Random: "random.Random", np.ndarray: "numpy.ndarray"},
    **dict.fromkeys(_BIT_GENERATORS.values(), "numpy.random.BitGenerator"),
    **{np.random.Generator: "numpy.random.Generator", np.random.RandomState: "numpy.random.RandomState"},
    **dict.fromkeys(_PATHS.values(), "path"),
    **dict.fromkeys(set(np.sctypeDict.values()), "numpy.generic"),
    **{type(np.dtype(code)): "numpy.dtype" for code in "?bhilqBHILQefdgFDGSUmM"},
}
