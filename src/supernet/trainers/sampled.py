"""What trainers share that train one path a step."""

from __future__ import annotations

from typing import Any

import torch

from supernet.data.loaders import derive_seed
from supernet.execution import InputSlot, LayerSlot
from supernet.space import Architecture
from supernet.trainers.subnet_search import SubnetSearchTrainer
from supernet.trainers.supernet_trainer import SupernetTrainer

__all__ = ["SampledTrainer"]


class SampledTrainer(SubnetSearchTrainer):
    """Trains one sampled path a step; says by `evaluate` how good an architecture is with the shared weights.

    An epoch is a pass over the training part, each batch on a path of its own, then one over the validation part.
    A step touches the weights of its path only: those of others keep value, momentum and decay.

    A subclass calls `build_path_supernet`, says what `sample` draws, and writes `export`: see `SubnetSearchTrainer`.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        recalibration_samples, score: The same as `SubnetSearchTrainer` takes by these names.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        generator: Source of the paths; the same in all processes.
    """

    leaves_parameters_unused = True

    def __init__(self, *task: Any, **config: Any) -> None:
        super().__init__(*task, **config)
        self.generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))
        self.training_steps = 0  # of this epoch, once they are done

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {**super().stateful(), "generator": self.generator, "training_steps": self.training_steps}

    def build_path_supernet(self) -> None:
        """Let the model's choices follow the path that the plan has."""
        self.build_supernet(LayerSlot, InputSlot, self.space.draw(torch.Generator().manual_seed(self.seed)))

    def sample(self) -> Architecture:
        """Return the architecture that is trained next: by default each choice uniform, or by its prior."""
        return self.space.sample(self.generator)

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
        """Take a step of the weights of one sampled path on a training batch."""
        self.forget_evaluations()
        output = self.forward(trn_X, self.sample())
        self.optimizer_step(self.compute_loss("train", output, trn_y), self.optimizer, clip=self.grad_clip)

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
