"""Distributions over the decisions of a space, as logits that can be trained, and their estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from supernet.space import Architecture, Decision, Domain, SearchSpace

__all__ = ["DecisionDistribution", "binary_gates", "most_probable", "new_logits", "probabilities"]

Logits = dict[str, nn.Parameter]


def new_logits(space: SearchSpace, *, seed: int, dtype: torch.dtype, device: torch.device) -> Logits:
    """Return label -> logits (K,), one for each candidate or input, 1e-3 * standard normal.

    Choices of one label share one vector. The numbers depend on the seed only, not on the device. They are of float32
    at least, for an optimizer's steps are lost in what 16 bits round.
    """
    return _new_logits({label: len(domain.options) for label, domain in space.items()}, seed, dtype, device)


def probabilities(space: SearchSpace, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return label -> the probability of each candidate or input (K,).

    Softmax of the logits; where the number of chosen inputs is not fixed, sigmoid: each is chosen on its own.
    """
    return {label: probabilities_of(space[label], vector) for label, vector in logits.items()}


def probabilities_of(domain: Domain, logits: torch.Tensor) -> torch.Tensor:
    """Return the same for one domain and its logits (K,)."""
    return torch.softmax(logits, -1) if domain.is_fixed else torch.sigmoid(logits)


def most_probable(space: SearchSpace, logits: Mapping[str, torch.Tensor]) -> Architecture:
    """Return the most probable architecture, of logits as `probabilities` reads them.

    The largest of a layer choice; of an input choice the `n_chosen` largest or, where that is not fixed, those above 0,
    which are more probable than not; where these are too few or too many for its bounds, as many of the largest as keep
    them. Of equal ones the first counts.
    """
    return space.canonical({label: most_probable_of(domain, logits[label]) for label, domain in space.items()})


def most_probable_of(domain: Domain, logits: torch.Tensor) -> Decision:
    """Return the same for one domain and its logits (K,)."""
    return domain.decision(domain.best(logits.tolist()))


class DecisionDistribution:
    """Each label's decision drawn on its own, by softmax of its logits: one logit for each decision of its domain.

    Unlike a mixture's logits, those of an input choice belong to sets of inputs, not to single ones.

    Args:
        space: whose decisions.
        seed: of the logits, 1e-3 * standard normal.
        dtype: of the logits; float32 at least.
        device: of the logits.

    Attributes:
        decisions: label -> its decisions, in the domain's order.
        logits: label -> logits (K,).
    """

    def __init__(self, space: SearchSpace, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.space = space
        self.decisions: dict[str, list[Decision]] = {label: list(domain) for label, domain in space.items()}
        self.logits = _new_logits({label: len(ds) for label, ds in self.decisions.items()}, seed, dtype, device)

    def sample(self, generator: torch.Generator) -> Architecture:
        """Return an architecture; the generator is the CPU's."""
        drawn = self.draw(1, generator)
        return self.space.follow(lambda label: self.decisions[label][drawn[label][0]])

    def draw(self, count: int, generator: torch.Generator) -> dict[str, list[int]]:
        """Return label -> positions of `count` decisions (fewer where there are fewer), without replacement."""
        widths = [len(vector) for vector in self.logits.values()]
        values = torch.cat([vector.detach() for vector in self.logits.values()]).cpu().double()  # one wait for a GPU
        drawn = {}
        for label, vector in zip(self.logits, values.split(widths), strict=True):
            # A decision that has become impossible in float64 may still be needed as the second of two.
            p = torch.softmax(vector, -1).clamp_min(torch.finfo(torch.float64).tiny)
            drawn[label] = torch.multinomial(p, min(count, len(p)), generator=generator).tolist()
        return drawn

    def log_prob(self, architecture: Architecture) -> torch.Tensor:
        """Return the logarithm of an architecture's probability, differentiable in the logits of what it decides."""
        terms = [
            torch.log_softmax(self.logits[label], -1)[self.decisions[label].index(decision)]
            for label, decision in architecture.items()
        ]
        return torch.stack(terms).sum()

    def most_probable(self) -> Architecture:
        """Return the architecture of the largest logits; of equal ones the first counts."""
        return self.space.follow(lambda label: self.decisions[label][int(self.logits[label].argmax())])


def binary_gates(logits: torch.Tensor, drawn: Sequence[int], active: int) -> torch.Tensor:
    """Return gates of the decisions at positions `drawn`: 1 for `drawn[active]`, 0 for the others.

    Their gradient goes to the logits by BinaryConnect's estimator, as if the gates were the probabilities p
    that softmax gives among those drawn (arXiv 1812.00332):
    `dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`.

    Args:
        logits: (K,).
        drawn: positions, each once.
        active: which of them is active.

    Returns:
        Gates (len(drawn),).
    """
    p = torch.softmax(logits[list(drawn)], -1)
    hot = torch.zeros_like(p)
    hot[active] = 1
    return hot + (p - p.detach())  # exactly 1 and 0


def _new_logits(widths: Mapping[str, int], seed: int, dtype: torch.dtype, device: torch.device) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(dtype, torch.float32)
    return {
        label: nn.Parameter((1e-3 * torch.randn(width, generator=generator)).to(device, dtype))
        for label, width in widths.items()
    }
