"""ProxylessNAS's binary gates, two of each choice at a time (arXiv 1812.00332)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from supernet.execution.selection import Selection
from supernet.relaxations.decisions import DecisionDistribution
from supernet.space import Architecture

__all__ = ["Gates", "binary_gates"]


class Gates(DecisionDistribution):
    """Two decisions of each choice are drawn without replacement; one of them is active, the other gives its output.

    The gradients of their gates train both logits by the probabilities among the two, and all others keep their
    probabilities. A step of the weights runs one path, drawn by softmax of the logits.

    Args:
        space, seed, dtype, device: As `Relaxation` has them.

    Attributes:
        drawn: Positions of the two of each label, for all batches of one step.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drawn: dict[str, list[int]] = {}

    def begin_step(self) -> None:
        """Draw two decisions of each choice; the first ones keep the constraints of the space."""

        def draw() -> Architecture:
            self.drawn = self.draw(2)
            return {label: self.decisions[label][two[0]] for label, two in self.drawn.items()}

        self.space.until_allowed(draw)

    def plan(self, progress: float) -> dict[str, Selection]:
        """Return label -> the two decisions drawn, the active one first, and their gates."""
        if not self.drawn:
            self.begin_step()
        gates, logits = {}, dict(self.logits)
        firsts = [torch.softmax(_of(logits[label].detach(), two), -1)[0] for label, two in self.drawn.items()]
        uniforms = torch.rand(len(firsts), generator=self.generator, dtype=torch.float64)
        is_first = (uniforms < torch.stack(firsts).double().cpu()).tolist()  # one wait for a GPU
        for (label, two), first in zip(self.drawn.items(), is_first, strict=True):
            # The path of the active ones keeps the constraints; outputs alone may be of what does not.
            order = two if first or self.space.constraints else two[::-1]
            decisions = tuple(self.decisions[label][k] for k in order)
            gates[label] = Selection(decisions, binary_gates(logits[label], order, 0), detached=len(order) - 1)
        return gates

    def weights_plan(self, progress: float) -> dict[str, Any]:
        """Return an architecture that is drawn."""
        return self.sample()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Let a step inside leave the probabilities of what was not drawn as they were."""
        logits = dict(self.logits)

        def pair_logsumexp(label: str) -> torch.Tensor:
            """Return the logarithm of `exp(alpha_i) + exp(alpha_j)` of the two drawn."""
            return torch.logsumexp(_of(logits[label].detach(), self.drawn[label]), -1)

        before = {label: pair_logsumexp(label) for label in self.drawn}
        yield
        with torch.no_grad():
            for label, two in self.drawn.items():
                change = before[label] - pair_logsumexp(label)
                for k in two:
                    logits[label][k].add_(change)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what `state_dict()` holds beside parameters and buffers."""
        return {**super().get_extra_state(), "drawn": self.drawn}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.drawn = state["drawn"]


def binary_gates(logits: torch.Tensor, drawn: Sequence[int], active: int) -> torch.Tensor:
    """Return gates of the decisions at positions `drawn`: 1 for `drawn[active]`, 0 for the others.

    Their gradient goes to the logits by BinaryConnect's estimator, as if the gates were the probabilities p
    that softmax gives among those drawn (arXiv 1812.00332):
    `dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`.

    Args:
        logits: Logits (K,) of all decisions.
        drawn: Positions of the decisions drawn, each once.
        active: Which of them is active.

    Returns:
        Gates (len(drawn),).

    >>> binary_gates(torch.zeros(3), [2, 0], active=0).tolist()
    [1.0, 0.0]
    """
    p = torch.softmax(_of(logits, drawn), -1)
    hot = torch.zeros_like(p)
    hot[active].fill_(1)
    return hot + (p - p.detach())  # exactly 1 and 0


def _of(logits: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Return the logits at some positions, one by one: to bring a list to a GPU waits for all that runs there."""
    return torch.stack([logits[k] for k in positions])
