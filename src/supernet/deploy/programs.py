"""Networks as programs of `torch.export`, and their files, which are read without trusting them.

`torch.export.save` writes a zip archive: weights as bytes, the graph as JSON. Three things in such an archive can run
code of whoever wrote it when `torch.export.load` reads it, so a file that has one is refused before: pickles (of sample
inputs, tensor subclasses and objects; what we write has none), texts of sizes that sympy evaluates as Python, and names
of functions anywhere in torch that the graph may call.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from supernet.deploy.example import Example
from supernet.errors import ExportError, FileFormatError
from supernet.space.files import parsed_json

__all__: list[str] = []

# What an archive of ours has, below its name. Weights and constants are bytes, which nothing but a tensor is made of.
_BYTES = ("data/weights/weight_", "data/constants/tensor_")
_JSON = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json", "models/model.json")
_NOTES = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version")
_SAMPLES = "data/sample_inputs/model.pt"  # empty

_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.keyword, ast.Name, ast.Load),
    *(ast.Constant, ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)
_FUNCTIONS_OF_SIZES = {
    *("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"),
    *("CeilToInt", "FloorToInt", "IntTrueDiv", "ModularIndexing", "Eq", "Ne", "Equality", "Unequality", "And", "Or"),
    *("Not", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan"),
}
_OPENS_FILES = ("aten::from_file", "aten::save")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from telling what concerns their makers: warnings, and logs below errors."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def program_of(network: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """Return what a network computes, in eval form, for batches of any size.

    Raises:
        ExportError: `torch.export` cannot follow it; says what that says.
    """
    args, kwargs = example.of_size(max(example.batch_size, 2))  # for torch.export takes a size of 1 as fixed
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                network, args, kwargs, dynamic_shapes=example.dynamic_shapes(network), strict=False
            )
    except Exception as error:  # whatever the network's code leads to
        raise ExportError(
            f"{type(network).__name__} cannot be exported for batches of any size: {type(error).__name__}: "
            f"{_first_lines(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # of this machine's files
    return program


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def write_program(network: nn.Module, example: Example, path: Path) -> None:
    """Write a network as a program of `torch.export`.

    Raises:
        ExportError: It cannot be followed, or this version of torch writes pickles.
    """
    program = program_of(network, example)
    program.example_inputs = None  # which would be pickled
    with quiet():
        torch.export.save(program, path)
    try:
        check_program_file(path)
    except FileFormatError as error:
        raise ExportError(
            f"{error}: torch {torch.__version__} pickles what this network has; export it in another format"
        ) from error


def read_program(path: Path) -> nn.Module:
    """Return the network of a file, having looked through all that could run code.

    Raises:
        FileFormatError: It is no such file, or has what is not read; names it.
    """
    check_program_file(path)
    try:
        with quiet():
            network = torch.export.load(path).module()
    except Exception as error:  # whatever wrong content leads to
        raise FileFormatError(f"{path} holds no program: {type(error).__name__}: {_first_lines(error)}") from error
    for name in ("train", "eval"):  # which refuse, though a program is in eval form whatever they are told
        network.__dict__.pop(name, None)
    return network


def check_program_file(path: Path) -> None:
    """Raise `FileFormatError` if reading a file could do more than make a network."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(path, archive, entry)
    except FileFormatError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whole file of torch.export: {error}") from error


def _check_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    name = "/".join(PurePosixPath(entry.filename).parts[1:])
    if name in _JSON:
        for problem in _problems(parsed_json(archive.read(entry))):
            raise FileFormatError(f"{path}: {name} {problem}, which is not read")
    elif name == _SAMPLES:
        if entry.file_size:
            raise FileFormatError(f"{path}: {name} is a pickle, which is not read")
    elif name not in _NOTES and not name.startswith(_BYTES):
        raise FileFormatError(f"{path}: {entry.filename!r:.80} is none of what a network's file has, and is not read")


def _problems(content: Any) -> Iterator[str]:
    """Yield what in the JSON of an archive could run code."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        if not isinstance(value, dict):
            if isinstance(value, str) and ("__enum__" in value or "default_factory_module" in value):
                yield "names modules to be imported"
            continue
        waiting.extend(value.values())
        waiting.extend(key for key in value if isinstance(key, str))
        if value.get("use_pickle"):
            yield "names a pickle"
        if "expr_str" in value and not _is_arithmetic(value["expr_str"]):
            yield f"has a size {value['expr_str']!r:.80}"
        if "target" in value and not _is_operator(value["target"]):
            yield f"calls {value['target']!r:.80}"


def _is_arithmetic(text: Any) -> bool:
    """Say whether a text is arithmetic of sizes, such as "4*s31 + 1" or "Mul(Integer(4), Symbol('s31'))"."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    names = [call.args[0] for call in calls if getattr(call.func, "id", None) == "Symbol" and call.args]
    return (
        all(isinstance(node, _ARITHMETIC) for node in nodes)
        and all(isinstance(call.func, ast.Name) and call.func.id in _FUNCTIONS_OF_SIZES for call in calls)
        # A text anywhere else would be evaluated in turn.
        and all(
            isinstance(node.value, int | float) or (node in names and re.fullmatch(r"[a-z]\w*", str(node.value)))
            for node in nodes
            if isinstance(node, ast.Constant)
        )
    )


def _is_operator(target: Any) -> bool:
    """Say whether a text names an operator of torch on tensors, or one of Python's on numbers."""
    if not isinstance(target, str):
        return False
    if target.startswith(("_operator.", "math.")):
        return target.count(".") == 1 and "__" not in target
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) != 5 or parts[2] not in ("aten", "prims"):
        return target in ("torch.sym_float", "torch.sym_int", "torch.sym_max", "torch.sym_min", "torch.sym_not")
    name = f"{parts[2]}::{parts[3]}"
    overload = name if parts[4] == "default" else f"{name}.{parts[4]}"
    return name not in _OPENS_FILES and overload in set(torch._C._dispatch_get_all_op_names())
