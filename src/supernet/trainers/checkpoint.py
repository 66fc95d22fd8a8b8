"""Checkpoints: one safetensors file each, with everything that is no tensor as JSON in its header.

Nothing that is read is unpickled. A file has a format version; this library goes on reading every version that
it has ever written, and refuses a newer one.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supernet.errors import FileFormatError, TrainingError

__all__ = ["read_checkpoint", "write_checkpoint"]

FORMAT = "supernet/checkpoint"
VERSION = 1


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state such that a kill at any moment leaves either no file of that name or a whole one.

    Args:
        path: where to.
        state: dicts, lists and tuples, to any depth, of tensors, numbers, texts, None.

    Raises:
        TrainingError: something in the state is of another type, or the file cannot be written; names it.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encoded(state, "state", tensors)
    header = {"format": FORMAT, "version": str(VERSION), "tree": json.dumps(tree)}
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, metadata=header)
        _flush(unfinished)
        unfinished.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"checkpoint {path} cannot be written, older ones are whole: {error}") from error
    finally:
        _remove(unfinished)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state that `write_checkpoint` wrote.

    Raises:
        FileFormatError: the file is truncated, foreign or tampered with; names it and what is wrong.
        FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint: it does not say format {FORMAT!r}")
    if header.get("version") != str(VERSION):
        raise FileFormatError(f"{path} has format version {header.get('version')!r}; this library reads {VERSION}")
    try:
        state = _decoded(json.loads(header.get("tree", "")), tensors)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{path} has a header that cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise FileFormatError(f"{path} holds no state but {type(state).__name__}")
    return state


def _encoded(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON has it, each kind that JSON lacks as a list that begins with the kind's name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return _encoded(value.item(), where, tensors)
    if isinstance(value, torch.Tensor) and value.layout in _PARTS_OF_SPARSE:
        parts = [getattr(value.detach(), part)() for part in _PARTS_OF_SPARSE[value.layout]]
        is_coalesced = value.is_coalesced() if value.layout == torch.sparse_coo else None
        return ["sparse", [str(value.layout), list(value.shape), is_coalesced, _encoded(parts, where, tensors)]]
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        raise TrainingError(f"{where} is a tensor of layout {value.layout}, which a checkpoint cannot hold")
    if isinstance(value, torch.Tensor):
        tensors[where] = value.detach().cpu().contiguous().clone()  # a file takes no two tensors of one storage
        return ["tensor", where]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_encoded(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]]
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return [
            kind,
            [[key, _encoded(item, f"{where}.{key}", tensors)] for key, item in value.items() if _is_key(key, where)],
        ]
    raise TrainingError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold: it holds tensors, numbers, texts, and "
        "lists and dicts of them"
    )


_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_PARTS_OF_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), _ROWS),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), _COLUMNS),
}


def _sparse(layout: str, size: list[int], is_coalesced: bool | None, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return a sparse tensor of these parts, having looked whether they make one."""
    kind = {str(known): known for known in _PARTS_OF_SPARSE}[layout]
    make: Any = torch.sparse_compressed_tensor
    options: dict[str, Any] = {"layout": kind}
    if kind == torch.sparse_coo:
        make, options = torch.sparse_coo_tensor, {"is_coalesced": is_coalesced}
    result: torch.Tensor = make(*parts, size, check_invariants=True, **options)
    return result


def _is_key(key: Any, where: str) -> bool:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise TrainingError(f"{where} has the key {key!r}, but a checkpoint's keys are texts and whole numbers")
    return True


def _decoded(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise ValueError("a JSON object stands where none is written")
        return tree
    kind, content = tree
    if kind == "tensor":
        return tensors[content]
    if kind == "sparse":
        layout, size, is_coalesced, parts = content
        return _sparse(layout, size, is_coalesced, _decoded(parts, tensors))
    if kind == "list":
        return [_decoded(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in content)
    if kind in ("dict", "counter"):
        pairs = OrderedDict((key, _decoded(item, tensors)) for key, item in content)
        return Counter(pairs) if kind == "counter" else dict(pairs)
    raise ValueError(f"unknown kind {kind!r}")


def _flush(path: Path) -> None:
    """Bring a file or directory to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # what could not be written cannot be removed either, and has been reported
