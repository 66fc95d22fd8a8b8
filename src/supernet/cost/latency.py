"""How long networks take on a device, as the sum of what their layers take, each measured once."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.cost.cost import PartsCost
from supernet.cost.parts import Parts
from supernet.cost.recording import Call, Part, is_layer
from supernet.errors import CostError, FileFormatError
from supernet.execution.structure import mapped, tensors_of
from supernet.ranking import kendall_tau
from supernet.space import Architecture, freeze
from supernet.space.files import digest_of_json, read_json, write_json
from supernet.space.summary import called_with, moved

__all__ = ["FileMeasure", "Latency", "Trust"]

FORMAT, VERSION = "supernet/latencies", 1
WARM_UP = 3  # calls before any is timed
NUM_BLOCKS = 15  # of calls, whose median is taken without the slowest quarter
MIN_SECONDS = 0.001  # of a block, so that the clock's grain does not matter

Measure = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], float]


class Latency(PartsCost):
    """Milliseconds of one pass of the frozen network, as the sum of what each of its layers takes on a device.

    Each layer is measured alone, once for each of its sizes and shapes of inputs, when an architecture first needs it:
    by `torch.utils.benchmark`, after a warm-up, as the median of blocks of calls of which the slowest quarter is cut.
    What is measured is kept in `cache`. What the model computes between its layers, and what layers gain or lose beside
    each other, is not in the sum: `trust` says how far it can be trusted.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        example: What the model is called with: a tuple of arguments, a dict of keyword arguments, or one argument. Its
            batch and dtype are those that are measured. Default: that of the `Parts`.
        device: Where to measure. Default: the CPU.
        num_threads: Number of threads of torch while it measures. Default: as many as it has.
        measure: Function `(layer, args, kwargs) -> milliseconds` that measures elsewhere, on a board for instance; it
            is given a plain layer with arguments on the CPU. `FileMeasure` makes one of what measures a file. Default:
            this device is measured.
        name_of_device: What the cache calls the device. Default: its own name; "measured elsewhere" with `measure`.
        cache: JSON file of what has been measured, by device, threads, dtype and shapes; it is written after each
            architecture that needed more. Default: none, all is measured anew.

    Raises:
        CostError: There is no example, or a layer cannot be measured: named with its shapes.
        FileFormatError: The cache is no such file, or is broken.

    >>> model = nn.Sequential(LayerChoice({"wide": nn.Linear(64, 64), "skip": nn.Identity()}, label="op"))
    >>> board = lambda layer, args, kwargs: 2.5 if isinstance(layer, nn.Linear) else 0.0
    >>> Latency(model, torch.ones(1, 64), measure=board).of({"op": "wide"})
    2.5
    """

    name, unit = "latency_ms", "ms"

    def __init__(
        self,
        model: nn.Module | Parts,
        example: Any = None,
        *,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        measure: Measure | None = None,
        name_of_device: str | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        check_functions(measure=measure)
        if num_threads is not None:
            check_counts(num_threads=num_threads)
        self.device = torch.device(device)
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        self.name_of_device = name_of_device or ("measured elsewhere" if measure else _name_of(self.device))
        super().__init__(model, example)
        if self.parts.example is None:
            raise CostError(f"the cost {self.name!r} is of a network that runs; give example=, what it is called with")
        self._measure = measure
        self._cache = None if cache is None else Path(cache)
        self._milliseconds: dict[str, dict[str, Any]] = {}
        if self._cache is not None and self._cache.exists():
            content = read_json(self._cache, FORMAT, VERSION, "is no file of measured latencies")
            self._milliseconds = content.get("measured", {})
            try:
                check_numbers(**{key: one["ms"] for key, one in self._milliseconds.items()})
            except Exception as error:  # whatever wrong content leads to
                raise FileFormatError(f"{self._cache} holds no measured latencies: {error!r:.300}") from error
        self._is_written = True

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return the sum of what the layers take, of which those that are new are measured."""
        total = super().of_canonical(architecture)
        if self._cache is not None and not self._is_written:
            write_json(self._cache, FORMAT, VERSION, {"measured": self._milliseconds})
            self._is_written = True
        return total

    def of_part(self, part: Part) -> float:
        """Return what the passes through a layer take."""
        return sum(self._of_call(call) for call in part.calls if is_layer(call.layer))

    def _of_call(self, call: Call) -> float:
        layer, weights = type(call.layer), [str(p.dtype) for p in call.layer.parameters()][:1]
        given = [f"{tuple(t.shape)} {t.dtype}" for t in tensors_of(call.arguments)]
        where = {"device": self.name_of_device, "threads": None if self._measure else self.num_threads}
        what = {**where, "layer": f"{layer.__module__}.{layer.__qualname__}", "form": json.loads(json.dumps(call.kind))}
        what |= {"dtype": weights, "inputs": given}
        key = digest_of_json(what)[:32]
        if key not in self._milliseconds:
            about = {**what, "form": call.kind[1]}
            self._milliseconds[key] = {**about, "ms": self._milliseconds_of(call)}
            self._is_written = False
        return float(self._milliseconds[key]["ms"])

    def _milliseconds_of(self, call: Call) -> float:
        args, kwargs = mapped(call.arguments, lambda tensor: _some(tensor, self._measured_on))
        try:
            layer = _with_values(call.layer, self._measured_on)
            if self._measure is None:
                return milliseconds(lambda: layer(*args, **kwargs), self.device, self.num_threads)
            measured: Any = self._measure(layer, args, kwargs)
            check_numbers(**{"what measure returns": measured})
            return float(measured)
        except Exception as error:
            raise CostError(
                f"{call.layer} for inputs {', '.join(map(str, call.inputs))} could not be measured on "
                f"{self.name_of_device}: {error}"
            ) from error

    @property
    def _measured_on(self) -> torch.device:
        return torch.device("cpu") if self._measure else self.device

    def trust(
        self, *, num_networks: int = 50, seed: int = 0, measure: Callable[[nn.Module, Any], float] | None = None
    ) -> Trust:
        """Return how far the sums can be trusted, by measuring random networks from end to end.

        Args:
            num_networks: Number of random networks. Default: 50.
            seed: Seed of the sample. Default: 0.
            measure: Function `(network, example) -> milliseconds` of a whole network. Needed where layers are measured
                elsewhere. Default: this device is measured.

        Raises:
            CostError: Layers are measured elsewhere, and `measure` is not given.
        """
        check_counts(2, num_networks=num_networks)
        check_functions(measure=measure)
        if measure is None and self._measure is not None:
            raise CostError("layers are measured elsewhere, so networks must be too; give measure=(network, example)")
        generator = torch.Generator().manual_seed(seed)
        architectures = [self.space.sample(generator) for _ in range(num_networks)]
        summed = [self.of(architecture) for architecture in architectures]
        example = moved(self.parts.example, str(self._measured_on))
        measured = []
        for architecture in architectures:
            network = freeze(self.parts.model, architecture).to(self._measured_on).eval()
            if measure is None:
                run = lambda network=network: called_with(network, example)  # noqa: E731
                measured.append(milliseconds(run, self.device, self.num_threads))
            else:
                measured.append(float(measure(network, example)))
        return Trust(tuple(architectures), tuple(summed), tuple(measured))


@dataclass(frozen=True)
class Trust:
    """What random networks were measured to take, beside the sums of their layers; printed, it is a line.

    Attributes:
        architectures: The networks.
        summed: Milliseconds as the sums have it.
        measured: Milliseconds from end to end.
    """

    architectures: tuple[Architecture, ...]
    summed: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def error(self) -> float:
        """The mean of the sums' relative errors."""
        pairs = zip(self.summed, self.measured, strict=True)
        return statistics.fmean(abs(summed - measured) / measured for summed, measured in pairs)

    @property
    def bias(self) -> float:
        """The median of sum / measured: by this the sums can be divided."""
        return statistics.median(summed / measured for summed, measured in zip(self.summed, self.measured, strict=True))

    @property
    def tau(self) -> float:
        """Kendall's rank correlation (tau-b): 1 where the sums rank networks as they are, 0 where they say nothing."""
        tau = kendall_tau(self.summed, self.measured)
        return 0.0 if math.isnan(tau) else tau

    def __str__(self) -> str:
        return (
            f"{len(self.measured)} random networks of {min(self.measured):.3g} to {max(self.measured):.3g} ms: the "
            f"sums are off by {self.error:.0%} (median {self.bias:.2f} times what is measured), rank correlation "
            f"{self.tau:.2f}"
        )


class FileMeasure:
    """Makes `measure` of a `Latency` from a function that measures a file, as one that copies it to a board.

    Args:
        function: Function `path -> milliseconds`.
        write: Function `(layer, args, kwargs, path)` that writes the file. Default: by `torch.export`, as ".pt2".
        suffix: What the file's name ends in. Default: ".pt2".

    >>> measure = FileMeasure(lambda path: path.stat().st_size / 1e6, write=lambda layer, args, kwargs, path: (
    ...     torch.save(layer.state_dict(), path)), suffix=".pt")
    >>> measure(nn.Linear(4, 4), (torch.ones(1, 4),), {}) > 0
    True
    """

    def __init__(
        self,
        function: Callable[[Path], float],
        *,
        write: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Path], Any] | None = None,
        suffix: str = ".pt2",
    ) -> None:
        check_functions(function=function, write=write)
        self._function, self._write, self._suffix = function, write or _exported, suffix

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Return what the function says of a file of the layer."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"layer{self._suffix}"
            self._write(layer, args, kwargs, path)
            return self._function(path)


def _exported(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    torch.export.save(torch.export.export(layer, args, kwargs), path)


def milliseconds(run: Callable[[], Any], device: torch.device, num_threads: int) -> float:
    """Return how long a function takes, in milliseconds: the median of blocks of calls, the slowest quarter cut.

    Args:
        run: The function.
        device: Where it runs; a GPU is waited for.
        num_threads: Number of threads of torch.
    """
    from torch.utils.benchmark import Timer  # late, for it imports setuptools

    timer = Timer("run()", globals={"run": run}, num_threads=num_threads)
    # It waits for the current GPU.
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        once = timer.timeit(WARM_UP).mean
        number = max(1, round(MIN_SECONDS / max(once, 1e-9)))
        blocks = sorted(timer.timeit(number).mean for _ in range(NUM_BLOCKS if once < 0.1 else 5))
    return 1e3 * statistics.median(blocks[: max(1, 3 * len(blocks) // 4)])


def _with_values(layer: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a layer without values that has some: small ones, so that nothing is slow for being denormal."""
    layer = copy.deepcopy(layer).to_empty(device=device).eval()
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data = _some(tensor, device)
    return layer


def _some(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of some values in the place of one without: whole numbers are zeros, which any table has."""
    strided = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if not tensor.is_floating_point():
        return strided.zero_()
    generator = torch.Generator(device).manual_seed(0)
    return strided.uniform_(0.1, 1, generator=generator)


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
