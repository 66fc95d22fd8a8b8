"""Each label's decision drawn on its own, by a logit for each decision."""

# K decisions of a choice

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.domain import in_words
from supernet.relaxations.logits import of_widths
from supernet.relaxations.relaxation import Relaxation
from supernet.space import Architecture, Decision

__all__ = ["DecisionDistribution"]

MAX_DECISIONS = 1_000  # of one InputChoice, each of which has a logit


class DecisionDistribution(Relaxation):
    """Each label's decision drawn on its own, by softmax of its logits: one logit for each decision of its domain.

    Unlike a mixture's logits, those of an input choice belong to sets of inputs, not to single ones. What runs is an
    architecture that is drawn, through which no gradient comes: it is trained by `log_prob`, as a policy. It is drawn
    again until it keeps the constraints of the space, of which `log_prob` does not know: see `EnasController`.

    Args:
        space, seed, dtype, device: As `Relaxation` has them.

    Attributes:
        decisions: The decisions of each label, in the order of its domain.
        logits: Logits (K,) of each label.

    Raises:
        ChoiceError: A choice has too many sets of inputs for each to have a logit.
    """

    decisions: dict[str, list[Decision]]

    def initial_logits(self, seed: int, dtype: torch.dtype, device: torch.device | str) -> Mapping[str, nn.Parameter]:
        """Return label -> the logits that a search begins with: 1e-3 * standard normal, one for each decision."""
        for label, domain in self.space.items():
            if domain.is_set and domain.size > MAX_DECISIONS:
                raise ChoiceError(
                    f"choice {label!r} has {domain.size:,} sets of {in_words(domain.arity)} inputs, each of which "
                    f"would have an alpha; at most {MAX_DECISIONS:,} are borne: give it fewer inputs, or use a trainer "
                    "that samples"
                )
        self.decisions = {label: list(domain) for label, domain in self.space.items()}
        return of_widths({label: len(known) for label, known in self.decisions.items()}, seed, dtype, device)

    def plan(self, progress: float) -> dict[str, Any]:
        """Return an architecture that is drawn."""
        return self.sample()

    def warmup_plan(self, progress: float) -> dict[str, Any]:
        """Return an architecture that is drawn uniformly, or by the choices' priors."""
        return self.space.sample(self.generator)

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture.

        Args:
            generator: What it is drawn from, on the CPU. Default: this distribution's own.
        """

        def draw() -> Architecture:
            drawn = self.draw(1, generator)
            return self.space.follow(lambda label: self.decisions[label][drawn[label][0]])

        return self.space.until_allowed(draw)

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, list[int]]:
        """Return label -> positions of `count` decisions (fewer where there are fewer), without replacement."""
        generator = self.generator if generator is None else generator
        widths = [len(logits_K) for logits_K in self.logits.values()]
        # One wait for a GPU.
        values = torch.cat([logits_K.detach() for logits_K in self.logits.values()]).cpu().double()
        drawn = {}
        for label, values_K in zip(self.logits, values.split(widths), strict=True):
            # A decision that has become impossible in float64 may still be needed as the second of two.
            p_K = torch.softmax(values_K, -1).clamp_min(torch.finfo(torch.float64).tiny)
            drawn[label] = torch.multinomial(p_K, min(count, len(p_K)), generator=generator).tolist()
        return drawn

    def log_prob(self, architecture: Mapping[str, Any]) -> torch.Tensor:
        """Return the logarithm of an architecture's probability, differentiable in the logits of what it decides."""
        terms = [
            torch.log_softmax(self.logits[label], -1)[self.decisions[label].index(decision)]
            for label, decision in self.space.canonical(architecture).items()
        ]
        return torch.stack(terms).sum()

    def log_probs(self) -> dict[str, torch.Tensor]:
        """Return label -> the logarithm of the probability of each decision (D,): see `Relaxation.log_probs`."""
        return {label: torch.log_softmax(logits_D, -1) for label, logits_D in self.logits.items()}

    def probabilities(self) -> dict[str, torch.Tensor]:
        """Return label -> the probability of each option; of inputs as shares that sum to 1 where k are chosen."""
        shares = {}
        for label, logits_K in self.logits.items():
            p_K, domain = torch.softmax(logits_K, -1), self.space[label]
            if domain.is_set:
                sets = [domain.positions(decision) for decision in self.decisions[label]]
                holds = torch.tensor([[i in chosen for chosen in sets] for i in range(len(domain.options))]).to(p_K)
                p_K = holds @ p_K / (domain.bounds[1] if domain.is_fixed else 1)
            shares[label] = p_K
        return shares

    def derive(self) -> Architecture:
        """Return the architecture of the largest logits; of equal ones the first counts."""
        return self.space.best(
            lambda label: self.decisions[label][int(self.logits[label].argmax())],
            lambda label: self.logits[label].tolist(),
        )

    most_probable = derive  # its former name
