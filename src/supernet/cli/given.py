"""What several commands are given: a run, its model, data, limits; and how they say what they found."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.cli.importing import UsageError, called, imported
from supernet.cost import Cost, Limits
from supernet.cost.limits import KNOWN, known_costs
from supernet.cost.limits import OF_A_PASS as NEED_AN_EXAMPLE
from supernet.data.batches import split_batch
from supernet.data.loaders import first_batch, loader_of
from supernet.errors import FileFormatError, TrainingError
from supernet.execution.supernet import Supernet
from supernet.files.checkpoint import read_checkpoint
from supernet.files.weights import load_weights
from supernet.printable import printable
from supernet.space import Architecture, SearchSpace, load_architecture
from supernet.space.files import check_fingerprint
from supernet.training.evaluation import freeze
from supernet.training.first_call import called_with_first
from supernet.training.forward import Forward
from supernet.training.run_directory import WEIGHTS, RunDirectory, read_description
from supernet.training.state_of_processes import state_of

__all__: list[str] = []

COUNTED = ("parameters", "weight_memory")  # without running a network
OF_A_PASS = ("macs", "peak_memory")  # without measuring it


# --- options -------------------------------------------------------------------------------------------------


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let a command be given a run and its model."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a search")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODULE:NAME",
        help="the model with choices that was searched: a class or function without arguments that makes it, by "
        "MODULE:NAME or FILE.py:NAME",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """Let a command be given another architecture than the run's."""
    parser.add_argument(
        "--architecture",
        metavar="FILE",
        help='a file of another architecture, or JSON such as \'{"op": "conv"}\' (default: what the run has found)',
    )


def add_costs(parser: argparse.ArgumentParser) -> None:
    """Let a command be given what costs are of."""
    parser.add_argument(
        "--example",
        metavar="SHAPE",
        help="what the model is called with, for costs of what runs: a shape such as 1,3,32,32, or MODULE:NAME",
    )
    parser.add_argument(
        "--costs", metavar="MODULE:NAME", help="costs of your own: a function of the model that returns name -> Cost"
    )


def add_data(parser: argparse.ArgumentParser, what: str, *, required: bool = True) -> None:
    """Let a command be given data, and what is measured of them."""
    parser.add_argument("--data", required=required, metavar="MODULE:NAME", help=what)
    parser.add_argument(
        "--metrics",
        default="supernet:accuracy",
        metavar="MODULE:NAME",
        help="a function (output, target) -> number or dict of numbers, or a torchmetrics Metric (default: accuracy)",
    )
    parser.add_argument(
        "--loss", metavar="MODULE:NAME", help="a loss, such as torch.nn:CrossEntropyLoss (default: none is measured)"
    )
    parser.add_argument("--batch-size", type=count, default=256, metavar="N", help="samples in a batch (default: 256)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where it runs."""
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda:1, ... (default: a GPU where there is one)")


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def limits_of(text: str) -> dict[str, Any]:
    """Return the limits that a text says, as `--limits` takes it."""
    limits: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, limit = part.partition("=")
        low, colon, high = limit.partition(":")
        if not equals or not name.strip() or not (low.strip() or high.strip()):
            raise argparse.ArgumentTypeError(
                f"limits are NAME=MOST, NAME=LEAST: or NAME=LEAST:MOST, with commas between, not {text!r}"
            )
        if name.strip() in limits:
            raise argparse.ArgumentTypeError(f"{name.strip()} is limited twice in {text!r}; a range is LEAST:MOST")
        limits[name.strip()] = (_bound(low), _bound(high)) if colon else _bound(low)
    return limits


def _bound(text: str) -> float | str | None:
    text = text.strip().replace("_", "")
    if not text or text.endswith("%"):
        return text or None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor a share such as 60%") from None


# --- a run ---------------------------------------------------------------------------------------------------


class Run:
    """A run directory with the model that it searched.

    Args:
        options: What was given on the command line.

    Raises:
        UsageError: The model is none.
        FileFormatError: The directory is that of no run, or of a run of another space.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.directory, self._options = options.run_dir, options
        self._description = read_description(self.directory)
        model = imported(options.model, "--model")
        if not isinstance(model, nn.Module):
            model = called(model, options.model)
        if not isinstance(model, nn.Module):
            raise UsageError(f"--model is a model or makes one, but {options.model} gives {type(model).__name__}")
        self.model, self.space = model, SearchSpace(model)
        known = self._description.get("space")
        if known is not None:
            mend = f"give the model that it searched, which {options.model} is not"
            check_fingerprint(known, self.space, f"{self.directory} is a run", mend)

    def architecture(self) -> Architecture:
        """Return the architecture that was given, or else what the run has found."""
        given = getattr(self._options, "architecture", None)
        if given is None:
            try:
                return load_architecture(self.directory / "architecture.json", self.space)
            except FileNotFoundError as error:
                raise TrainingError(
                    f"{self.directory} has no architecture.json, so its search has not finished; give --architecture"
                ) from error
        if not given.lstrip().startswith("{"):
            try:
                return load_architecture(given, self.space)
            except FileNotFoundError as error:
                raise UsageError(f"--architecture: there is no file {given}") from error
        try:
            decided = json.loads(given)
        except ValueError as error:
            raise UsageError(f"--architecture is no JSON: {error}") from error
        return self.space.canonical(decided)

    def network(self) -> nn.Module:
        """Return the network that the run has found, with its weights."""
        network = freeze(self.model, self.architecture())
        try:
            load_weights(network, self.directory / WEIGHTS)
        except FileNotFoundError as error:
            raise TrainingError(f"{self.directory} has no {WEIGHTS}, so its search has not finished") from error
        return network

    def supernet(self, device: str | None = "cpu") -> Supernet:
        """Return the supernet with the weights of the newest checkpoint.

        Args:
            device: Where it is put; None for a GPU where there is one. Default: the CPU.

        Raises:
            TrainingError: There is no checkpoint.
            FileFormatError: It is broken, or of another model.
        """
        path = RunDirectory(self.directory).newest_checkpoint()
        if path is None:
            raise TrainingError(f"{self.directory} has no checkpoint, so there are no weights of a supernet")
        state = read_checkpoint(path)
        if "processes" in state:
            # Of several processes: parameters are the same in all, and running statistics are computed anew.
            state |= state_of(state["processes"], 0, (), torch.device("cpu"))
        supernet = Supernet(self.model)
        for what, here in (("parameters", self.model.named_parameters()), ("buffers", self.model.named_buffers())):
            tensors, saved = dict(here), state[what]
            # Before anything is copied; two models of one space may still have other layers around their choices.
            differing = [name for name in tensors.keys() | saved.keys() if _shape(tensors, name) != _shape(saved, name)]
            if differing:
                raise FileFormatError(
                    f"{path} holds the weights of another model than {self._options.model}: {what} differ at "
                    f"{', '.join(sorted(differing)[:3])}"
                )
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(saved[name])
        try:
            self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:  # the latter where torch knows no CUDA
            raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
        return supernet

    def example(self) -> Any:
        """Return what the model is called with; None where nothing was given."""
        given = self._options.example
        if given is None:
            return None
        if re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", given):
            shape = [int(size) for size in given.split(",")]
            if 0 in shape:
                raise UsageError(
                    f"--example is a shape of numbers from 1 on, and {given} has a 0: it would cost nothing"
                )
            return torch.randn(shape, generator=torch.Generator().manual_seed(0))
        made = imported(given, "--example")
        return called(made, given) if callable(made) and not isinstance(made, torch.Tensor) else made

    def costs(self, names: Iterable[str] = (), data: Any = None) -> dict[str, Cost]:
        """Return the costs that are reported: the user's, those that take nothing to count, and those of some names.

        Args:
            names: Names of costs and of other things.
            data: Data that the example is taken from, where none was given and one of these, or a limit of the run that
                is to be kept, is of what runs.
        """
        given: Mapping[str, Cost] = {}
        if (path := self._options.costs) is not None:
            function = imported(path, "--costs")
            given = called(lambda: function(self.model), path)
            if not isinstance(given, Mapping):
                raise UsageError(f"--costs returns a dict name -> Cost, but {path} returns {type(given).__name__}")
        example, names, of_a_pass = self.example(), list(names), list(OF_A_PASS)
        if example is None:
            of_a_pass = [] if self._options.limits else [name for name in self._bounds() if name in OF_A_PASS]
            if data is not None and {*names, *of_a_pass} & {*NEED_AN_EXAMPLE} - {*given}:
                example = self._first_of(data)
            if example is None:
                of_a_pass = []
        wanted = dict.fromkeys([*COUNTED, *of_a_pass, *names])
        known = [name for name in wanted if name in KNOWN and name not in given]
        if needing := [name for name in known if name in NEED_AN_EXAMPLE and example is None]:
            raise UsageError(
                f"the cost {needing[0]!r} is of a network that runs; give --example, what the model is called with, "
                "such as 1,3,32,32"
            )
        return {**known_costs(self.model, known, example), **given}

    def _first_of(self, data: Any) -> Any:
        """Return what the model is called with for the first sample of data; None where that is not found."""
        loader = loader_of(data, batch_size=self._options.batch_size, workers=0, seed=0)
        return called_with_first(Forward(self.model, None, None), self.model, *split_batch(first_batch(loader)))

    def limits(self, limits: Mapping[str, Any], costs: Mapping[str, Cost]) -> Limits:
        """Return limits of this model, which know the costs that are reported beside.

        Raises:
            UsageError: One is of a cost that is neither known nor given.
        """
        if unknown := [name for name in limits if name not in costs]:
            raise UsageError(
                f"there is no cost {unknown[0]!r}; known are {', '.join(KNOWN)}, and those that the function of "
                "--costs returns"
            )
        return Limits(self.model, limits, costs=costs)

    def own_limits(self, costs: Mapping[str, Cost]) -> dict[str, Any]:
        """Return the limits that were given to the run.

        Raises:
            UsageError: One is of a cost that is not known here, and so cannot be held.
        """
        limits = self._bounds()
        if unknown := [name for name in limits if name not in costs]:
            others = [name for name in unknown if name not in OF_A_PASS]
            mends = ["--example"] if len(others) < len(unknown) else []
            mends += [f"--costs, a function that returns {' and '.join(others)}"] if others else []
            raise UsageError(
                f"the run has a limit of {' and of '.join(unknown)}, which is not known here; give "
                f"{' and '.join(mends)}, or by --limits those that are to be kept"
            )
        return limits

    def _bounds(self) -> dict[str, Any]:
        """Return name -> (least, most) of what the run's files say that it was limited."""
        of_run = self._description.get("costs")
        described = of_run if isinstance(of_run, dict) else {}
        limits = {name: (one.get("least"), one.get("most")) for name, one in described.items()}
        return {name: bounds for name, bounds in limits.items() if bounds != (None, None)}


def data_of(options: argparse.Namespace) -> Any:
    """Return the data that were given: of a function, what it returns."""
    data = imported(options.data, "--data")
    return called(data, options.data) if callable(data) else data


def parts_of(data: Any) -> tuple[Any, Any]:
    """Return the training data, None where there are none, and the data to measure on."""
    return (data[0], data[1]) if isinstance(data, tuple | list) and len(data) == 2 else (None, data)


def measured_by(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return loss and metrics that were given; classes are made."""
    found = []
    for option, path in (("--loss", options.loss), ("--metrics", options.metrics)):
        given = None if path is None else imported(path, option)
        found.append(called(given, path) if isinstance(given, type) else given)
    return found[0], found[1]


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> Any:
    return tensors[name].shape if name in tensors else None


# --- what is printed -------------------------------------------------------------------------------------------


def print_found(options: argparse.Namespace, found: Any, text: str) -> None:
    """Print what was found: as JSON for programs, or a text for people."""
    print(json.dumps(_as_json(found), indent=2) if options.json else printable(text))


def _as_json(value: Any) -> Any:
    """Return a tree as JSON has it: numbers that are not finite are texts, such as "inf"."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[list[str]]) -> str:
    """Return rows as a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
