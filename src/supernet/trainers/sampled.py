"""What trainers share that train one path a step, and read the result off by evaluating architectures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from supernet.checks import check_counts
from supernet.execution import PathInput, PathLayer
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import seeded
from supernet.search import Scored
from supernet.search.evolution import ranked
from supernet.space import Architecture
from supernet.trainers.data import Data, mixed_seed
from supernet.trainers.loop import LoopOptions, SupernetTrainer
from supernet.trainers.metrics import Meter, Metrics, batch_size
from supernet.trainers.snapshot import gathered

__all__ = ["SampledOptions", "SampledTrainer"]


class SampledOptions(LoopOptions, total=False):
    """The keyword arguments of `SampledTrainer`; they are described there and in `SupernetTrainer`."""

    recalibration_samples: int
    score: Callable[[Mapping[str, float]], float] | None


class SampledTrainer(SupernetTrainer):
    """Trains one sampled path a step; says by `evaluate` how good an architecture is with the shared weights.

    An epoch is a pass over the training part, each batch on a path of its own, then one over the validation part.
    A step touches the weights of its path only: those of others keep value, momentum and decay.

    A subclass calls `take_over_paths`, says what `sample` draws, and writes `export`, which ranks architectures
    by `evaluated` or `best`.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        recalibration_samples: of the training part, on which BatchNorm's statistics are computed anew for each
            architecture that is evaluated. Default: 20,000 (arXiv 1904.00420), or as many as there are.
        score: what `evaluate` returns -> a number, higher is better. Default: minus the loss.
        loop: the keyword arguments of `SupernetTrainer`.

    Attributes:
        generator: what the paths are drawn from; the same in all processes.
        evaluations: what has been evaluated since the weights last moved.
    """

    leaves_parameters_unused = True
    measures_in_eval_form = True

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        recalibration_samples: int = 20_000,
        score: Callable[[Mapping[str, float]], float] | None = None,
        **loop: Unpack[LoopOptions],
    ) -> None:
        check_counts(recalibration_samples=recalibration_samples)
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **loop)
        self.recalibration_samples = recalibration_samples
        self.score = score or _least_loss
        self.generator = torch.Generator().manual_seed(mixed_seed(self.seed, 2))
        self.evaluations: dict[str, dict[str, float]] = {}
        self.training_steps = 0  # of this epoch, once they are done
        self._recalibration_part = self.train_part.whole(shuffle=True)
        self._evaluation_part = self.valid_part.whole(shuffle=False)

    def take_over_paths(self) -> None:
        """Let the model's choices follow the path that the plan has."""
        self.take_over(PathLayer, PathInput, self.space.draw(torch.Generator().manual_seed(self.seed)))

    def sample(self) -> Architecture:
        """Return the architecture that is trained next: by default each choice uniform, or by its prior."""
        return self.space.sample(self.generator)

    # --- training ------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Go over the training part and then over the validation part, from `step` on."""
        if not self.training_steps:
            for trn_X, trn_y in self.train_part.batches(self.epoch, self.step):
                with self.one_step():
                    self.train_model_weight(trn_X, trn_y)
            self.training_steps = self.step
        for val_X, val_y in self.valid_part.batches(self.epoch, self.step - self.training_steps):
            with self.one_step():
                self.use_validation_batch(val_X, val_y)
        self.training_steps = 0

    def train_model_weight(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step of the weights of one sampled path on a training batch."""
        self.evaluations.clear()
        output = self.forward(trn_X, self.sample())
        self.descend(self.measure("train", output, trn_y), self.optimizer, clip=self.grad_clip)

    def use_validation_batch(self, val_X: Any, val_y: Any) -> None:
        """Measure one sampled path on a validation batch, by the batch's own statistics, and move nothing."""
        with torch.no_grad(), self.weights_held():
            self.measure("valid", self.forward(val_X, self.sample()), val_y)

    def steps_of_an_epoch(self) -> int | None:
        """Return how many batches both parts have."""
        training, validation = self.train_part.length, self.valid_part.length
        return None if training is None or validation is None else training + validation

    # --- evaluation ----------------------------------------------------------------------------------------

    def evaluate(self, architecture: Mapping[str, Any], *, num_batches: int | None = None) -> dict[str, float]:
        """Return loss and metrics of an architecture on the validation part, with the weights of the supernet.

        BatchNorm's running statistics are those of this architecture alone: before, they are computed from scratch
        on training samples, as the plain average over batches. They, the weights and the random numbers are
        after it as they were.

        Args:
            architecture: label -> decision.
            num_batches: of the validation part. Default: all.

        Raises:
            ArchitectureError: it is not an architecture of the model's space.
        """
        path = self.space.canonical(architecture)
        meters = self.evaluation_meters()
        with seeded(self.seed, self.device), self.supernet.statistics_kept(), self._forms.evaluating():
            self._recalibrate(path)
            for position, (X, y) in enumerate(self._evaluation_part.batches(0)):
                if position == num_batches:
                    break
                output = self.supernet.alone(X, path)
                for meter in meters:
                    meter.update(self.loss(output, y) if meter is meters[0] else None, output, y, X)
        return {name: value for meter in meters for name, value in meter.read().items()}

    def evaluation_meters(self) -> list[Meter]:
        """Return what measures the outputs of an evaluation; the first one takes the loss too."""
        return [Meter(self.metrics, self.device)]

    def evaluated(
        self, architectures: Sequence[Architecture], *, num_batches: int | None = None
    ) -> list[dict[str, float]]:
        """Return what `evaluate` says of each, the processes sharing the work: all must call it with the same.

        What has been evaluated since the weights last moved is not evaluated again, after a resume neither.
        """
        names = [json.dumps([num_batches, architecture]) for architecture in architectures]
        new = [(n, a) for n, a in dict(zip(names, architectures, strict=True)).items() if n not in self.evaluations]
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        for first in range(0, len(new), world_size):
            mine = new[first : first + world_size][rank : rank + 1]
            found = {name: self.evaluate(architecture, num_batches=num_batches) for name, architecture in mine}
            for others in gathered(found) if world_size > 1 else [found]:
                self.evaluations |= others
            if self.step == 0:  # no epoch is under way: so a long export may be left, and gone on with
                self.save_between_steps()
        return [self.evaluations[name] for name in names]

    def best(self, architectures: Iterable[Architecture], count: int, **options: Any) -> list[Architecture]:
        """Return the `count` best of these by `score`, best first, each once; of equal ones the first.

        Raises:
            NonFiniteError: every score is NaN; an architecture whose score is NaN is never among the best.
        """
        distinct = list({json.dumps(a): a for a in architectures}.values())
        scores = [self.score(measured) for measured in self.evaluated(distinct, **options)]
        scored = [Scored(architecture, float(score)) for architecture, score in zip(distinct, scores, strict=True)]
        return [best.architecture for best in ranked(scored)[:count]]

    def _recalibrate(self, path: Architecture) -> None:
        """Compute the running statistics of BatchNorm anew."""
        with statistics_anew(self.model, self._forms) as norms:
            seen = 0
            for X, y in self._recalibration_part.batches(0) if norms else ():
                self.supernet.alone(X, path)
                seen += batch_size(y, X)
                if seen >= self.recalibration_samples:
                    break


def _least_loss(measured: Mapping[str, float]) -> float:
    return -measured["loss"]
