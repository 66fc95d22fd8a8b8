"""ENAS: Efficient Neural Architecture Search via Parameter Sharing (arXiv 1802.03268)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Adam

from supernet.checks import check_counts, check_numbers
from supernet.data.loaders import derive_seed
from supernet.errors import TrainingError
from supernet.relaxations import EnasController
from supernet.space import Architecture
from supernet.trainers.policy_gradient import PolicyByEpochsTrainer

__all__ = ["EnasTrainer"]


class EnasTrainer(PolicyByEpochsTrainer):
    """ENAS (arXiv 1802.03268): a controller that is trained by REINFORCE draws the paths.

    An epoch trains the weights on the training part, each batch on a path that the controller draws; then the
    controller on the validation part, with the weights fixed and the model in eval form. It maximises
    `E[reward] + entropy_weight * entropy - skip_weight * skip_penalty`.

    Departs from the paper: the baseline begins at the first reward; architectures that `export` compares have
    BatchNorm's statistics computed anew.

    Args:
        model, loss, metrics: The same as `SupernetTrainer` takes by these names.
        reward_function: `(output, target) -> number`, higher is better.
        optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        entropy_weight: What a nat of the policy's entropy is worth. Default: 1e-4.
        skip_weight: What a nat of the penalty on inputs whose number is not fixed costs. Default: 0.8.
        baseline_decay: Decay of the moving average of rewards that is subtracted from each. Default: 0.999.
        ctrl_lr: Learning rate of Adam, which trains the controller. Default: 3.5e-4.
        ctrl_steps_aggregate: Number of architectures, each with a validation batch of its own, whose gradients are
            averaged into one step of the controller. Default: 20.
        ctrl_kwargs: Keyword arguments of `EnasController`. Default: none.
        num_samples: Number of architectures that `export` draws, evaluates by their reward, and keeps the best of.
            Default: 10.
        recalibration_samples: The same as `SubnetSearchTrainer` takes; `score` is the reward here.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        controller: The policy. It stays on the CPU, for it is small and its decisions are needed there.
        baseline: The moving average of rewards.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: As `SupernetTrainer`.
        ChoiceError: An InputChoice has too many sets of inputs.
    """

    free_options = frozenset({"num_samples"})

    def __init__(
        self,
        model: Any,
        loss: Any,
        metrics: Any,
        reward_function: Callable[[Any, Any], Any],
        *task: Any,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
        ctrl_lr: float = 3.5e-4,
        ctrl_steps_aggregate: int = 20,
        ctrl_kwargs: Mapping[str, Any] | None = None,
        num_samples: int = 10,
        **config: Any,
    ) -> None:
        check_counts(num_samples=num_samples)
        check_numbers(ctrl_lr=ctrl_lr)
        check_numbers(-math.inf, entropy_weight=entropy_weight, skip_weight=skip_weight)
        if not callable(reward_function):
            raise TrainingError(f"reward_function is a function (output, target) -> number, not {reward_function!r}")
        policy: dict[str, Any] = {"baseline_decay": baseline_decay, "ctrl_steps_aggregate": ctrl_steps_aggregate}
        super().__init__(model, loss, metrics, *task, reward_function=reward_function, **policy, **config)
        self.entropy_weight, self.skip_weight, self.num_samples = entropy_weight, skip_weight, num_samples
        self.controller = EnasController(self.space, seed=self.seed, **(ctrl_kwargs or {}))
        self.controller_optimizer = Adam(self.controller.parameters(), ctrl_lr)
        self.build_path_supernet()

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        # A callback may change these while it trains.
        return {**super().stateful(), "entropy_weight": self.entropy_weight, "skip_weight": self.skip_weight}

    def controller_loss(self, architecture: Mapping[str, Any], advantage: float) -> torch.Tensor:
        """Return what the controller descends for one architecture: its gradient is REINFORCE's."""
        rollout = self.controller(architecture)
        loss = -advantage * rollout.log_prob - self.entropy_weight * rollout.entropy
        return loss + self.skip_weight * rollout.skip_penalty

    def export(self) -> Architecture:
        """Return the best of some that the controller draws; they are drawn once, at the end of `fit`.

        All processes must call it together. Where it has not drawn since the weights last moved, it does.
        """
        return self.search_once(self._evaluate_drawn, self.num_samples)

    def _evaluate_drawn(self) -> Architecture:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 3))
        return self.best([self.drawn(generator)[0] for _ in range(self.num_samples)], 1)[0]
