"""What trainers share that train one path a step, and read the result off by evaluating architectures."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from supernet.checks import check_counts, check_functions
from supernet.data.loaders import Data, derive_seed
from supernet.errors import SpaceError
from supernet.execution import InputSlot, LayerSlot
from supernet.search import Scored
from supernet.search.searcher import ranked
from supernet.space import Architecture
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.loop import LoopOptions
from supernet.training.metrics import Metrics
from supernet.training.progress import counting

__all__ = ["SampledOptions", "SampledTrainer"]

logger = logging.getLogger("supernet")


class SampledOptions(LoopOptions, total=False):
    """The keyword arguments of `SampledTrainer`; they are described there and in `SupernetTrainer`."""

    recalibration_samples: int
    score: Callable[[Mapping[str, float]], float] | None


class SampledTrainer(SupernetTrainer):
    """Trains one sampled path a step; says by `evaluate` how good an architecture is with the shared weights.

    An epoch is a pass over the training part, each batch on a path of its own, then one over the validation part.
    A step touches the weights of its path only: those of others keep value, momentum and decay.

    A subclass calls `build_path_supernet`, says what `sample` draws, and writes `export`, which ranks architectures
    by `evaluated` or `best` inside `search_once`. `fit` ends with that search.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        recalibration_samples: of the training part, on which BatchNorm's statistics are computed anew for each
            architecture that is evaluated. Default: 20,000 (arXiv 1904.00420), or as many as there are.
        score: what `evaluate` returns -> a number, higher is better. Default: minus the loss.
        loop: the keyword arguments of `SupernetTrainer`.

    Attributes:
        generator: what the paths are drawn from; the same in all processes.
        evaluations: what has been evaluated since the weights last moved.
        found: what a search of the supernet as it is now has found; None where there was none.
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
        check_functions(score=score)
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **loop)
        self.note_options(recalibration_samples=recalibration_samples)
        self.note_options(free=True, score=score)
        self.recalibration_samples = recalibration_samples
        self.score = score or _least_loss
        self.generator = torch.Generator().manual_seed(derive_seed(self.seed, 2))
        self.evaluations: dict[str, dict[str, float]] = {}
        self.found: Architecture | None = None
        self.training_steps = 0  # of this epoch, once they are done
        self._advance: Callable[[int], None] | None = None  # moves the bar of a search
        self._ours |= {"found", "_advance"}  # no state: found again from the evaluations

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {
            **super().stateful(),
            "generator": self.generator,
            "evaluations": self.evaluations,
            "training_steps": self.training_steps,
        }

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

    def _apply(self, optimizer: Any, *, synced: bool = True) -> None:
        if optimizer is self.optimizer:  # in whatever step of a subclass
            self.forget_evaluations()
        super()._apply(optimizer, synced=synced)

    def _begin(self, resume: str | os.PathLike[str] | None) -> None:
        self.found = None  # the weights may be others
        super()._begin(resume)

    # --- evaluation ----------------------------------------------------------------------------------------

    def forget_evaluations(self) -> None:
        """Forget what was evaluated and found, for the weights move; each of their steps calls it."""
        self.evaluations.clear()
        self.found = None

    def search_once(self, search: Callable[[], Architecture], count: int) -> Architecture:
        """Return what `search` finds in the supernet as it is now: it is searched once, and what is found is kept.

        Args:
            search: ranks architectures by `evaluated` or `best`.
            count: evaluations at most, for the progress bar and the log.
        """
        if self.found is None:
            with suppress(SpaceError):  # of a space too entangled to be counted
                count = min(count, self.space.size)
            logger.info("searches the trained supernet by up to %d evaluations", count)
            shown = self.progress and self.fabric.is_global_zero
            with counting(f"{type(self).__name__} search", count, shown=shown) as self._advance:
                self.found = search()
            self._advance = None
        return dict(self.found)

    def evaluated(
        self, architectures: Sequence[Architecture], *, num_batches: int | None = None
    ) -> list[dict[str, float]]:
        """Return what `evaluate` says of each, the processes sharing the work: all must call it with the same.

        What has been evaluated since the weights last moved is not evaluated again, after a resume neither.
        """
        names = [json.dumps([num_batches, architecture]) for architecture in architectures]
        new = [(n, a) for n, a in dict(zip(names, architectures, strict=True)).items() if n not in self.evaluations]
        rank, world_size = self.processes.rank, self.processes.count
        self.processes.compare_digests(
            {"architectures": [name for name, _ in new]},
            "the processes evaluate different architectures, so a constraint or a draw differs",
            "a comparison of the architectures that are evaluated",
        )
        for first in range(0, len(new), world_size):
            mine = new[first : first + world_size][rank : rank + 1]
            found = {name: self.evaluate(architecture, num_batches=num_batches) for name, architecture in mine}
            for others in self.processes.values("what evaluations have found", found):
                self.evaluations |= others
                if self._advance is not None:
                    self._advance(len(others))
            if self.step == 0:  # no epoch is under way: so a long export may be left, and gone on with
                self.processes.speak_next()
                self.save_between_steps()
        return [self.evaluations[name] for name in names]

    def scored(self, measured: Sequence[Mapping[str, float]]) -> list[float]:
        """Return the score of each: the first process's, since a function may read a clock, say."""
        return self.processes.first("the scores", [float(self.score(one)) for one in measured])

    def best(self, architectures: Iterable[Architecture], count: int, **options: Any) -> list[Architecture]:
        """Return the `count` best of these by `score`, best first, each once; of equal ones the first.

        Raises:
            NonFiniteError: every score is NaN; an architecture whose score is NaN is never among the best.
        """
        distinct = list({json.dumps(a): a for a in architectures}.values())
        scores = self.scored(self.evaluated(distinct, **options))
        scored = [Scored(architecture, score) for architecture, score in zip(distinct, scores, strict=True)]
        return [best.architecture for best in ranked(scored)[:count]]


def _least_loss(measured: Mapping[str, float]) -> float:
    return -measured["loss"]
