"""What trainers share that train one path a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.cost import Cost, CostBins, Parameters
from supernet.cost.extremes import Extremes, extremes
from supernet.data.loaders import derive_seed
from supernet.errors import CostError, TrainingError
from supernet.execution import InputSlot, LayerSlot, Plan
from supernet.execution.structure import mapped
from supernet.nn import InputChoice, LayerChoice
from supernet.search.searcher import Constraint, draw_allowed
from supernet.space import Architecture
from supernet.trainers.subnet_search import SubnetSearchTrainer
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.distillation import Taught
from supernet.training.forward import judged
from supernet.training.steps import SkippedStep

__all__ = ["SampledTrainer"]


class SampledTrainer(SubnetSearchTrainer):
    """Trains one sampled path a step; says by `evaluate` how good an architecture is with the shared weights.

    An epoch is a pass over the training part, each batch on a path of its own, then one over the validation part.
    A step touches the weights of its path only: those of others keep value, momentum and decay.

    A subclass calls `build_path_supernet`, says what `sample` draws, and writes `export`: see `SubnetSearchTrainer`.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        sandwich: Number of sampled paths that a step trains beside the largest and the smallest architecture, all on
            one batch, down the sum of their losses (the sandwich rule, arXiv 1903.05134; 2003.11142 takes 2).
            `Distillation("largest")` then takes no pass more: the largest learns from the targets alone, and teaches
            the others. Default: none, and a step trains one sampled path.
        cost_bins: Number of bins of cost, or their edges, each of which is equally likely where a path is sampled: see
            `supernet.cost.CostBins`. Default: paths are as likely as the space has them.
        sampling_cost: The `Cost` by which architectures are small or large for these two. Default: the number of
            parameters.
        recalibration_samples, score: The same as `SubnetSearchTrainer` takes by these names.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        generator: Source of the paths; the same in all processes.
        extremes: The smallest and the largest architecture of those that are trained, where these are asked for.
        training_constraint: Says which architectures may be trained, such as the limits; None where all may.

    Raises:
        CostError: The cost is of another space, or the bins cannot be.
    """

    leaves_parameters_unused = True
    training_constraint: Constraint | None = None

    def __init__(
        self,
        *task: Any,
        sandwich: int | None = None,
        cost_bins: int | Sequence[float] | None = None,
        sampling_cost: Cost | None = None,
        **config: Any,
    ) -> None:
        if sandwich is not None:
            check_counts(0, sandwich=sandwich)
        if sampling_cost is not None and not isinstance(sampling_cost, Cost):
            raise TrainingError(f"sampling_cost is a supernet.cost.Cost or None, not {sampling_cost!r:.80}")
        if cost_bins is not None and type(self).sample is not SampledTrainer.sample:
            raise TrainingError(
                f"cost_bins says how paths are sampled, which {type(self).__name__} does in its own way; leave it out"
            )
        super().__init__(*task, **config)
        self.generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))
        self.training_steps = 0  # of this epoch, once they are done
        self.sandwich, self.training_constraint = sandwich, self.limits
        self.extremes: Extremes | None = None
        self.cost_bins: CostBins | None = None
        self._sampling, self._largest_teaches = (cost_bins, sampling_cost), False
        self._ours |= {
            "sandwich",
            "extremes",
            "training_constraint",
            "_sampling",
            "_largest_teaches",
        }  # which do not change

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        bins = {} if self.cost_bins is None else {"cost_bins": self.cost_bins}
        return {**super().stateful(), "generator": self.generator, "training_steps": self.training_steps, **bins}

    def build_supernet(
        self,
        layer: Callable[[LayerChoice, Plan], nn.Module],
        input: Callable[[InputChoice, Plan], nn.Module],
        plan: dict[str, Any],
    ) -> None:
        """Do what `SupernetTrainer.build_supernet` does, and know which architectures are small and large."""
        bins, cost = self._sampling
        if bins is None and self._is_rarely_allowed():
            bins = [-math.inf, math.inf]  # one for all: a walk among those that are allowed
        largest_teaches = self.teaching is not None and self.teaching.distillation.teacher == "largest"
        if self.sandwich is not None or bins is not None or largest_teaches:
            if cost is None:
                known = None if self.limits is None else self.limits.costs.get("parameters")
                cost = known if isinstance(known, Parameters) else Parameters(self.model)
            if cost.space != self.space:
                raise CostError("sampling_cost is of another space than the model's; make it of this model")
            if bins is not None:
                self.cost_bins = CostBins(cost, bins, allows=self.training_constraint, sample=self._sample_by_priors)
            self.extremes = extremes(self.space, cost.of, self._sample_by_priors, self.training_constraint)
        if self.teaching is not None and self.extremes is not None and largest_teaches:
            self.teaching.architecture = self.extremes.largest  # of those that are trained
        elif self.teaching is not None and self.teaching.architecture is not None:
            self._check_is_trained(self.teaching.architecture)
        super().build_supernet(layer, input, plan)
        if self.teaching is not None and self.extremes is not None and self.sandwich is not None:
            self._largest_teaches = self.teaching.architecture == self.extremes.largest
            if self._largest_teaches:
                self.train_part.taught = None  # in its step it gives its output anyway

    def _check_is_trained(self, teacher: Architecture) -> None:
        if self.training_constraint is not None and not self.training_constraint(teacher):
            raise TrainingError(
                f"the teacher {teacher} breaks the limits or the constraint of what is trained, so it would never "
                "learn what it teaches; give one that keeps them, or 'largest'"
            )

    def _is_rarely_allowed(self) -> bool:
        """Say whether limits are kept by so few architectures that drawing until one does takes longer than a walk."""
        if self.limits is None or not self.limits.bounds or type(self).sample is not SampledTrainer.sample:
            return False
        generator = torch.Generator().manual_seed(0)
        return sum(self.limits(self.space.sample(generator)) for _ in range(200)) < 20

    def build_path_supernet(self) -> None:
        """Let the model's choices follow the path that the plan has."""
        self.build_supernet(LayerSlot, InputSlot, self.space.draw(torch.Generator().manual_seed(self.seed)))

    def sample(self) -> Architecture:
        """Return the architecture that is trained next: by default each choice uniform, or by its prior, or by bins."""
        return (
            self._sample_by_priors(self.generator) if self.cost_bins is None else self.cost_bins.sample(self.generator)
        )

    def _sample_by_priors(self, generator: torch.Generator) -> Architecture:
        return draw_allowed(self.space, self.training_constraint, generator)

    # --- training ------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Go over the training part and then over the validation part, from `step` on.

        A subclass that writes `train_step` has it called as the shared loop does, on batches of both parts at a time.
        """
        if self._has_steps_of_its_own():
            return super().train_epoch()
        if not self.training_steps:
            for trn_X, trn_y in self.train_part.batches(self.epoch, self.step):
                with self.one_step():
                    self.train_model_weight(trn_X, trn_y)
            self.training_steps = self.step
        for val_X, val_y in self.valid_part.batches(self.epoch, self.step - self.training_steps):
            with self.one_step():
                self.use_validation_batch(val_X, val_y)
        self.training_steps = 0
        return None

    def train_model_weight(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step of the weights on a training batch: of one sampled path, or of those of a sandwich."""
        self.forget_evaluations()
        if self.sandwich is not None:
            return self._train_sandwich(trn_X, trn_y)
        output = self.forward(trn_X, self.sample())
        return self.optimizer_step(self.compute_loss("train", output, trn_y), self.optimizer, clip=self.grad_clip)

    def _train_sandwich(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step down the sum of the losses of the largest, the smallest and sampled architectures."""
        assert self.extremes is not None and self.sandwich is not None, "known since the supernet was built"
        smallest, largest = self.extremes
        paths = [largest, smallest, *(self.sample() for _ in range(self.sandwich))]
        try:
            with self.more_passes_follow():
                for path in paths[:-1]:
                    output = self.forward(trn_X, path)
                    self.add_gradient(self.compute_loss("train", output, trn_y), self.optimizer)
                    if self._largest_teaches and path is largest:
                        trn_y = Taught(trn_y, mapped(judged(output, trn_y)[0], torch.Tensor.detach))
            output = self.forward(trn_X, paths[-1])
            self.optimizer_step(self.compute_loss("train", output, trn_y), self.optimizer, clip=self.grad_clip)
        except SkippedStep:
            self._steps.drop(self.optimizer)  # no part of a step is taken; of several batches, none
            raise

    def use_validation_batch(self, val_X: Any, val_y: Any) -> None:
        """Measure one sampled path on a validation batch, by the batch's own statistics, and move nothing."""
        with torch.no_grad(), self.frozen_weights():
            self.compute_loss("valid", self.forward(val_X, self.sample()), val_y)

    def steps_of_an_epoch(self) -> int | None:
        """Return how many batches both parts have."""
        if self._has_steps_of_its_own():
            return super().steps_of_an_epoch()
        training, validation = self.train_part.length, self.valid_part.length
        return None if training is None or validation is None else training + validation

    def _has_steps_of_its_own(self) -> bool:
        return type(self).train_step is not SupernetTrainer.train_step
