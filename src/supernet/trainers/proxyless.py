"""ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware (arXiv 1812.00332)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Adam

from supernet.checks import check_numbers
from supernet.cost.table import checked_table, cost_of, cost_of_plan
from supernet.errors import TrainingError
from supernet.relaxations import DecisionDistribution, Gates
from supernet.trainers.bilevel import BilevelTrainer
from supernet.trainers.policy_gradient import PolicyGradientTrainer

__all__ = ["ProxylessTrainer"]


class ProxylessTrainer(PolicyGradientTrainer):
    """ProxylessNAS (arXiv 1812.00332): binary gates, two paths in memory.

    One path, drawn by softmax(alpha), runs and is trained. Alphas and weights are trained in turn, on two halves of
    the data. For a step of the alphas two decisions of each choice are drawn without replacement; the active one
    of them runs as usual, the other only gives its output, and their gates' gradients train both alphas by the
    probabilities among the two. All others keep their probabilities: see `supernet.relaxations.Gates`.

    The estimator over all gates has the true gradient of the expected loss as its mean where the loss is linear in
    the gates. The one over two is biased even there: with three candidates of equal probability its factor is
    1/12 where 1/9 is exact.

    An InputChoice is a choice between its sets of inputs, each set with an alpha of its own.

    Departs from the paper: each step of the weights has one of the alphas before it, as in Retiarii; the cost is
    added to the loss, `loss + cost_weight * cost`, as that of the sampled path.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        arc_learning_rate: Learning rate of Adam(betas (0, 0.999), no weight decay), which trains the alphas.
            Default: 1e-3.
        estimator: "gates", or "reinforce", which needs outputs only: its reward is `reward_function` minus the
            weighted cost. Default: "gates".
        reward_function: `(output, target) -> number`, higher is better; for "reinforce". Default: minus the loss.
        baseline_decay: Decay of the moving average that "reinforce" subtracts from the reward. Default: 0.99.
        cost: What choosing an option costs, `label -> candidate or value -> number`, say its latency in ms. It counts
            where the choice is reached; choices that are not named cost nothing. Default: none.
        cost_weight: What one unit of cost adds to the loss. Default: 1.
        limit_penalty, limit_strength, warmup_epochs, memory: The same as `BilevelTrainer` takes; while the weights warm
            up, paths are uniform.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        alphas: Logits (K,) of each label, one for each decision, of float32 at least. They are in no optimizer of
            the weights.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: As `SupernetTrainer`; the cost names what the space
            has not, or lacks a candidate.
        ChoiceError: An InputChoice has too many sets of inputs, or ones between which gates cannot stand: such as
            none at all, unless absent inputs are zeros.
    """

    leaves_parameters_unused = True

    def __init__(
        self,
        *task: Any,
        arc_learning_rate: float = 1e-3,
        estimator: Literal["gates", "reinforce"] = "gates",
        baseline_decay: float = 0.99,
        cost: Mapping[str, Mapping[Any, float]] | None = None,
        cost_weight: float = 1.0,
        **config: Any,
    ) -> None:
        if estimator not in ("gates", "reinforce"):
            raise TrainingError(f"estimator is 'gates' or 'reinforce', not {estimator!r}")
        if config.get("reward_function") is not None and estimator != "reinforce":
            raise TrainingError("a reward_function is what estimator='reinforce' takes; the gates take the loss itself")
        check_numbers(arc_learning_rate=arc_learning_rate)
        check_numbers(-math.inf, cost_weight=cost_weight)
        self.cost, self.cost_weight, self.estimator = cost or {}, cost_weight, estimator
        super().__init__(
            *task,
            relaxation=Gates if estimator == "gates" else DecisionDistribution,
            terms=[self._term_of_cost] if cost else [],
            architecture_optimizer=partial(Adam, lr=arc_learning_rate, betas=(0.0, 0.999)),
            baseline_decay=baseline_decay,
            **config,
        )

    def _check_model(self, model: nn.Module) -> None:
        super()._check_model(model)
        self.cost = checked_table(self.cost, self.space)

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        # A callback may change these while it trains.
        return {**super().stateful(), "cost_weight": self.cost_weight, "warmup_epochs": self.warmup_epochs}

    def train_architecture(self, val_X: Any, val_y: Any, trn_X: Any = None, trn_y: Any = None) -> None:
        """Take a step of the alphas on a validation batch."""
        level = PolicyGradientTrainer if self.estimator == "reinforce" else BilevelTrainer
        level.train_architecture(self, val_X, val_y)

    @property
    def generator(self) -> torch.Generator:
        """What paths and gates are drawn from: the relaxation's."""
        return self.relaxation.generator

    def cost_of(self, architecture: Mapping[str, Any]) -> float:
        """Return the sum of the costs of the options that an architecture decides for and reaches."""
        return cost_of(self.cost, self.space, architecture)

    def _term_of_cost(self, relaxation: Any, plan: Mapping[str, Any], progress: float) -> Any:
        return self.cost_weight * cost_of_plan(self.cost, self.space, plan)
