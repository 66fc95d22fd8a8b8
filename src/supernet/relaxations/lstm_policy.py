"""ENAS's controller (arXiv 1802.03268): an LSTM that makes one decision after another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Distribution, kl_divergence

from supernet.checks import check_counts
from supernet.errors import ChoiceError, TrainingError
from supernet.nn.domain import in_words
from supernet.relaxations.relaxation import Relaxation
from supernet.space import Architecture, Decision, SearchSpace

__all__ = ["EnasController"]

NUM_DERIVED = 100  # architectures that are compared where the most probable decisions break a constraint
MAX_DECISIONS = 10_000  # of one InputChoice that takes several inputs, among which one is drawn


class Rollout(NamedTuple):
    """An architecture as the controller decides it, and what its objective is made of, each differentiable."""

    architecture: Architecture
    log_prob: torch.Tensor
    entropy: torch.Tensor  # of the decisions, in nats
    skip_penalty: torch.Tensor  # KL of each input's probability to `skip_target`, in nats


class EnasController(Relaxation):
    """A policy over architectures: an LSTM that makes one decision after another.

    A LayerChoice is decided by a softmax over its candidates, an InputChoice by attention over its inputs: an
    input that `choose_from` names after an earlier choice, or after the module that holds it, is represented by the
    LSTM's state after that choice, any other by a vector that is learnt. One of n inputs is a softmax over them, k
    of n a softmax over the sets of k by the sum of their scores, any number an independent Bernoulli each, and within
    bounds the same on condition that they are kept: a softmax over those sets.

    Choices of one label are decided once, and those inside candidates that are not chosen not at all. What is drawn is
    drawn again until it keeps the constraints of the space, of which `log_prob` does not know: it is that of a draw
    without them. A policy's gradient lacks then that of how probable it is that they are kept, whose factor is the mean
    advantage, and a baseline keeps this near 0.

    Args:
        space: The space whose architectures it decides.
        lstm_size: Size of the LSTM's state and of all vectors. Default: 64.
        lstm_num_layers: Number of the LSTM's layers. Default: 1.
        tanh_constant: Logits become `tanh_constant * tanh(logits)`; None leaves them. Default: 1.5.
        temperature: What logits are divided by before; None leaves them. Default: None.
        skip_target: The probability towards which inputs are held whose number is not fixed. Default: 0.4.
        entropy_reduction: Whether entropies and penalties of the decisions are added up ("sum") or averaged
            ("mean"). Default: "sum".
        seed: Seed of the parameters, uniform between -0.1 and 0.1, and of the generator.
        dtype: The dtype of the parameters, which are of float32 at least. Default: torch's default.
        device: Taken as every relaxation takes it. The policy stays on the CPU, for it is small and its decisions are
            needed there.

    Raises:
        ChoiceError: An InputChoice has too many sets of inputs.
        TrainingError: An argument cannot be.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        lstm_size: int = 64,
        lstm_num_layers: int = 1,
        tanh_constant: float | None = 1.5,
        temperature: float | None = None,
        skip_target: float = 0.4,
        entropy_reduction: Literal["sum", "mean"] = "sum",
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(space, seed=seed)
        check_counts(lstm_size=lstm_size, lstm_num_layers=lstm_num_layers)
        if entropy_reduction not in ("sum", "mean"):
            raise TrainingError(f"entropy_reduction is 'sum' or 'mean', not {entropy_reduction!r}")
        if not 0 < skip_target < 1:
            raise TrainingError(f"skip_target is a probability between 0 and 1, not {skip_target!r}")
        self.tanh_constant, self.temperature, self.skip_target = tanh_constant, temperature, skip_target
        self.entropy_reduction = entropy_reduction
        self._sets = {label: _sets_of_inputs(space, label) for label in space}
        self._origins = {label: _origins(space, label) for label in space}
        self._positions = {label: position for position, label in enumerate(space)}  # labels may have dots
        widths = [len(domain.options) for domain in space.values()]
        self.start = nn.Parameter(torch.empty(1, lstm_size))
        self.lstm = nn.ModuleList(nn.LSTMCell(lstm_size, lstm_size) for _ in range(lstm_num_layers))
        self.embeddings = nn.ModuleList(nn.Embedding(width, lstm_size) for width in widths)
        self.soft = nn.ModuleList(
            nn.Identity() if domain.is_set else nn.Linear(lstm_size, width, bias=False)
            for width, domain in zip(widths, space.values(), strict=True)
        )
        self.attention_anchor = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attention_query = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attention_score = nn.Linear(lstm_size, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.to(torch.promote_types(dtype, torch.float32))  # steps are lost in what 16 bits round
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)

    def initial_logits(self, *_: Any) -> dict[str, nn.Parameter]:
        """Return none: logits come out of the LSTM."""
        return {}

    def plan(self, progress: float) -> Architecture:
        """Return an architecture that is drawn."""
        return self.sample()

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Return an architecture.

        Args:
            generator: What it is drawn from, on the CPU. Default: the policy's own.
        """
        generator = self.generator if generator is None else generator
        with torch.no_grad():
            return self.space.until_allowed(lambda: self(generator=generator).architecture)

    def probabilities(self) -> dict[str, torch.Tensor]:
        """Return none: those of a decision depend on the decisions before it."""
        return {}

    def log_probs(self) -> dict[str, torch.Tensor]:
        """Return none, for the same reason."""
        return {}

    def log_prob(self, architecture: Mapping[str, Any]) -> torch.Tensor:
        """Return the logarithm of an architecture's probability, differentiable in the parameters."""
        return self(architecture).log_prob

    def derive(self) -> Architecture:
        """Return the architecture of the most probable decision each, after the decisions before it.

        Where that breaks a constraint of the space, it is the most probable of 100 that are drawn and keep all.
        """
        with torch.no_grad():
            greedy = self(greedy=True).architecture
            if self.space.allows(greedy):
                return greedy
            generator = torch.Generator().manual_seed(0)  # for nothing of the search's is drawn
            drawn = [self.sample(generator) for _ in range(NUM_DERIVED)]
            return max(drawn, key=lambda architecture: float(self.log_prob(architecture)))

    def forward(
        self,
        architecture: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Rollout:
        """Follow the architecture that is given, or draw one by the generator, or be greedy."""
        given = None if architecture is None else self.space.canonical(architecture)
        size = self.start.shape[1]
        states = [(self.start.new_zeros(1, size), self.start.new_zeros(1, size)) for _ in self.lstm]
        following: torch.Tensor = self.start
        seen: dict[str, torch.Tensor] = {}  # label -> the state after its decision
        log_probs, entropies, penalties = [], [], []

        def decide(label: str) -> Decision:
            nonlocal following
            for layer, cell in enumerate(self.lstm):
                states[layer] = cell(following, states[layer])
                following = states[layer][0]
            embeddings = self._embeddings(label, seen)
            distribution = self._distribution(label, following, embeddings)
            if given is not None:
                value = self._value(label, given[label])
            else:
                value = _largest(distribution) if greedy else self._drawn(distribution, generator)
            log_probs.append(distribution.log_prob(value).sum())
            entropies.append(distribution.entropy().sum())
            if not self.space[label].is_fixed:
                penalties.append(kl_divergence(distribution, self._target(label, distribution)).sum())
            decision, rows = self._decision(label, value)
            seen[label] = following
            following = embeddings[rows].mean(0, keepdim=True) if rows else self.start
            return decision

        decided = self.space.follow(decide)
        return Rollout(decided, torch.stack(log_probs).sum(), self._reduced(entropies), self._reduced(penalties))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *more: Any) -> None:
        state = {f"{prefix}_extra_state": self.get_extra_state(), **state}  # older ones have no generator's
        super()._load_from_state_dict(state, prefix, *more)

    def _reduced(self, terms: list[torch.Tensor]) -> torch.Tensor:
        if not terms:
            return self.start.new_zeros(())
        return torch.stack(terms).sum() if self.entropy_reduction == "sum" else torch.stack(terms).mean()

    def _embeddings(self, label: str, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what represents each candidate or input, (K, lstm_size)."""
        rows = self.embeddings[self._positions[label]].weight
        origins = self._origins[label]
        if not any(origins):
            return rows  # type: ignore[return-value]
        last = [next((seen[origin] for origin in reversed(group) if origin in seen), None) for group in origins]
        return torch.cat([rows[i : i + 1] if state is None else state for i, state in enumerate(last)])  # type: ignore[index]

    def _distribution(self, label: str, query: torch.Tensor, embeddings: torch.Tensor) -> Distribution:
        domain = self.space[label]
        if domain.is_set:
            logits = self.attention_score(
                torch.tanh(self.attention_anchor(embeddings) + self.attention_query(query))
            ).squeeze(-1)
        else:
            logits = self.soft[self._positions[label]](query)[0]
        if self.temperature is not None:
            logits = logits / self.temperature
        if self.tanh_constant is not None:
            logits = self.tanh_constant * torch.tanh(logits)
        if not domain.is_set:
            return Categorical(logits=logits)
        sets = self._sets[label]
        if sets is None:
            return Bernoulli(logits=logits)
        return Categorical(logits=torch.stack([logits[chosen].sum() for chosen in sets]))

    def _target(self, label: str, distribution: Distribution) -> Distribution:
        """Return the distribution in which each input is chosen with probability `skip_target`, within its bounds."""
        if isinstance(distribution, Bernoulli):
            return Bernoulli(torch.full_like(distribution.probs, self.skip_target))
        counts = self.start.new_tensor([len(chosen) for chosen in self._sets[label] or []])
        return Categorical(logits=counts * math.log(self.skip_target / (1 - self.skip_target)))

    def _drawn(self, distribution: Distribution, generator: torch.Generator | None) -> torch.Tensor:
        with torch.no_grad():
            if isinstance(distribution, Categorical):
                return torch.multinomial(distribution.probs, 1, generator=generator)[0]
            return torch.bernoulli(distribution.probs, generator=generator)  # type: ignore[attr-defined]

    def _value(self, label: str, decision: Decision) -> torch.Tensor:
        """Return a decision as its distribution has it."""
        domain, sets = self.space[label], self._sets[label]
        chosen = domain.positions(decision)
        if not domain.is_set:
            return torch.tensor(chosen[0])
        if sets is not None:
            return torch.tensor(sets.index(list(chosen)))
        return torch.tensor([float(i in chosen) for i in range(len(domain.options))], dtype=self.start.dtype)

    def _decision(self, label: str, value: torch.Tensor) -> tuple[Decision, list[int]]:
        """Return the decision that a value means, and which candidates or inputs it takes."""
        domain, sets = self.space[label], self._sets[label]
        if not domain.is_set:
            chosen = [int(value)]
        else:
            chosen = value.nonzero().flatten().tolist() if sets is None else list(sets[int(value)])
        return domain.decision(chosen), chosen


def _largest(distribution: Distribution) -> torch.Tensor:
    if isinstance(distribution, Categorical):
        return distribution.probs.argmax()
    return (distribution.probs > 0.5).to(distribution.probs)  # type: ignore[attr-defined]


def _sets_of_inputs(space: SearchSpace, label: str) -> list[list[int]] | None:
    """Return what a softmax decides between for an input choice; None for layers, and where inputs are apart."""
    domain = space[label]
    if not domain.is_set or domain.arity is None:
        return None
    if domain.size > MAX_DECISIONS:
        raise ChoiceError(
            f"choice {label!r} has {domain.size:,} sets of {in_words(domain.arity)} inputs; a softmax over them "
            f"bears {MAX_DECISIONS:,}: give it fewer inputs, or n_chosen=None"
        )
    return [list(domain.positions(decision)) for decision in domain]


def _origins(space: SearchSpace, label: str) -> list[list[str]]:
    """Return for each input the earlier choices that its name in `choose_from` tells of, in order."""
    domain = space[label]
    if not domain.is_set or not domain.are_named:
        return []
    earlier = list(space)[: list(space).index(label)]
    return [[e for e in earlier if e == name or e.startswith(f"{name}.")] for name in domain.options]
