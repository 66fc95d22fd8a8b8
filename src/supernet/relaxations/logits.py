"""Logits (K,) of each label: how they begin, and what they say of its decisions."""

# K options of a choice

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from supernet.space import Architecture, Decision, Domain, SearchSpace

__all__ = ["Logits", "log_prob_of", "most_probable", "new_logits", "probabilities"]


class Logits(nn.Module, Mapping[str, nn.Parameter]):
    """Label -> logits (K,), which are the module's parameters.

    Labels may have dots and be called as attributes of modules are, which `nn.ParameterDict` refuses.

    Args:
        values: The logits of each label.
    """

    __eq__, __hash__ = object.__eq__, object.__hash__  # a module is what it is, whatever it maps

    def __init__(self, values: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._parameters.update(values)

    def __getitem__(self, label: str) -> nn.Parameter:
        return self._parameters[label]  # type: ignore[return-value]  # never None

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def _load_from_state_dict(
        self, state: Any, prefix: str, local: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        # It would take what has dots for parameters of children, of which there are none.
        super()._load_from_state_dict(state, prefix, local, False, missing, unexpected, errors)
        names = {key.removeprefix(prefix) for key in state if key.startswith(prefix)} if strict else set()
        missing += sorted(prefix + label for label in self._parameters.keys() - names if strict)
        unexpected += sorted(prefix + name for name in names - self._parameters.keys())


def new_logits(
    space: SearchSpace, *, seed: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, nn.Parameter]:
    """Return label -> logits (K,), one for each candidate or input, 1e-3 * standard normal.

    Choices of one label share one vector. The numbers depend on the seed only, not on the device. They are of float32
    at least, for an optimizer's steps are lost in what 16 bits round.

    Args:
        space: The space whose options they are.
        seed: Seed of the numbers.
        dtype: Their dtype, if it has 32 bits or more. Otherwise they are of float32.
        device: Where they are put.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> new_logits(space, seed=0, dtype=torch.float32, device="cpu")["act"].shape
    torch.Size([2])
    """
    return of_widths({label: len(domain.options) for label, domain in space.items()}, seed, dtype, device)


def of_widths(
    widths: Mapping[str, int], seed: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, nn.Parameter]:
    """Return the same for labels of so many logits."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(dtype, torch.float32)
    return {
        label: nn.Parameter((1e-3 * torch.randn(width, generator=generator)).to(device, dtype))
        for label, width in widths.items()
    }


def probabilities(space: SearchSpace, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return label -> the probability of each candidate or input (K,).

    Softmax of the logits; where the number of chosen inputs is not fixed, sigmoid: each is chosen on its own. So of k
    inputs they are shares that sum to 1, and not what `log_prob_of` says of how probable each is among the k.

    Args:
        space: The space whose options they are.
        logits: The logits (K,) of each label.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> probabilities(space, {"act": torch.tensor([0.0, 0.0])})
    {'act': tensor([0.5000, 0.5000])}
    """
    return {label: probabilities_of(space[label], logits_K) for label, logits_K in logits.items()}


def probabilities_of(domain: Domain, logits_K: torch.Tensor) -> torch.Tensor:
    """Return the same for one domain."""
    return activation_of(domain)(logits_K)


def activation_of(domain: Domain) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function of logits (K,) that gives the probability of each option."""
    return partial(torch.softmax, dim=-1) if domain.is_fixed else torch.sigmoid


def most_probable(space: SearchSpace, logits: Mapping[str, torch.Tensor]) -> Architecture:
    """Return the most probable architecture, of logits as `probabilities` reads them.

    The largest of a layer choice; of an input choice the `n_chosen` largest or, where that is not fixed, those above 0,
    which are more probable than not; where these are too few or too many for its bounds, as many of the largest as keep
    them. Of equal ones the first counts. Where that breaks a constraint, it is the next one that keeps all.

    Args:
        space: The space whose options they are.
        logits: The logits (K,) of each label.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> most_probable(space, {"act": torch.tensor([0.0, 1.0])})
    {'act': 'tanh'}
    """

    def scores(label: str) -> list[float]:
        values = logits[label].tolist()
        return [sum(values[i] for i in space[label].positions(decision)) for decision in space[label]]

    return space.best(lambda label: most_probable_of(space[label], logits[label]), scores)


def most_probable_of(domain: Domain, logits_K: torch.Tensor) -> Decision:
    """Return the same for one domain."""
    return domain.decision(domain.best(logits_K.tolist()))


def log_prob_of(domain: Domain, logits_K: torch.Tensor, decision: Decision) -> torch.Tensor:
    """Return the logarithm of a decision's probability, which is in proportion to exp of the sum of its logits.

    That is softmax where one option is chosen, and independent choices by sigmoid where any number is. Where the number
    is fixed, or has bounds, it is the same on condition that these are kept.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")))
    >>> log_prob_of(space["act"], torch.tensor([0.0, 0.0]), "tanh").exp()
    tensor(0.5000)
    """
    chosen = list(domain.positions(decision))
    if not domain.is_set:
        return torch.log_softmax(logits_K, -1)[chosen[0]]
    low, high = domain.bounds
    return logits_K[chosen].sum() - torch.logsumexp(torch.stack(_log_sums(logits_K, high)[low:]), 0)


def _log_sums(logits_K: torch.Tensor, most: int) -> list[torch.Tensor]:
    """Return for each count up to `most` the logarithm of what all sets of so many options have, added up."""
    sums = [logits_K.new_zeros(())]  # of the first options, none yet: the empty set
    for logit in logits_K.unbind():
        with_it = [total + logit for total in sums]
        both = [torch.logaddexp(a, b) for a, b in zip(sums[1:], with_it[:-1], strict=True)]
        sums = [sums[0], *both, with_it[-1]][: most + 1]
    return sums


def log_probs_of(domain: Domain, logits_K: torch.Tensor) -> torch.Tensor:
    """Return the same of every decision, in the order of the domain (D,)."""
    if not domain.is_set:
        return torch.log_softmax(logits_K, -1)
    return torch.log_softmax(_chosen(domain, logits_K.dtype, logits_K.device) @ logits_K, -1)


@functools.lru_cache(64)
def _chosen(domain: Domain, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return whether each decision chooses each option, as 1 and 0 (D, K)."""
    with torch.inference_mode(False):  # what is made there could never be part of a gradient
        chosen_DK = torch.zeros(domain.size, len(domain.options))
        for row, decision in enumerate(domain):
            chosen_DK[row, list(domain.positions(decision))] = 1
        return chosen_DK.to(device, dtype)
