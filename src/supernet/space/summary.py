"""How large a space is, and its networks: parameters and multiply-accumulates of the smallest and the largest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.errors import SpaceError
from supernet.nn.domain import Decision, Domain
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.flops import counting, flop_counter
from supernet.space.freeze import freeze
from supernet.space.original import model_itself
from supernet.space.space import Architecture, SearchSpace

__all__ = ["NetworkSize", "SpaceSummary"]

FEW_DECISIONS, MAX_DECISIONS = 8, 1_000  # of one choice: so many are all tried, of more than so many none


class NetworkSize(NamedTuple):
    """An architecture, and how large its network is.

    Attributes:
        architecture: Label -> decision.
        parameters: Number of the network's parameters.
        macs: Multiply-accumulates of matrix products, convolutions and attention, for the example as it was given.
    """

    architecture: Architecture
    parameters: int
    macs: int


@dataclass(frozen=True)
class SpaceSummary:
    """How large a space is, and its networks; printed, it is a table.

    Attributes:
        num_architectures: Number of architectures; None where these cannot be counted.
        smallest: The network of the fewest parameters.
        median: The one of the median number of parameters, of a random sample.
        largest: The one of the most parameters.
        is_exact: Whether all architectures were looked at. Else the median is that of a sample, and smallest and
            largest are the best that were found, by changing one decision at a time.
    """

    num_architectures: int | None
    smallest: NetworkSize
    median: NetworkSize
    largest: NetworkSize
    is_exact: bool

    def __str__(self) -> str:
        count = "too many" if self.num_architectures is None else f"{self.num_architectures:,}"
        rows = [("", "parameters", "MACs")]
        rows += [(name, f"{row.parameters:,}", f"{row.macs:,}") for name, row in self._rows().items()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
        title = f"{count} architectures{'' if self.is_exact else ', of which a sample was looked at'}"
        return "\n".join([title, *lines])

    def _rows(self) -> dict[str, NetworkSize]:
        return {"smallest": self.smallest, "median": self.median, "largest": self.largest}


def summarize(space: SearchSpace, model: nn.Module, example: Any, *, num_samples: int, seed: int) -> SpaceSummary:
    """Return what `SearchSpace.summary` does; see there."""
    check_counts(num_samples=num_samples)
    model = model_itself(model)
    theirs, ours = (_without_constraints(one) for one in (SearchSpace(model), space))
    if theirs != ours:
        raise SpaceError(f"this is not the space of this {type(model).__name__}; give the model that it was made of")
    light = _Sizes(model)
    try:
        size: int | None = space.size
    except SpaceError:
        size = None
    generator = torch.Generator().manual_seed(seed)
    is_exact = size is not None and size <= num_samples
    known = list(space.enumerate()) if is_exact else [space.sample(generator) for _ in range(num_samples)]
    ranked = sorted(known, key=light.parameters)
    smallest, largest = ranked[0], ranked[-1]
    if not is_exact:
        everywhere = space.draw(generator)
        smallest = descended(space, smallest, everywhere, light.parameters)
        largest = descended(space, largest, everywhere, lambda architecture: -light.parameters(architecture))
    median = ranked[(len(ranked) - 1) // 2]
    rows = [NetworkSize(one, light.parameters(one), light.macs(one, example)) for one in (smallest, median, largest)]
    return SpaceSummary(size, rows[0], rows[1], rows[2], is_exact)


def _without_constraints(space: SearchSpace) -> dict[str, Any]:
    return {name: value for name, value in space.to_json().items() if name != "constraints"}


def descended(
    space: SearchSpace, start: Architecture, everywhere: Mapping[str, Any], cost: Callable[[Architecture], float]
) -> Architecture:
    """Return what changing one decision at a time leads to, as long as the cost falls."""
    best, least = start, cost(start)
    is_falling = True  # a cost that is NaN never falls
    while is_falling:
        is_falling = False
        for label in list(space):
            for decision in _tried(space[label], best[label]) if label in best else ():
                known = {**everywhere, **best, label: decision}
                architecture = space.follow(known.__getitem__)
                if space.allows(architecture) and (found := cost(architecture)) < least:
                    best, least, is_falling = architecture, found, True
    return best


def _tried(domain: Domain, decision: Decision) -> list[Decision]:
    """Return the decisions to try in the place of one: all, or the ends and the neighbours of it."""
    if domain.size > MAX_DECISIONS:
        return []
    decisions = list(domain)
    if len(decisions) <= FEW_DECISIONS:
        return decisions
    here = decisions.index(decision)
    return [decisions[0], decisions[-1], decisions[max(here - 1, 0)], decisions[min(here + 1, len(decisions) - 1)]]


class _Sizes:
    """Measures the networks of a model, on a copy without values where the model lets it be: on the device "meta".

    Args:
        model: A module with choices.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._on_meta = model, on_meta(model)
        self._parameters: dict[str, int] = {}

    def parameters(self, architecture: Architecture) -> int:
        """Return how many parameters the network of an architecture has."""
        key = repr(architecture)
        if key not in self._parameters:
            self._parameters[key] = sum(p.numel() for p in freeze(self._on_meta, architecture).parameters())
        return self._parameters[key]

    def macs(self, architecture: Architecture, example: Any) -> int:
        """Return the multiply-accumulates of the network for an example."""
        try:
            return _macs(freeze(self._on_meta, architecture), moved(example, "meta"))
        except Exception:  # what needs values, such as `.item()` or `.numpy()`, or says what is wrong
            return _macs(freeze(self._model, architecture), example)


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters and buffers have no values; those that are tied stay so."""
    without_values: dict[int, Any] = {}
    for p in model.parameters():
        without_values[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for buffer in model.buffers():
        without_values[id(buffer)] = buffer.detach().to("meta")
    return with_what_cannot_be_copied(lambda memo: copy.deepcopy(model, {**without_values, **memo}))


def moved(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(inner, device) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(inner, device) for inner in value)
    return value


def _macs(network: nn.Module, example: Any) -> int:
    network.eval()
    counter = flop_counter()
    with counting(), counter:
        called_with(network, example)
    return int(counter.get_total_flops()) // 2


def called_with(module: nn.Module, example: Any) -> Any:
    """Return what a module gives for an example: a tuple of arguments, a dict of keyword arguments, or one argument."""
    if isinstance(example, tuple):
        return module(*example)
    return module(**example) if isinstance(example, dict) else module(example)
