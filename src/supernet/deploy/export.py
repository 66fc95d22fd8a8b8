"""From a plain network to a file that is proven to compute the same, and back."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from supernet.cost import Limits, Macs, Parameters, Parts, WeightMemory
from supernet.cost.limits import bounds_in_words
from supernet.deploy.card import CARD, checked_numbers, read_card, write_card
from supernet.deploy.example import Comparison, Example, described, tensors_in
from supernet.deploy.onnx_files import OnnxNetwork, write_onnx
from supernet.deploy.pretrained import read_pretrained, write_pretrained
from supernet.deploy.programs import read_program, write_program
from supernet.deploy.weights import read_weights, write_weights
from supernet.errors import CostError, ExportError, FileFormatError, MissingExtraError
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.files import flush
from supernet.training.description import versions
from supernet.training.evaluation import check_has_no_choices

__all__ = ["export_network", "load_network"]

Outputs: TypeAlias = dict[int, list[torch.Tensor]]  # by batch size


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: How its name ends; empty for a directory of several.
        packages: The packages that write and run it, the one that runs it last.
        write: What writes a network.
        read: What reads one; given the path, the card, and a model whose weights may be taken from the file.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Example, Path], None]
    read: Callable[[Path, Mapping[str, Any], nn.Module | None], nn.Module]


FORMATS = {
    "onnx": Format(
        ".onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, lambda path, card, model: OnnxNetwork(path)
    ),
    "torch.export": Format(".pt2", ("torch",), write_program, lambda path, card, model: read_program(path)),
    "safetensors": Format(".safetensors", ("safetensors", "torch"), write_weights, read_weights),
    "transformers": Format("", ("safetensors", "torch", "transformers"), write_pretrained, read_pretrained),
}


def export_network(
    network: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    architecture: Mapping[str, Any] | None = None,
    limits: Limits | Mapping[str, float | tuple[float | None, float | None]] | None = None,
    costs: Mapping[str, float] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write a plain network as a file that other programs run, and a card beside it that says what it is.

    The network is written in eval form, for batches of any size. What was written is read back and run on the example
    and on batches of other sizes: its outputs must be those of the network, up to 1e-4 of their norm (1e-10 in
    float64, 1e-2 in 16 bits). Only then does the file take its place. The network stays as it is.

    Args:
        network: A network without choices, such as `freeze(model, architecture)`.
        example: What it is called with: a tensor, a tuple of arguments, or a dict of named ones. The first dimension of
            the first tensor is the batch, and so is that of each other tensor that is as long.
        path: Path of the file, which ends as its format does; directories are made. The card is `PATH.json`.
        format: "onnx" (`.onnx`, for onnxruntime and others; needs the extra `onnx`), "torch.export" (`.pt2`, for torch
            without the network's code), "safetensors" (`.safetensors`, weights alone), or "transformers" (a directory
            of a model of that package, for `from_pretrained`, or with a loader `load.py` where its config cannot say
            all sizes; the card is `card.json` in it).
        architecture: The network's architecture, for the card, and for `load_network`.
        limits: Limits that it was searched under, for the card: `Limits`, which know costs of the architecture, or name
            of a cost -> the most, or (least, most) with None for either. It must keep them.
        costs: Further costs by name, for the card, such as a latency measured on the device. Parameters, bytes of
            weights, and multiply-accumulates of one sample are counted.
        metrics: What was measured of it by name, for the card, such as a test accuracy.

    Returns:
        The card, as `read_card(path)` gives it.

    Raises:
        UnresolvedChoiceError: The network still has choices.
        ExportError: The format is unknown, the example is none, the network cannot be followed or has an operator that
            the format lacks, the file cannot be written, or does not compute what the network does.
        CostError: It breaks a limit, or is not what the limits know under that architecture.
        MissingExtraError: What writes or runs the format is not installed.

    >>> network = freeze(nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Identity()], label="op")), {"op": "0"})
    >>> card = export_network(network, torch.ones(2, 4), "net.safetensors", "safetensors", architecture={"op": "0"})
    >>> card["costs"], card == read_card("net.safetensors")
    ({'parameters': 10, 'weight_memory': 40, 'macs': 8}, True)
    """
    path = Path(path)
    if format not in FORMATS:
        raise ExportError(f"there is no format {format!r}; known are {', '.join(map(repr, FORMATS))}")
    kind = FORMATS[format]
    if kind.suffix and path.suffix != kind.suffix:
        raise ExportError(f"a file of format {format!r} ends in {kind.suffix}, and {path.name!r} does not")
    for name, given in {"architecture": architecture, "costs": costs}.items():
        if not (given is None or isinstance(given, Mapping)):
            raise ExportError(f"{name} is a dict or None, not {given!r:.80}")
    if not (limits is None or isinstance(limits, Limits | Mapping)):
        raise ExportError(f"limits are a dict such as {{'parameters': 60_000}}, or Limits, not {limits!r:.80}")
    check_has_no_choices(network)
    batches = Example(example)
    network = with_what_cannot_be_copied(lambda memo: copy.deepcopy(network, memo)).cpu().eval()
    outputs = {size: _outputs(network, batches, size) for size in batches.sizes}
    content: dict[str, Any] = {
        "network_format": format,
        "architecture": None if architecture is None else dict(architecture),
        "costs": (known := _costs(network, batches, architecture, limits, costs)),
        "limits": _checked_limits(limits, known),
        "metrics": checked_numbers("metrics", metrics),
    }
    try:
        json.dumps(content)  # before a file stands without its card
    except (TypeError, ValueError) as error:
        raise ExportError(f"the card holds what JSON has, and {error}; give the architecture as trainers do") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            unfinished = Path(directory) / path.name
            kind.write(network, batches, unfinished)
            comparison = _compared(network, batches, unfinished, kind, outputs)
            files = _in_place(unfinished, path)
        content |= {
            "inputs": batches.described(network),
            "outputs": [described(tensor, batches.batch_size) for tensor in outputs[batches.batch_size]],
            "check": {
                "run_by": kind.packages[-1],
                "batch_sizes": batches.sizes,
                "difference": comparison.difference,
                "tolerance": comparison.tolerance,
            },
            "versions": {**versions(), **{name: version(name) for name in kind.packages}},
        }
        return write_card(path, files, content)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error


def load_network(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Return the network of a file or directory that `export_network` wrote, having compared digests with its card.

    An ONNX file becomes a module that runs it by onnxruntime, on the CPU; it takes tensors, and returns one or a tuple.
    A file of `torch.export` becomes a module of torch. Of what such a file may hold, only tensors, operators of torch
    and arithmetic of sizes are read: nothing that could run other code. A safetensors file holds weights alone: they
    are loaded into what is given as `model`. A directory of `transformers` becomes a model of its class there; the
    loader in it is not run.

    Args:
        path: Path of the file or directory.
        model: What the weights of safetensors are loaded into: a model with choices, which is frozen under the card's
            architecture; or the plain network, as its class makes it under `fixed_architecture(card["architecture"])`,
            whose weights are replaced.

    Returns:
        The network, in eval form.

    Raises:
        FileFormatError: A file is damaged, of another kind, or has what is not read; names it.
        FileNotFoundError: There is no such file, or no card.
        ExportError: A safetensors file is to be read, and no model is given; or one is for another format.
        MissingExtraError: What runs the file is not installed.

    >>> model = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Identity()], label="op"))
    >>> network = freeze(model, {"op": "0"})
    >>> card = export_network(network, torch.ones(1, 4), "net.safetensors", "safetensors", architecture={"op": "0"})
    >>> torch.equal(load_network("net.safetensors", model)(torch.ones(1, 4)), network(torch.ones(1, 4)))
    True
    """
    path = Path(path)
    card = read_card(path)
    if card.get("network_format") not in FORMATS:
        raise FileFormatError(
            f"the card of {path} names the format {card.get('network_format')!r:.80}, which is not known"
        )
    format = str(card["network_format"])
    if (model is None) != (format != "safetensors"):
        raise ExportError(
            f"{path} holds weights alone; give the model with choices, or the network, that they are of"
            if model is None
            else f"{path} is of format {format!r} and holds the whole network; leave the model out"
        )
    return FORMATS[format].read(path, card, model).eval()


def _outputs(network: nn.Module, example: Example, size: int) -> list[torch.Tensor]:
    args, kwargs = example.of_size(size)
    try:
        with torch.no_grad():
            outputs = tensors_in(network(*args, **kwargs))
    except Exception as error:  # whatever a user's network raises
        raise ExportError(
            f"{type(network).__name__} does not run on {'the example' if size == example.batch_size else 'a batch'} of "
            f"{size}, in eval form on the CPU: {type(error).__name__}: {error}"
        ) from error
    if not outputs:
        raise ExportError(f"{type(network).__name__} gives no tensor for the example, so nothing can be compared")
    return outputs


def _in_place(unfinished: Path, path: Path) -> dict[str, Path]:
    """Put what was written, a file or the files of a directory, in its place; return the files by name."""
    if unfinished.is_dir():
        path.mkdir(exist_ok=True)
        if others := {entry.name for entry in path.iterdir()} - {entry.name for entry in unfinished.iterdir()} - {CARD}:
            raise ExportError(
                f"{path} holds {', '.join(sorted(others)[:3])} already; export into a directory of its own"
            )
    moved = {entry: path / entry.name for entry in unfinished.iterdir()} if unfinished.is_dir() else {unfinished: path}
    for made, place in moved.items():
        with made.open("rb+") as file:
            flush(file)
        made.replace(place)
    return {place.name: place for place in moved.values()}


def _compared(network: nn.Module, example: Example, path: Path, kind: Format, outputs: Outputs) -> Comparison:
    """Compare what a file gives with what the network gives."""
    blank = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*blank.parameters(), *blank.buffers()):
            tensor.zero_()  # so that what is not in the file is noticed
    comparison = Comparison()
    try:
        read = kind.read(path, {}, blank).eval()
        for size, expected in outputs.items():
            args, kwargs = example.of_size(size)
            with torch.no_grad():
                comparison.add(expected, tensors_in(read(*args, **kwargs)), size)
    except MissingExtraError:
        raise
    except Exception as error:  # whatever runs it raises
        run_by = kind.packages[-1]
        others = {str(p.dtype) for p in network.parameters() if p.is_floating_point()} - {str(torch.float32)}
        hint = f"; {run_by} lacks operators of {min(others)}: export network.float()" if others else ""
        raise ExportError(
            f"{type(network).__name__} was written, but run by {run_by} it does not give what it should: {error}"
            f"{hint if run_by == 'onnxruntime' else ''}"
        ) from error
    return comparison


def _costs(
    network: nn.Module,
    example: Example,
    architecture: Mapping[str, Any] | None,
    limits: Any,
    costs: Mapping[str, float] | None,
) -> dict[str, float]:
    """Return what the network costs: as counted, as the limits know it, and as given."""
    args, kwargs = example.of_size(1)
    parts = Parts(network, kwargs or args)
    counted = {cost.name: cost.of({}) for cost in (Parameters(parts), WeightMemory(parts), Macs(parts))}
    known: dict[str, float] = {}
    if isinstance(limits, Limits):
        if architecture is None:
            raise ExportError("limits know what an architecture costs; give the network's architecture too")
        known = limits.costs_of(architecture)
        if known.get("parameters", counted["parameters"]) != counted["parameters"]:
            raise CostError(
                f"the network has {counted['parameters']:,g} parameters, but the limits count {known['parameters']:,g} "
                "under the architecture that is given; it is that of another network"
            )
    return checked_numbers("costs", {**counted, **known, **(costs or {})})


def _checked_limits(limits: Any, costs: Mapping[str, float]) -> dict[str, list[float | None]]:
    """Return name -> (least, most) as JSON has it, having compared what the network costs."""
    found: dict[str, list[float | None]] = {}
    for name, limit in (limits.bounds if isinstance(limits, Limits) else limits or {}).items():
        low, high = limit if isinstance(limit, tuple | list) and len(limit) == 2 else (None, limit)
        bounds = [None if one is None or one in (-math.inf, math.inf) else one for one in (low, high)]
        if not all(one is None or (hasattr(one, "__float__") and math.isfinite(one)) for one in bounds):
            raise ExportError(f"the limit of {name!r} is a number, or (least, most), not {limit!r}; or give Limits")
        if name not in costs:
            raise CostError(
                f"there is a limit of {name!r}, but its cost is not known; give it by costs={{{name!r}: ...}}"
            )
        unbounded = -math.inf, math.inf
        least, most = (end if one is None else float(one) for one, end in zip(bounds, unbounded, strict=True))
        if not least <= costs[name] <= most:
            raise CostError(f"the network costs {costs[name]:,g} {name}, not {bounds_in_words(least, most)}, the limit")
        found[name] = [None if one is None else float(one) for one in bounds]
    return found
