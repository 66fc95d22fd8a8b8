"""ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware (arXiv 1812.00332)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from typing_extensions import Unpack

from supernet.checks import check_counts, check_functions, check_numbers
from supernet.data.loaders import Data, derive_seed
from supernet.errors import ChoiceError, TrainingError
from supernet.execution import InputSlot, LayerSlot, Selection
from supernet.execution.selection import weights_of
from supernet.nn.domain import in_words
from supernet.relaxations import DecisionDistribution, binary_gates
from supernet.space import Architecture, SearchSpace
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.forward import judged
from supernet.training.loop import LoopOptions
from supernet.training.metrics import Metrics

__all__ = ["ProxylessTrainer"]

logger = logging.getLogger("supernet")

MAX_DECISIONS = 1_000  # of one InputChoice, each of which has a logit


class ProxylessTrainer(SupernetTrainer):
    """ProxylessNAS (arXiv 1812.00332): binary gates, two paths in memory.

    One path, drawn by softmax(alpha), runs and is trained. Alphas and weights are trained in turn, on two halves of
    the data. For a step of the alphas two decisions of each choice are drawn without replacement; the active one
    of them runs as usual, the other only gives its output, and their gates' gradients train both alphas by the
    probabilities among the two. All others keep their probabilities.

    The estimator over all gates has the true gradient of the expected loss as its mean where the loss is linear in
    the gates. The one over two is biased even there: with three candidates of equal probability its factor is
    1/12 where 1/9 is exact.

    An InputChoice is a choice between its sets of inputs, each set with an alpha of its own.

    Departs from the paper: each step of the weights has one of the alphas before it, as in Retiarii; the cost is
    added to the loss, `loss + cost_weight * cost`, as that of the sampled path.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        warmup_epochs: first epochs, in which the weights alone are trained, on uniform paths. Default: 0.
        arc_learning_rate: of Adam(betas (0, 0.999), no weight decay), which trains the alphas. Default: 1e-3.
        estimator: "gates", or "reinforce", which needs outputs only: its reward is `reward_function` minus the
            weighted cost. Default: "gates".
        reward_function: `(output, target) -> number`, higher is better; for "reinforce". Default: minus the loss.
        baseline_decay: of the moving average that "reinforce" subtracts from the reward. Default: 0.99.
        cost: label -> candidate -> what choosing it costs, say its latency in ms. Counted where it is reached;
            choices that are not named cost nothing. Default: none.
        cost_weight: what one unit of cost adds to the loss. Default: 1.
        loop: the keyword arguments of `SupernetTrainer`.

    Attributes:
        alphas: label -> logits (K,), one for each decision, of float32 at least. They are in no optimizer of the
            weights.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: as `SupernetTrainer`; the cost names what the
            space has not, or lacks a candidate.
        ChoiceError: an InputChoice has too many sets of inputs, or ones between which gates cannot stand: such as
            none at all, unless absent inputs are zeros.
    """

    leaves_parameters_unused = True

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        warmup_epochs: int = 0,
        arc_learning_rate: float = 1e-3,
        estimator: Literal["gates", "reinforce"] = "gates",
        reward_function: Callable[[Any, Any], Any] | None = None,
        baseline_decay: float = 0.99,
        cost: Mapping[str, Mapping[str, float]] | None = None,
        cost_weight: float = 1.0,
        **loop: Unpack[LoopOptions],
    ) -> None:
        if estimator not in ("gates", "reinforce"):
            raise TrainingError(f"estimator is 'gates' or 'reinforce', not {estimator!r}")
        if reward_function is not None and estimator != "reinforce":
            raise TrainingError("a reward_function is what estimator='reinforce' takes; the gates take the loss itself")
        check_counts(0, warmup_epochs=warmup_epochs)
        check_numbers(arc_learning_rate=arc_learning_rate)
        check_numbers(0, 1, baseline_decay=baseline_decay)
        check_numbers(-math.inf, cost_weight=cost_weight)
        check_functions(reward_function=reward_function)
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **loop)
        self.note_options(
            warmup_epochs=warmup_epochs,
            arc_learning_rate=arc_learning_rate,
            estimator=estimator,
            reward_function=reward_function,
            baseline_decay=baseline_decay,
            cost=cost,
            cost_weight=cost_weight,
        )
        if warmup_epochs >= num_epochs:
            logger.warning(
                "warmup_epochs=%d of %d epochs: the architecture is not trained, and what is exported is noise",
                *(warmup_epochs, num_epochs),
            )
        _check_domains(self.space)
        self.cost = checked_cost(cost or {}, self.space)
        self.warmup_epochs, self.estimator, self.cost_weight = warmup_epochs, estimator, cost_weight
        self.reward_function, self.baseline_decay = reward_function, baseline_decay
        self.baseline: float | None = None
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self._distribution = DecisionDistribution(self.space, seed=self.seed, dtype=dtype, device=self.device)
        self.alphas = self._distribution.logits
        self.generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))  # the same in all processes
        self._drawn: dict[str, list[int]] = {}
        self.architecture_optimizer: Any = self.fabric.setup_optimizers(
            Adam(self.alphas.values(), arc_learning_rate, betas=(0.0, 0.999))
        )
        drawn = self.space.draw(torch.Generator().manual_seed(self.seed))
        one = torch.ones(1, device=self.device)
        gates = {label: Selection((decision,), one) for label, decision in drawn.items()}  # of one that is active
        self.build_supernet(LayerSlot, InputSlot, gates if estimator == "gates" else drawn)

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {
            **super().stateful(),
            "alphas": self.alphas,
            "architecture_optimizer": self.architecture_optimizer,
            "baseline": self.baseline,
            "generator": self.generator,
            "_drawn": self._drawn,  # for all batches of one step
            # A callback may change these while it trains.
            "baseline_decay": self.baseline_decay,
            "cost_weight": self.cost_weight,
            "warmup_epochs": self.warmup_epochs,
        }

    def train_step(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Take a step of the alphas, unless the weights are still warming up, then one of the weights."""
        if self.epoch >= self.warmup_epochs:
            self.train_architecture(val_X, val_y)
        self.train_model_weight(trn_X, trn_y)

    def train_architecture(self, val_X: Any, val_y: Any) -> None:
        """Take a step of the alphas on a validation batch."""
        if self.estimator == "reinforce":
            self._reinforce(val_X, val_y)
        else:
            self._train_two_of_each(val_X, val_y)
        self.check_finite(torch.cat(list(self.alphas.values())), "an architecture parameter")

    def train_model_weight(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step of the weights of one drawn path on a training batch."""
        warming_up = self.epoch < self.warmup_epochs
        path = (self.space if warming_up else self._distribution).sample(self.generator)
        output = self.forward(trn_X, path)
        self.optimizer_step(self.compute_loss("train", output, trn_y), self.optimizer, clip=self.grad_clip)

    def _train_two_of_each(self, val_X: Any, val_y: Any) -> None:
        if self.step % self.accumulate == 0:  # the same two for all batches of one step
            self._drawn = self._distribution.draw(2, self.generator)
        gates = self._gates()
        with self.frozen_weights():
            output = self.forward(val_X, gates)
            loss = self.compute_loss("valid", output, val_y)
            self.optimizer_step(loss + self._cost_of(gates), self.architecture_optimizer)

    def _apply(self, optimizer: Any, *, synced: bool = True) -> None:
        if optimizer is not self.architecture_optimizer or self.estimator == "reinforce":
            super()._apply(optimizer, synced=synced)
            return
        mass = {label: self._pair_logsumexp(label) for label in self.alphas}
        super()._apply(optimizer, synced=synced)
        with torch.no_grad():
            for label, drawn in self._drawn.items():
                self.alphas[label][drawn] += mass[label] - self._pair_logsumexp(label)

    def _gates(self) -> dict[str, Selection]:
        """Return label -> the two decisions drawn, the active one first, and their gates."""
        gates = {}
        firsts = [torch.softmax(self.alphas[label].detach()[drawn], -1)[0] for label, drawn in self._drawn.items()]
        uniforms = torch.rand(len(firsts), generator=self.generator, dtype=torch.float64)
        is_first = (uniforms < torch.stack(firsts).double().cpu()).tolist()  # one wait for a GPU
        for (label, drawn), first in zip(self._drawn.items(), is_first, strict=True):
            order = drawn if first else drawn[::-1]
            decisions = tuple(self._distribution.decisions[label][k] for k in order)
            gates[label] = Selection(decisions, binary_gates(self.alphas[label], order, 0), detached=len(order) - 1)
        return gates

    def _pair_logsumexp(self, label: str) -> torch.Tensor:
        """Return the logarithm of `exp(alpha_i) + exp(alpha_j)` of the two drawn."""
        return torch.logsumexp(self.alphas[label].detach()[self._drawn[label]], -1)

    def _cost_of(self, gates: Mapping[str, Selection]) -> torch.Tensor | float:
        """Return the weighted cost of the active path, with its gradient for each gate.

        A gate's gradient is the cost of the path with that decision in the active one's place.
        """
        if not self.cost:
            return 0.0
        active = {label: gate.active[0] for label, gate in gates.items()}
        terms = []
        for label in self.space.canonical(active):
            costs = [self.cost_of({**active, label: decision}) for decision in gates[label].active]
            weights = weights_of(gates[label])
            terms.append((weights * weights.new_tensor(costs)).sum())
        return self.cost_weight * torch.stack(terms).sum()

    def cost_of(self, architecture: Mapping[str, Any]) -> float:
        """Return the sum of the costs of the candidates that an architecture decides for and reaches."""
        path = self.space.canonical(architecture)
        return sum(table[str(path[label])] for label, table in self.cost.items() if label in path)

    def _reinforce(self, val_X: Any, val_y: Any) -> None:
        path = self._distribution.sample(self.generator)
        with torch.no_grad(), self.frozen_weights():
            output = self.forward(val_X, path)
            loss = self.compute_loss("valid", output, val_y)
            reward = -loss if self.reward_function is None else self.reward_function(*judged(output, val_y))
        reward = self.mean_over_processes(reward, "valid") - self.cost_weight * self.cost_of(path)
        self.means.update("reward", reward)
        advantage = 0.0 if self.baseline is None else reward - self.baseline
        self.baseline = reward - self.baseline_decay * advantage
        self.optimizer_step(-advantage * self._distribution.log_prob(path), self.architecture_optimizer)

    def export(self, epoch: int | Literal["best"] | None = None) -> Architecture:
        """Return the architecture of the largest alphas.

        Args:
            epoch: after which epoch, from 1 on; "best" is that of the least validation loss. Default: as they are now.

        Raises:
            TrainingError: there is no such epoch.
        """
        if epoch is not None:
            return self.architecture_of(epoch)
        return self._distribution.most_probable()

    def derive(self) -> Architecture:
        """Return what `export` returns, a subclass's own too."""
        return self.export()

    def probabilities(self) -> dict[str, list[float]]:
        """Return label -> softmax(alpha); of inputs the probability of each to be chosen, as a share where k are."""
        shares = {}
        for label, alpha in self.alphas.items():
            p, domain = torch.softmax(alpha.detach(), -1), self.space[label]
            if domain.is_set:
                sets = [domain.positions(decision) for decision in self._distribution.decisions[label]]
                holds = torch.tensor([[i in chosen for chosen in sets] for i in range(len(domain.options))]).to(p)
                p = holds @ p / (domain.bounds[1] if domain.is_fixed else 1)
            shares[label] = p.tolist()
        return shares


def checked_cost(cost: Mapping[str, Mapping[str, float]], space: SearchSpace) -> dict[str, dict[str, float]]:
    """Return a table of costs that fits the space, or raise `TrainingError`."""
    for label, table in cost.items():
        domain = space.get(label)
        if domain is None or domain.is_set:
            known = ", ".join(other for other, d in space.items() if not d.is_set)
            raise TrainingError(f"cost names {label!r}, which is no LayerChoice of this space; it has: {known}")
        if set(table) != set(domain.options):
            raise TrainingError(
                f"the cost of choice {label!r} is given for {', '.join(map(str, table))}; give a number for each of "
                f"{', '.join(domain.options)}"
            )
        check_numbers(-math.inf, **{f"the cost of {name!r} in choice {label!r}": cost for name, cost in table.items()})
    return {label: {name: float(value) for name, value in table.items()} for label, table in cost.items()}


def _check_domains(space: SearchSpace) -> None:
    for label, domain in space.items():
        if domain.is_set and domain.size > MAX_DECISIONS:
            raise ChoiceError(
                f"choice {label!r} has {domain.size:,} sets of {in_words(domain.arity)} inputs, each of which would "
                f"have an alpha; at most {MAX_DECISIONS:,} are borne: give it fewer inputs, or use a trainer that "
                "samples"
            )
