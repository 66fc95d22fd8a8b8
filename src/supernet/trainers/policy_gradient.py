"""REINFORCE (Williams, 1992) with a moving average of rewards as its baseline, for policies over architectures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from supernet.checks import check_functions, check_numbers
from supernet.errors import TrainingError
from supernet.trainers.bilevel import BilevelTrainer
from supernet.training.forward import judged

__all__: list[str] = []


class PolicyGradientTrainer(BilevelTrainer):
    """Trains a policy, a relaxation that draws architectures, by their rewards on validation batches.

    `E[(R - b) grad log pi]` is the gradient of `E[R]` for any b that does not depend on the architecture. Here b is the
    moving average of the rewards before; it begins at the first. R is the reward minus the trainer's terms.

    Args:
        task: `model, loss, metrics, optimizer, num_epochs, dataset`, as `SupernetTrainer` has them.
        baseline_decay: Share that the moving average keeps of what it was when a reward is taken in.
        reward_function: `(output, target) -> number`, higher is better. Default: minus the loss.
        config: The keyword arguments of `BilevelTrainer` and `SupernetTrainer`.

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

    def train_architecture(self, val_X: Any, val_y: Any, trn_X: Any = None, trn_y: Any = None) -> None:
        """Take a step of the policy by the reward of one architecture on a validation batch."""
        path = self.plan()
        with torch.no_grad(), self.frozen_weights():
            output = self.forward(val_X, path)
            loss = self.compute_loss("valid", output, val_y)
            reward = self.reward_of(output, val_y, loss) - float(self.with_terms(0.0, path))
        self.optimizer_step(
            -self.advantage_of(reward, path) * self.relaxation.log_prob(path), self.architecture_optimizer
        )
        self.check_architecture()

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
