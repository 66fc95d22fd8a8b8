"""A choice's candidates, run and mixed the fast way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from supernet.execution.apart import Apart
from supernet.execution.fast.shared import Shared
from supernet.execution.fast.tracing import TraceCache, trace_of
from supernet.execution.fast.weighted_sum import Term, fused_weighted_sum

__all__ = ["Candidates", "can_be_fast"]


class Candidates:
    """What a choice's candidates are made of, and how they are mixed.

    Args:
        modules: Name -> candidate, which is called with one tensor.
        cache: Graphs of candidates that have been traced before; new ones are added.

    Attributes:
        traces: Name -> what the candidate is made of.
        common: What two candidates have in common, for which all of them run as they are; else None.
    """

    def __init__(self, modules: Mapping[str, nn.Module], cache: TraceCache) -> None:
        self.traces = {name: trace_of(module, cache) for name, module in modules.items()}
        self.common = _common(modules)

    def weighted_sum(
        self, x: torch.Tensor, weights_K: torch.Tensor, shared: Shared, apart: Apart
    ) -> torch.Tensor | dict[str, Any]:
        """Return `sum_k weights[k] o_k(x)`; or, where that is no sum of tensors of one shape, name -> output."""
        terms: list[Term | None] = []
        for k, (name, trace) in enumerate(self.traces.items()):
            if trace.runs_as_it_is or not trace.holds():
                terms.append(Term(k, apart.run(name, trace.module, (x,), {})))
            elif trace.has_choices:  # what stands there may change its input
                terms.append(apart.run(name, trace.module, (k, x, shared), {}, trace.term))
            else:
                terms.append(trace.term(k, x, shared))
        present = [term for term in terms if term is not None]
        if present and _can_be_summed(present, weights_K):
            return fused_weighted_sum(weights_K, present, shared)
        of_modules = zip(self.traces.items(), terms, strict=True)
        return {name: trace.module(x) if term is None else term.output() for (name, trace), term in of_modules}


def can_be_fast(x: Any, weights: torch.Tensor) -> bool:
    """Say whether x is a tensor, and this a moment, that the fast way is made for."""
    return (
        type(x) in (torch.Tensor, nn.Parameter)
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == weights.dtype
        and x.device == weights.device
        and x.layout == torch.strided
        and weights.dim() == 1
        and not torch.is_autocast_enabled(x.device.type)  # which casts by operation, and knows none of ours
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()  # of our functions there is neither a vmap
        and forward_ad._current_level < 0  # nor a forward derivative
        and not nn.modules.module._has_any_global_hook()  # a folded module is not called
    )


def _can_be_summed(terms: list[Term], weights_K: torch.Tensor) -> bool:
    first = terms[0].tensor
    return all(
        type(t.tensor) in (torch.Tensor, nn.Parameter)
        and t.tensor.dtype == weights_K.dtype
        and t.tensor.shape == first.shape
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
