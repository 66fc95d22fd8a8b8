"""Distributions over the decisions of a space, as logits that can be trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from supernet.space import Architecture, LayerDomain, SearchSpace

__all__ = ["most_probable", "new_logits", "probabilities"]

Logits = dict[str, nn.Parameter]


def new_logits(space: SearchSpace, *, seed: int, dtype: torch.dtype, device: torch.device) -> Logits:
    """Return label -> logits (K,), one for each candidate or input, 1e-3 * standard normal.

    Choices of one label share one vector. The numbers depend on the seed only, not on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        label: nn.Parameter((1e-3 * torch.randn(_width(space, label), generator=generator)).to(device, dtype))
        for label in space
    }


def probabilities(logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return label -> softmax of its logits (K,)."""
    return {label: torch.softmax(vector, -1) for label, vector in logits.items()}


def most_probable(space: SearchSpace, logits: Mapping[str, torch.Tensor]) -> Architecture:
    """Return the architecture of the largest logits.

    The largest of a layer choice; of an input choice the `n_chosen` largest (one where it is None), ascending.
    Of equal ones the first counts.
    """
    decisions: Architecture = {}
    for label, domain in space.items():
        values = logits[label].tolist()
        best = sorted(range(len(values)), key=lambda k: -values[k])
        if isinstance(domain, LayerDomain):
            decisions[label] = domain.names[best[0]]
        else:
            decisions[label] = sorted(best[: domain.n_chosen or 1])
    return space.canonical(decisions)


def _width(space: SearchSpace, label: str) -> int:
    domain = space[label]
    return len(domain.names) if isinstance(domain, LayerDomain) else domain.n_candidates
