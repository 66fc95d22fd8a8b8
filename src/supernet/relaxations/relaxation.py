"""What a trainable distribution over the architectures of a space is to a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from supernet.execution.state import derive_seed
from supernet.relaxations.logits import (
    Logits,
    activation_of,
    log_prob_of,
    log_probs_of,
    most_probable,
    new_logits,
    probabilities,
)
from supernet.space import Architecture, SearchSpace

__all__ = ["Relaxation"]


class Relaxation(nn.Module):
    """A trainable distribution over architectures, which says at each step what the choices of a supernet run.

    A subclass writes `plan`. All else follows from the logits, one for each option: their softmax or, where the number
    of chosen inputs is not fixed, sigmoid. Of a distribution that is in another way made from its parameters `scores`
    says which logits it has, or those methods are written anew.

    It is a module: its parameters are what an architecture optimizer trains, and its state, the generator's too, is in
    `state_dict()`.

    Args:
        space: The space whose architectures are distributed.
        seed: Seed of the logits and of the generator.
        dtype: The dtype of the logits, which are of float32 at least.
        device: Device of the logits.

    Attributes:
        logits: Logits (K,) of each label.
        activations: Functions of logits of each label, which give the probability of each option.
        generator: What is drawn comes from here. It is on the CPU, and the same in all processes.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.space = space
        self.activations = {label: activation_of(domain) for label, domain in space.items()}
        self.generator = torch.Generator().manual_seed(derive_seed(seed, 2))
        self.logits = Logits(self.initial_logits(seed, dtype, device))

    def initial_logits(self, seed: int, dtype: torch.dtype, device: torch.device | str) -> Mapping[str, nn.Parameter]:
        """Return label -> logits to begin with. Default: 1e-3 * standard normal, one for each option."""
        return new_logits(self.space, seed=seed, dtype=dtype, device=device)

    def plan(self, progress: float) -> dict[str, Any]:
        """Return label -> what runs in a step of the architecture, differentiable in the parameters.

        Args:
            progress: How much of the search is done, from 0 to 1, for schedules.

        Returns:
            What `supernet.execution.Selection` describes: weights (K,) of all options, a decision, or a `Selection`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define plan(progress)")

    def weights_plan(self, progress: float) -> dict[str, Any]:
        """Return label -> what runs in a step of the weights. Default: what `plan` returns, without a gradient."""
        with torch.no_grad():
            return self.plan(progress)

    def warmup_plan(self, progress: float) -> dict[str, Any]:
        """Return label -> what runs in a step of the weights while these alone are trained. Default: `weights_plan`."""
        return self.weights_plan(progress)

    def scores(self) -> Mapping[str, torch.Tensor]:
        """Return label -> the logit of each option (K,), which all below follows from. Default: `logits`."""
        return self.logits

    def probabilities(self) -> dict[str, torch.Tensor]:
        """Return label -> the probability of each option (K,), differentiable; draws nothing.

        Of one option, or any number of inputs, they are what `log_prob` has. Of k inputs they are shares by
        softmax, which sum to 1, and not how probable it is that an input is among the k; of a number within bounds they
        are what each input has before the bounds, by sigmoid. For either add up what `log_prob` gives.
        """
        return probabilities(self.space, self.scores())

    def log_prob(self, architecture: Mapping[str, Any]) -> torch.Tensor:
        """Return the logarithm of an architecture's probability, differentiable in the parameters."""
        path, scores = self.space.canonical(architecture), self.scores()
        return torch.stack([log_prob_of(self.space[label], scores[label], path[label]) for label in path]).sum()

    def log_probs(self) -> dict[str, torch.Tensor]:
        """Return label -> the logarithm of the probability of each decision, in the order of its domain (D,).

        They are differentiable, and add up to what `log_prob` says of an architecture. A distribution whose `log_prob`
        does not follow from `scores` writes this anew too; one whose decisions depend on each other returns none.
        """
        return {label: log_probs_of(self.space[label], scores_K) for label, scores_K in self.scores().items()}

    def derive(self) -> Architecture:
        """Return the architecture of the most probable decision of each label; of equal ones the first counts."""
        return most_probable(self.space, self.scores())

    def begin_step(self) -> None:
        """Draw what all batches of an architecture step share, for its first is coming. Default: nothing."""

    def stepping(self) -> AbstractContextManager[None]:
        """Return what a step of the architecture optimizer stands in. Default: nothing."""
        return nullcontext()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let what torch draws on the CPU without a generator, such as `rsample()`, come from this one's.

        What is drawn on another device does not: draw it on the CPU, and move it there.
        """
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what `state_dict()` holds beside parameters and buffers."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        self.generator.set_state(state["generator"])
