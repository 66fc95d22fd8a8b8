"""REINFORCE (Williams, 1992) with a moving average of rewards as its baseline, for policies over architectures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.errors import TrainingError
from supernet.space import Architecture
from supernet.trainers.bilevel import BilevelTrainer
from supernet.trainers.sampled import SampledTrainer
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.forward import judged
from supernet.training.metrics import Meter

__all__: list[str] = []

TRIES = 10  # draws of a policy before limits draw in its place


class Rewarded(SupernetTrainer):
    """The part of a trainer of a policy that makes rewards of what comes out, and advantages of rewards.

    `E[(R - b) grad log pi]` is the gradient of `E[R]` for any b that does not depend on the architecture. Here b is the
    moving average of the rewards before; it begins at the first.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        baseline_decay: Share that the moving average keeps of what it was when a reward is taken in.
        reward_function: `(output, target) -> number`, higher is better. Default: minus the loss.
        config: Like all other arguments by name, the same as what trains by these rewards takes.

    Attributes:
        baseline: The moving average of rewards. It is None before the first.
    """

    def __init__(
        self,
        *task: Any,
        baseline_decay: float,
        reward_function: Callable[[Any, Any], Any] | None = None,
        **config: Any,
    ) -> None:
        check_numbers(0, 1, baseline_decay=baseline_decay)
        check_functions(reward_function=reward_function)
        self.reward_function, self.baseline_decay = reward_function, baseline_decay
        self.baseline: float | None = None
        super().__init__(*task, **config)

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        # A callback may change the decay while it trains.
        return {**super().stateful(), "baseline": self.baseline, "baseline_decay": self.baseline_decay}

    def reward_of(self, output: Any, target: Any, loss: torch.Tensor) -> float:
        """Return the reward of what came out of a validation batch, over the samples of all processes."""
        reward = -loss if self.reward_function is None else self.reward_function(*judged(output, target))
        return self.mean_over_processes(reward, "valid")

    def advantage_of(self, reward: float, architecture: Mapping[str, Any]) -> float:
        """Return how much more an architecture's reward is than the average of those before, which takes it in.

        Raises:
            TrainingError: The reward is NaN or infinite.
        """
        if not math.isfinite(reward):
            raise TrainingError(f"reward_function returned {reward} for {architecture}; it must return a finite number")
        self.means.update("reward", reward)
        advantage = 0.0 if self.baseline is None else reward - self.baseline
        self.baseline = reward - self.baseline_decay * advantage  # d b + (1 - d) R
        return advantage


class PolicyGradientTrainer(Rewarded, BilevelTrainer):
    """Trains a relaxation as a policy, a step with each validation batch, by the reward of one architecture less terms.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        config: Like all other arguments by name, the same as `Rewarded` and `BilevelTrainer` take.
    """

    def train_architecture(self, val_X: Any, val_y: Any, trn_X: Any = None, trn_y: Any = None) -> None:
        """Take a step of the policy by the reward of one architecture on a validation batch."""
        path = self.plan()
        with torch.no_grad(), self.frozen_weights():
            output = self.forward(val_X, path)
            loss = self.compute_loss("valid", output, val_y)
            of_path = [term for term in self.terms if term not in self.limit_terms]
            reward = self.reward_of(output, val_y, loss) - float(self.with_terms(0.0, path, of_path))
        loss = -self.advantage_of(reward, path) * self.relaxation.log_prob(path)
        # What the distribution says of limits has a gradient of its own, which needs no reward.
        self.optimizer_step(self.with_terms(loss, path, self.limit_terms), self.architecture_optimizer)
        self.check_architecture()


class PolicyByEpochsTrainer(Rewarded, SampledTrainer):
    """Trains the weights for an epoch on paths that a policy draws, then the policy for one on validation batches.

    While the policy is trained the weights are fixed, and the model is in eval form. A subclass makes `controller` and
    `controller_optimizer`, says by `controller_loss` what is descended, and writes `export`.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        ctrl_steps_aggregate: Number of architectures, each with a validation batch of its own, whose gradients are
            averaged into one step of the policy.
        config: Like all other arguments by name, the same as `Rewarded` and `SampledTrainer` take; `score` is the
            reward by default.

    Where there are limits, all that runs keeps them: the policy draws until it does, a few times at most, and then
    they draw. What the policy draws beyond them does not run, and counts in its next step as what had the worst reward
    so far, so that it comes to draw what keeps them.

    Attributes:
        pending: Architectures and advantages of the policy's next step.
        worst_reward: The worst reward so far. It is None before the first.
    """

    controller: Any
    controller_optimizer: Optimizer

    def __init__(self, *task: Any, ctrl_steps_aggregate: int, **config: Any) -> None:
        check_counts(ctrl_steps_aggregate=ctrl_steps_aggregate)
        super().__init__(*task, **{"score": _reward, **config})
        self.ctrl_steps_aggregate, self.pending = int(ctrl_steps_aggregate), list[dict[str, Any]]()
        self.worst_reward: float | None = None
        if self.limits is None:  # then it is no state, and older checkpoints have none
            self._ours.add("worst_reward")

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        policy = {"controller": self.controller, "controller_optimizer": self.controller_optimizer}
        # A callback may change how many are aggregated while it trains.
        steps = {"pending": self.pending, "ctrl_steps_aggregate": self.ctrl_steps_aggregate}
        worst = {} if self.limits is None else {"worst_reward": self.worst_reward}
        return {**super().stateful(), **policy, **steps, **worst}

    def sample(self) -> Architecture:
        """Return an architecture that the policy draws."""
        return self.drawn(self.generator)[0]

    def drawn(self, generator: torch.Generator) -> tuple[Architecture, list[Architecture]]:
        """Return an architecture that keeps the limits, and those that the policy drew before it, beyond them."""
        beyond: list[Architecture] = []
        while self.limits is not None and len(beyond) < TRIES:
            path = self.controller.sample(generator)
            if self.limits(path):
                return path, beyond
            beyond.append(path)
        return (self.controller if self.limits is None else self.limits).sample(generator), beyond

    def use_validation_batch(self, val_X: Any, val_y: Any) -> None:
        """Take the reward of an architecture on a validation batch, and every so often a step of the policy."""
        architecture, beyond = self.drawn(self.generator)
        with self._forms.evaluating(self.loss):
            output = self.distributed.forward_local(val_X, architecture)
        with torch.no_grad():
            reward = self.reward_of(output, val_y, self.compute_loss("valid", output, val_y))
        advantage = self.advantage_of(reward, architecture)
        self.worst_reward = min(reward, reward if self.worst_reward is None else self.worst_reward)
        if len(beyond) < TRIES:  # else it is not the policy that has drawn it
            self.pending.append({"architecture": architecture, "advantage": advantage})
        assert self.baseline is not None, "which has taken in a reward"
        self.pending += [{"architecture": path, "advantage": self.worst_reward - self.baseline} for path in beyond]
        is_last = self.valid_part.length is not None and self.step + 1 - self.training_steps == self.valid_part.length
        if len(self.pending) >= self.ctrl_steps_aggregate or is_last:
            self.train_controller()

    def train_controller(self) -> None:
        """Take a step of the policy on the architectures whose rewards are known."""
        self.controller_optimizer.zero_grad()
        for sampled in self.pending:
            (self.controller_loss(**sampled) / len(self.pending)).backward()
        self.apply_gradients(self.controller_optimizer, clip=self.grad_clip)
        self.pending = []

    def controller_loss(self, architecture: Mapping[str, Any], advantage: float) -> torch.Tensor:
        """Return what the policy descends for one architecture: its gradient is REINFORCE's."""
        return -advantage * self.controller.log_prob(architecture)

    def evaluation_meters(self) -> list[Meter]:
        """Return what measures loss and metrics, and what measures the reward."""
        reward_of = self.reward_function or (lambda output, y: -self.loss_of(output, y))
        return [*super().evaluation_meters(), Meter(lambda output, y: {"reward": reward_of(output, y)}, self.device)]

    def where(self) -> str:
        """Return how far the search is: "Model Epoch" while weights are trained, "RL Epoch" with the policy."""
        begun, phase, length = 0, "Model", self.train_part.length
        if self.training_steps:
            begun, phase, length = self.training_steps, "RL", self.valid_part.length
        return f"{phase} Epoch [{self.epoch + 1}/{self.num_epochs}] Step [{self.step - begun}/{length or '?'}]"


def _reward(measured: Mapping[str, float]) -> float:
    return measured["reward"]
