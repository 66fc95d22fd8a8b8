"""What a step must leave as it was: gradients nobody uses, weights, running statistics, random numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

__all__: list[str] = []


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient of these parameters inside this context."""
    wanted = [p for p in parameters if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Bring these parameters back to their values, bit by bit, after this context."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


class Buffers:
    """The buffers of a model: running statistics and the like. Found once, for a module walk has no place in a step."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Bring the buffers back to their values after this context, also where a forward puts in new tensors."""
        before = [(m, name, b, b.clone()) for m, name in self._places if (b := m._buffers.get(name)) is not None]
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in before:
                    module._buffers[name] = buffer.copy_(value)


class RandomState:
    """The state of torch's random numbers at one moment, to come back to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device else None

    def put_back(self) -> None:
        """Draw from here on as from that moment on."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None and self._device is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's random numbers inside this context, and put them back after."""
    numpy = sys.modules.get("numpy")  # who does not use NumPy need not have it
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
