"""Checkpoints: one safetensors file each, with a digest of all its bytes, and what is no tensor in one of JSON.

Nothing that is read is unpickled. A file has a format version; this library goes on reading every version that
it has ever written, and refuses a newer one.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from supernet.errors import FileFormatError, TrainingError
from supernet.files.encoding import OUT_OF_MEMORY, Encoded, decoded, encoded, sparse
from supernet.files.safetensors_file import read_safetensors, write_safetensors

__all__ = ["read_checkpoint", "write_checkpoint"]

FORMAT = "supernet/checkpoint"
VERSION = 2
_TREE = "tree"  # a tensor of bytes, since safetensors limits the size of headers; those of the state have numbers


@dataclasses.dataclass(eq=False)
class StateDict:
    """What stands in a checkpoint for an object that has a `state_dict`.

    Attributes:
        kind: Name of the object's class, for messages.
        state: What its `state_dict()` returned.
        buffers: Buffers of a module that its `state_dict` leaves out.
    """

    NAME_IN_FILES: ClassVar[str] = "supernet.StateDict"  # wherever the class stands

    kind: str
    state: Any
    buffers: dict[str, torch.Tensor]


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state such that a kill at any moment leaves either no file of that name or a whole one.

    Args:
        path: Path of the file; its directory is made if there is none.
        state: A tree of what `encoding.check_can_be_saved` lets pass.

    Raises:
        TrainingError: Something in the state is of another type, or the file cannot be written; names it.
    """
    nodes, root, tensors = encoded(state, "state")
    tree = bytearray(json.dumps([nodes, root], ensure_ascii=False, separators=(",", ":")).encode())
    named = {str(number): tensor for number, tensor in enumerate(tensors)}
    named[_TREE] = torch.frombuffer(tree, dtype=torch.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, named, {"format": FORMAT, "version": str(VERSION)})
    except OSError as error:
        raise TrainingError(f"checkpoint {path} cannot be written, older ones are whole: {error}") from error


def read_checkpoint(path: Path, classes: Iterable[type] = (), device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the state that `write_checkpoint` wrote.

    Args:
        path: Path of the file.
        classes: The dataclasses, namedtuples and enums that may be made. No other class is looked up. Default: none.
        device: Device of the tensors and generators that were not on the CPU. Default: the CPU.

    Raises:
        FileFormatError: The file is truncated, foreign or tampered with, or holds something of a class that may not
            be made; names it and what is wrong.
        OSError: It cannot be read, now; FileNotFoundError where there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    header, tensors = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint: it does not say format {FORMAT!r}")
    version = header.get("version")
    if version not in ("1", str(VERSION)):
        raise FileFormatError(f"{path} has format version {version!r}; this library reads 1 to {VERSION}")
    try:
        if version == "1":
            state = _of_version_1(json.loads(header.get("tree", "")), tensors)
        elif "digest" not in header:
            raise ValueError("it has no digest")
        else:
            nodes, root = json.loads(tensors.pop(_TREE).numpy().tobytes())
            table = Encoded(nodes, root, [tensors[str(number)] for number in range(len(tensors))])
            state = decoded(table, {StateDict, *classes}, device)
    except FileFormatError as error:
        raise type(error)(f"{path}: {error}") from error
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # whatever wrong content leads to
        raise FileFormatError(f"{path} has content that cannot be read: {type(error).__name__}: {error}") from error
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise FileFormatError(f"{path} holds no state but a {type(state).__name__}")
    return state


def _of_version_1(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the tree of a file of version 1: each kind that JSON lacks is a list that begins with the kind's name."""
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise ValueError("a JSON object stands where none is written")
        return tree
    kind, content = tree
    if kind == "tensor":
        return tensors[content]
    if kind == "sparse":
        layout, size, is_coalesced, parts = content
        return sparse(layout, size, is_coalesced, _of_version_1(parts, tensors))
    if kind == "list":
        return [_of_version_1(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(_of_version_1(item, tensors) for item in content)
    if kind in ("dict", "counter"):
        pairs = OrderedDict((key, _of_version_1(item, tensors)) for key, item in content)
        return Counter(pairs) if kind == "counter" else dict(pairs)
    raise ValueError(f"unknown kind {kind!r}")
