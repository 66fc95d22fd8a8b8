"""A mixture of all options, as DARTS has it (arXiv 1806.09055)."""

from __future__ import annotations

import torch

from supernet.relaxations.relaxation import Relaxation

__all__ = ["Softmax"]


class Softmax(Relaxation):
    """Every option runs, weighted by its probability.

    That is the softmax of the logits; where the number of chosen inputs is not fixed, each is chosen on its own, with
    probability sigmoid. Of k inputs the weights are shares that sum to 1, not how probable it is that an input is among
    the k, as `log_prob` has it.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> [weight.shape for weight in Softmax(space).plan(progress=0).values()]
    [torch.Size([2])]
    """

    def plan(self, progress: float) -> dict[str, torch.Tensor]:
        """Return label -> the probability of each option (K,)."""
        logits = self.logits.named_parameters() if type(self).scores is Relaxation.scores else self.scores().items()
        return {label: self.activations[label](logits_K) for label, logits_K in logits}
