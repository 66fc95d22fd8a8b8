"""A choice's candidates, run and mixed the fast way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from supernet.execution.apart import Apart
from supernet.execution.fast.shared import Shared
from supernet.execution.fast.tracing import TraceCache, read
from supernet.execution.fast.weighted_sum import Term, fused_weighted_sum

__all__ = ["Candidates", "can_be_fast"]


class Candidates:
    """What a choice's candidates are made of, and how they are mixed.

    Args:
        modules: name -> candidate, called with one tensor.
        known: what candidates of the same structure are made of.

    Attributes:
        readings: name -> what was found.
        common: what two candidates have in common, for which all of them run as they are; else None.
    """

    def __init__(self, modules: Mapping[str, nn.Module], known: TraceCache) -> None:
        self.readings = {name: read(module, known) for name, module in modules.items()}
        self.common = _common(modules)

    def weighted_sum(
        self, x: torch.Tensor, p: torch.Tensor, shared: Shared, apart: Apart
    ) -> torch.Tensor | dict[str, Any]:
        """Return `sum_k p[k] o_k(x)`; or, where that is no sum of tensors of one shape, name -> output."""
        terms: list[Term | None] = []
        for k, (name, reading) in enumerate(self.readings.items()):
            if reading.is_plain or not reading.holds():
                terms.append(Term(k, apart.run(name, reading.module, (x,), {})))
            elif reading.has_choices:  # what stands there may change its input
                terms.append(apart.run(name, reading.module, (k, x, shared), {}, reading.term))
            else:
                terms.append(reading.term(k, x, shared))
        present = [term for term in terms if term is not None]
        if present and _can_be_summed(present, p):
            return fused_weighted_sum(p, present, shared)
        of_modules = zip(self.readings.items(), terms, strict=True)
        return {name: reading.module(x) if term is None else term.output() for (name, reading), term in of_modules}


def can_be_fast(x: Any, p: torch.Tensor) -> bool:
    """Say whether x is a tensor, and this a moment, that the fast way is made for."""
    return (
        type(x) in (torch.Tensor, nn.Parameter)
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == p.dtype
        and x.device == p.device
        and x.layout == torch.strided
        and p.dim() == 1
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not nn.modules.module._has_any_global_hook()
    )


def _can_be_summed(terms: list[Term], p: torch.Tensor) -> bool:
    first = terms[0].tensor
    return all(
        type(t.tensor) in (torch.Tensor, nn.Parameter) and t.tensor.dtype == p.dtype and t.tensor.shape == first.shape
        for t in terms
    )


def _common(modules: Mapping[str, nn.Module]) -> str | None:
    owners: dict[int, str] = {}
    for name, candidate in modules.items():
        own = [*candidate.modules(), *candidate.parameters(), *candidate.buffers()]
        for other in {owners[id(thing)] for thing in own if id(thing) in owners}:
            return f"{other!r} and {name!r} share modules or parameters"
        owners.update((id(thing), name) for thing in own)
    return None
