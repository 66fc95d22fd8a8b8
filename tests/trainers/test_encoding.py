"""Any tree of what can be saved goes through a checkpoint and back, equal in value and type; the rest is refused."""

import dataclasses
import enum
import math
import pathlib
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import numpy as np
import pytest
import torch
from equality import same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supernet.errors import FileFormatError, TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.files.encoding import check_can_be_saved


@dataclasses.dataclass
class Note:
    name: str
    content: object = None
    made: int = dataclasses.field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class Fixed:
    __slots__ = ("value",)
    value: object


Pair = namedtuple("Pair", "left right")


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Mode(enum.Flag):
    A = 1
    B = 2


class Level(str, enum.Enum):
    LOW = "low"


CLASSES = (Note, Fixed, Pair, Color, Mode, Level)


def through(path, value, classes=CLASSES):
    write_checkpoint(path / "state.safetensors", {"value": value})
    return read_checkpoint(path / "state.safetensors", classes)["value"]


TENSOR_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex32),
]
SHAPES = st.lists(st.integers(0, 3), max_size=4)


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(TENSOR_DTYPES)), draw(SHAPES)
    bits = torch.frombuffer(bytearray(draw(st.binary(min_size=1, max_size=64)) * 1296), dtype=torch.uint8)
    bits = bits % 2 if dtype == torch.bool else bits
    numel = math.prod(shape)
    tensor = bits[: numel * dtype.itemsize].clone().view(dtype).reshape(shape)
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if dtype.is_floating_point and dtype.itemsize > 1 and draw(st.booleans()):
        return nn.Parameter(tensor, draw(st.booleans()))
    return tensor


ARRAY_DTYPES = ["?", "<f8", ">f4", "<i2", ">u8", "<c16", "<U3", "S4", "<M8[ns]", "<m8[D]", "<f2", "q", "l", "<U0", "g"]


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(ARRAY_DTYPES))), draw(SHAPES)
    if dtype.kind == "U":
        content = np.full(shape, draw(st.text("abc\U0001f600", max_size=3)), dtype)
    else:
        size = math.prod(shape) * dtype.itemsize
        content = (draw(st.binary(min_size=1, max_size=64)) * (size + 1))[:size]
        content = bytes(byte % 2 for byte in content) if dtype.kind == "b" else content
        content = np.ndarray(shape, dtype, content).copy()
    content = np.asarray(content.transpose(draw(st.permutations(range(len(shape))))))
    if draw(st.booleans()):
        content.flags.writeable = False
    return content


SCALARS = arrays().filter(lambda a: a.size and a.dtype.str != "<U0").map(lambda a: a.reshape(-1)[0])
NUMPY_GENERATORS = st.builds(
    lambda kind, seed: np.random.Generator(getattr(np.random, kind)(seed)),
    st.sampled_from(["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"]),
    st.integers(0) | st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
)
TEXTS = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\ud83d\ude00\x00"), max_size=6)
KEYS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.binary(max_size=3)
    | st.sampled_from([*Color, *Mode, Level.LOW, torch.float32, torch.Size([2])]),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3) | inner.map(Fixed),
    max_leaves=3,
)
CONSTANTS = [
    *(*Color, *Mode, Mode.A | Mode.B, Level.LOW, ..., torch.bfloat16, torch.device("cuda", 1), torch.strided),
    *(torch.channels_last, np.dtype(">f4"), pathlib.Path("a/b"), pathlib.PureWindowsPath("c:\\d")),
]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(2**14999, 2**15000) | st.floats() | st.complex_numbers()
    | TEXTS | st.binary(max_size=5) | st.binary(max_size=5).map(bytearray) | tensors() | arrays() | SCALARS
    | st.sampled_from(CONSTANTS) | st.builds(range, st.integers(), st.integers(), st.integers(1))
    | st.builds(slice, st.integers() | st.none(), TEXTS)
    | st.lists(st.integers(0, 9)).map(torch.Size) | st.integers().map(random.Random) | NUMPY_GENERATORS
    | NUMPY_GENERATORS.map(lambda generator: generator.bit_generator)
    | st.integers(0, 2**32 - 1).map(np.random.RandomState)
    | st.integers(0, 2**60).map(lambda seed: torch.Generator().manual_seed(seed))
    | st.sets(KEYS, max_size=3) | st.frozensets(KEYS, max_size=3)
)  # fmt: skip


def containers(inner):
    lists, dicts = st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)
    return (
        lists | lists.map(tuple) | dicts | dicts.map(OrderedDict) | dicts.map(Counter)
        | st.builds(defaultdict, st.sampled_from([None, int, list, dict, set]), dicts)
        | st.builds(deque, lists, st.none() | st.integers(4, 6))
        | st.builds(Note, TEXTS, inner) | st.builds(Fixed, inner) | st.builds(Pair, inner, inner)
        | inner.map(lambda value: [value, {"again": value}])
    )  # fmt: skip


TREES = st.recursive(LEAVES, containers, max_leaves=15)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(TREES)
def test_any_tree_comes_back_equal_in_value_and_type(tmp_path_factory, tree):
    check_can_be_saved(tree, "tree", CLASSES)
    assert same(tree, through(tmp_path_factory.getbasetemp(), tree))


def test_what_occurs_twice_is_one_object_again(tmp_path):
    tensor, items, generator = torch.randn(3), [1], torch.Generator()
    shared = {"tensor": tensor, "items": items, "generator": generator}
    note = Note("a", shared)
    tree = through(tmp_path, [shared, note, tensor, (items, generator), deque([note]), tensor[1:]])
    first, again, alias, (alias_of_items, alias_of_generator), others, view = tree
    assert again.content is first
    assert alias is first["tensor"]
    assert alias_of_items is first["items"]
    assert alias_of_generator is first["generator"]
    assert others[0] is again
    assert torch.equal(view, tensor[1:])


def test_keys_that_look_alike_stay_apart(tmp_path):
    tree = {
        "numbers": {0: "a", "0": "b", 2.5: "c", (0,): "d", None: "e", "None": "f"},
        "dots": {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), "a.[b]": {"tree": torch.ones(2)}},
        "order": {"z": 1, "a": 2, 3: 4},
        "truth": {True: 1, "True": 2},
    }
    assert same(tree, through(tmp_path, tree))


def test_dense_tensors_keep_their_order_of_memory(tmp_path):
    for tensor in (
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).T,
        torch.randn(6)[::2],
    ):
        read = through(tmp_path, tensor)
        assert torch.equal(read, tensor)
        assert read.stride() == (tensor.stride() if tensor.dim() > 1 else (1,))


def test_sparse_tensors_come_back_as_they_are(tmp_path):
    tensor = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse()
    doubled = torch.sparse_coo_tensor([[1, 1], [0, 0]], [1.0, 2.0], (2, 2), check_invariants=True)
    assert same([tensor, doubled], through(tmp_path, [tensor, doubled]))


def test_what_a_module_notes_of_its_versions_stays_in_its_state(tmp_path):
    state = nn.BatchNorm1d(2).state_dict()
    assert same(state, through(tmp_path, state))


def test_a_tree_may_be_as_deep_as_it_likes(tmp_path):
    tree = []
    for _ in range(5_000):
        tree = [tree]
    read, depth = through(tmp_path, tree), 0
    while read:
        (read,), depth = read, depth + 1
    assert depth == 5_000


def cyclic():
    inner = {"items": []}
    inner["items"].append(inner)
    return inner


@dataclasses.dataclass
class OfDict(dict):
    a: int = 1


def more_than_its_fields():
    note = Note("a")
    note.more = 1
    return note


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (object(), r"state\.it\[0\] is an object, which a checkpoint cannot hold"),
        (cyclic(), r"state\.it\[0\]\.items\[0\] is state\.it\[0\] again, and a checkpoint holds no cycles"),
        ({"x.y": lambda: 0}, r"state\.it\[0\]\['x\.y'\] is a function"),
        ({object: 1}, r"state\.it\[0\]'s key is a type"),
        (nn.Linear(1, 1), r"state\.it\[0\] is a torch\.nn\.modules\.linear\.Linear"),
        (np.array([object()]), r"state\.it\[0\] is of NumPy's dtype object"),
        (np.zeros(1, [("a", "f4")]), r"state\.it\[0\] is of NumPy's dtype \[\('a'"),
        (np.zeros(1, [("a", "f4")])[0], r"state\.it\[0\] is of NumPy's dtype \[\('a'"),
        (np.ma.masked_array([1]), r"state\.it\[0\] is a numpy\.ma"),
        (defaultdict(Note), r"state\.it\[0\] is a defaultdict of <class '.*Note'>, which"),
        (random.SystemRandom(), r"state\.it\[0\] is a random\.SystemRandom"),
        (torch.empty(1, device="meta"), r"state\.it\[0\] is a tensor on the device meta"),
        (torch.ones(2).to_mkldnn(), r"state\.it\[0\] is a tensor of layout torch\._mkldnn"),
        (OfDict(), r"state\.it\[0\] is a .*OfDict, which has content beside its fields"),
        (more_than_its_fields(), r"state\.it\[0\] is a .*Note with the attribute more beside its fields"),
    ],
)
def test_what_cannot_be_held_is_named_before_anything_is_written(tmp_path, value, match):
    with pytest.raises(TrainingError, match=match):
        check_can_be_saved({"it": [value]}, "state")
    with pytest.raises(TrainingError, match=match):
        write_checkpoint(tmp_path / "state.safetensors", {"it": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [Note("a"), Pair(1, 2), Color.RED, Mode.A | Mode.B])
def test_only_classes_that_the_reader_names_are_made(tmp_path, value):
    name = type(value).__name__
    with pytest.raises(TrainingError, match=rf"state is a .*{name}, which could not be made again at a resume"):
        check_can_be_saved(value, "state", [Fixed])
    with pytest.raises(
        FileFormatError, match=rf"state\.safetensors: it holds something of the class .*{name}, which is"
    ):
        through(tmp_path, [value], [Fixed])


def test_a_class_whose_fields_have_changed_is_refused(tmp_path):
    now = dataclasses.make_dataclass("Note", ["name", "other"], namespace={"__module__": Note.__module__})
    with pytest.raises(FileFormatError, match="Note of the fields name, content, made, which are name, other now"):
        through(tmp_path, Note("a"), [now])
