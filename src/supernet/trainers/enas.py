"""ENAS: Efficient Neural Architecture Search via Parameter Sharing (arXiv 1802.03268)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Distribution, kl_divergence
from torch.optim import Adam, Optimizer
from typing_extensions import Unpack

from supernet.checks import check_counts, check_numbers
from supernet.data.loaders import Data, derive_seed
from supernet.errors import ChoiceError, TrainingError
from supernet.nn.domain import in_words
from supernet.space import Architecture, Decision, SearchSpace
from supernet.trainers.sampled import SampledTrainer
from supernet.trainers.subnet_search import SampledOptions
from supernet.training.forward import judged
from supernet.training.metrics import Meter, Metrics

__all__ = ["EnasController", "EnasTrainer"]

MAX_DECISIONS = 10_000  # of one InputChoice that takes several inputs, among which one is drawn


class Rollout(NamedTuple):
    """An architecture as the controller decides it, and what its objective is made of, each differentiable."""

    architecture: Architecture
    log_prob: torch.Tensor
    entropy: torch.Tensor  # of the decisions, in nats
    skip_penalty: torch.Tensor  # KL of each input's probability to `skip_target`, in nats


class EnasController(nn.Module):
    """A policy over architectures: an LSTM that makes one decision after another.

    A LayerChoice is decided by a softmax over its candidates, an InputChoice by attention over its inputs: an
    input that `choose_from` names after an earlier choice, or after the module that holds it, is represented by the
    LSTM's state after that choice, any other by a vector that is learnt. One of n inputs is a softmax over them, k
    of n a softmax over the sets of k by the sum of their scores, any number an independent Bernoulli each, and within
    bounds the same on condition that they are kept: a softmax over those sets.

    Choices of one label are decided once, and those inside candidates that are not chosen not at all.

    Args:
        space: whose decisions.
        lstm_size: of the LSTM's state and all vectors. Default: 64.
        lstm_num_layers: of the LSTM. Default: 1.
        tanh_constant: logits become `tanh_constant * tanh(logits)`; None leaves them. Default: 1.5.
        temperature: what logits are divided by before; None leaves them. Default: None.
        skip_target: the probability towards which inputs are held whose number is not fixed. Default: 0.4.
        entropy_reduction: whether entropies and penalties of the decisions are added up ("sum") or averaged
            ("mean"). Default: "sum".
        seed: of the parameters, uniform between -0.1 and 0.1.

    Raises:
        ChoiceError: an InputChoice has too many sets of inputs.
        TrainingError: an argument cannot be.
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
    ) -> None:
        super().__init__()
        check_counts(lstm_size=lstm_size, lstm_num_layers=lstm_num_layers)
        if entropy_reduction not in ("sum", "mean"):
            raise TrainingError(f"entropy_reduction is 'sum' or 'mean', not {entropy_reduction!r}")
        if not 0 < skip_target < 1:
            raise TrainingError(f"skip_target is a probability between 0 and 1, not {skip_target!r}")
        self.space = space
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
        self.to(torch.promote_types(torch.get_default_dtype(), torch.float32))  # steps are lost in what 16 bits round
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)

    def forward(
        self, architecture: Mapping[str, Any] | None = None, generator: torch.Generator | None = None
    ) -> Rollout:
        """Draw an architecture by the generator, or follow the one that is given."""
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
            value = self._drawn(distribution, generator) if given is None else self._value(label, given[label])
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


class EnasTrainer(SampledTrainer):
    """ENAS (arXiv 1802.03268): a controller that is trained by REINFORCE draws the paths.

    An epoch trains the weights on the training part, each batch on a path that the controller draws; then the
    controller on the validation part, with the weights fixed and the model in eval form. It maximises
    `E[reward] + entropy_weight * entropy - skip_weight * skip_penalty`.

    Departs from the paper: the baseline begins at the first reward; architectures that `export` compares have
    BatchNorm's statistics computed anew.

    Args:
        model, loss, metrics: as `SupernetTrainer` has them.
        reward_function: `(output, target) -> number`, higher is better.
        optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        entropy_weight: of the policy's entropy. Default: 1e-4.
        skip_weight: of the penalty on inputs whose number is not fixed. Default: 0.8.
        baseline_decay: of the moving average of rewards that is subtracted from each. Default: 0.999.
        ctrl_lr: of Adam, which trains the controller. Default: 3.5e-4.
        ctrl_steps_aggregate: architectures, each with a validation batch of its own, whose gradients are averaged
            into one step of the controller. Default: 20.
        ctrl_kwargs: of `EnasController`. Default: none.
        num_samples: architectures that `export` draws, evaluates by their reward, and keeps the best of. Default: 10.
        options: the keyword arguments of `SampledTrainer` and `SupernetTrainer`; `score` is the reward here.

    Attributes:
        controller: the policy. It stays on the CPU, for it is small and its decisions are needed there.
        baseline: the moving average of rewards.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: as `SupernetTrainer`.
        ChoiceError: an InputChoice has too many sets of inputs.
    """

    free_options = frozenset({"num_samples"})

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        reward_function: Callable[[Any, Any], Any],
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
        ctrl_lr: float = 3.5e-4,
        ctrl_steps_aggregate: int = 20,
        ctrl_kwargs: Mapping[str, Any] | None = None,
        num_samples: int = 10,
        **options: Unpack[SampledOptions],
    ) -> None:
        check_counts(ctrl_steps_aggregate=ctrl_steps_aggregate, num_samples=num_samples)
        check_numbers(0, 1, baseline_decay=baseline_decay)
        check_numbers(ctrl_lr=ctrl_lr)
        check_numbers(-math.inf, entropy_weight=entropy_weight, skip_weight=skip_weight)
        if not callable(reward_function):
            raise TrainingError(f"reward_function is a function (output, target) -> number, not {reward_function!r}")
        options.setdefault("score", _reward)
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **options)
        self.reward_function, self.num_samples = reward_function, num_samples
        self.entropy_weight, self.skip_weight, self.baseline_decay = entropy_weight, skip_weight, baseline_decay
        self.ctrl_steps_aggregate = int(ctrl_steps_aggregate)
        self.controller = EnasController(self.space, seed=self.seed, **(ctrl_kwargs or {}))
        self.controller_optimizer = Adam(self.controller.parameters(), ctrl_lr)
        self.baseline: float | None = None
        self.pending: list[dict[str, Any]] = []  # architectures and advantages of the controller's next step
        self.build_path_supernet()

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {
            **super().stateful(),
            "controller": self.controller,
            "controller_optimizer": self.controller_optimizer,
            "baseline": self.baseline,
            "pending": self.pending,
            # A callback may change these while it trains.
            "baseline_decay": self.baseline_decay,
            "ctrl_steps_aggregate": self.ctrl_steps_aggregate,
            "entropy_weight": self.entropy_weight,
            "skip_weight": self.skip_weight,
        }

    def sample(self) -> Architecture:
        """Return an architecture that the controller draws."""
        with torch.no_grad():
            return self.controller(generator=self.generator).architecture

    def use_validation_batch(self, val_X: Any, val_y: Any) -> None:
        """Take the reward of an architecture on a validation batch, and every so often a step of the controller."""
        architecture = self.sample()
        with self._forms.evaluating(self.loss):
            output = self.distributed.forward_local(val_X, architecture)
        with torch.no_grad():
            self.compute_loss("valid", output, val_y)
            reward = self.mean_over_processes(self.reward_function(*judged(output, val_y)), "valid")
        if not math.isfinite(reward):
            raise TrainingError(f"reward_function returned {reward} for {architecture}; it must return a finite number")
        self.means.update("reward", reward)
        advantage = 0.0 if self.baseline is None else reward - self.baseline
        self.baseline = reward - self.baseline_decay * advantage  # d b + (1 - d) R
        self.pending.append({"architecture": architecture, "advantage": advantage})
        is_last = self.valid_part.length is not None and self.step + 1 - self.training_steps == self.valid_part.length
        if len(self.pending) == self.ctrl_steps_aggregate or is_last:
            self.train_controller()

    def train_controller(self) -> None:
        """Take a step of the controller on the architectures whose rewards are known."""
        self.controller_optimizer.zero_grad()
        for sampled in self.pending:
            (self.controller_loss(**sampled) / len(self.pending)).backward()
        parameters = list(self.controller.parameters())
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if self.grad_clip is None else self.grad_clip)
        self.means.update("architecture_gradient_norm", norm)
        self.controller_optimizer.step()
        self.pending = []

    def controller_loss(self, architecture: Mapping[str, Any], advantage: float) -> torch.Tensor:
        """Return what the controller descends for one architecture: its gradient is REINFORCE's."""
        rollout = self.controller(architecture)
        loss = -advantage * rollout.log_prob - self.entropy_weight * rollout.entropy
        return loss + self.skip_weight * rollout.skip_penalty

    def evaluation_meters(self) -> list[Meter]:
        """Return what measures loss and metrics, and what measures the reward."""
        return [
            *super().evaluation_meters(),
            Meter(lambda output, y: {"reward": self.reward_function(output, y)}, self.device),
        ]

    def export(self) -> Architecture:
        """Return the best of some that the controller draws; they are drawn once, at the end of `fit`.

        All processes must call it together. Where it has not drawn since the weights last moved, it does.
        """
        return self.search_once(self._evaluate_drawn, self.num_samples)

    def _evaluate_drawn(self) -> Architecture:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 3))
        with torch.no_grad():
            drawn = [self.controller(generator=generator).architecture for _ in range(self.num_samples)]
        return self.best(drawn, 1)[0]

    def where(self) -> str:
        """Return how far the search is: "Model Epoch" while weights are trained, "RL Epoch" with the controller."""
        begun, phase, length = 0, "Model", self.train_part.length
        if self.training_steps:
            begun, phase, length = self.training_steps, "RL", self.valid_part.length
        return f"{phase} Epoch [{self.epoch + 1}/{self.num_epochs}] Step [{self.step - begun}/{length or '?'}]"


def _reward(measured: Mapping[str, float]) -> float:
    return measured["reward"]


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
