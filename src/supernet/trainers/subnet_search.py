"""What trainers share whose export searches the trained supernet, by evaluating architectures in it."""

from __future__ import annotations

import json
import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from supernet.checks import check_counts, check_functions
from supernet.cost import Cost, Limits
from supernet.errors import SpaceError
from supernet.search import Front, Scored, search_front
from supernet.search.searcher import ranked
from supernet.space import Architecture
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.loop import LoopOptions
from supernet.training.progress import counting

__all__ = ["SampledOptions", "SubnetSearchTrainer"]

FRONT = "front.json"

logger = logging.getLogger("supernet")


class SampledOptions(LoopOptions, total=False):
    """The keyword arguments of `SampledTrainer`; they are described there and in the classes that it inherits."""

    sandwich: int | None
    cost_bins: int | Sequence[float] | None
    sampling_cost: Cost | None
    recalibration_samples: int
    score: Callable[[Mapping[str, float]], float] | None


class SubnetSearchTrainer(SupernetTrainer):
    """A trainer whose `export` searches the trained supernet for the architecture that is best in it.

    A subclass writes `export`, which ranks architectures by `scores` or `best` inside `search_once`. `fit` ends with
    that search. How the supernet is trained does not matter here: inherit this beside what trains it.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        recalibration_samples: Number of samples of the training part on which BatchNorm's statistics are computed
            anew for each architecture that is evaluated. Default: 20,000 (arXiv 1904.00420), or as many as there are.
        score: Function of what `evaluate` returns that gives a number; higher is better. Default: minus the loss.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        evaluations: What has been evaluated since the weights last moved.
        found: What a search of the supernet as it is now has found; None where there was none.
    """

    free_options = frozenset({"score"})
    measures_in_eval_form = True

    def __init__(
        self,
        *task: Any,
        recalibration_samples: int = 20_000,
        score: Callable[[Mapping[str, float]], float] | None = None,
        **config: Any,
    ) -> None:
        check_counts(recalibration_samples=recalibration_samples)
        check_functions(score=score)
        super().__init__(*task, **config)
        self.recalibration_samples = recalibration_samples
        self.score = score or _least_loss
        self._found: Architecture | None = None
        self._advance: Callable[[int], None] | None = None  # moves the bar of a search
        self._ours |= {"_found", "_advance"}  # no state: found again from the evaluations

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {**super().stateful(), "evaluations": self.evaluations}

    @property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """What has been evaluated since the weights last moved, by the JSON of number of batches and architecture."""
        return self.evaluator.evaluations

    @evaluations.setter
    def evaluations(self, evaluations: dict[str, dict[str, float]]) -> None:
        self.evaluator.evaluations = evaluations

    def forget_evaluations(self) -> None:
        """Forget what was evaluated and found, for the weights have moved, in whatever step of a subclass."""
        super().forget_evaluations()
        self.found = None

    @property
    def found(self) -> Architecture | None:
        """What a search of the supernet as it is now has found; None where there was none."""
        if self.weights_moved:
            self.forget_evaluations()
        return self._found

    @found.setter
    def found(self, found: Architecture | None) -> None:
        self._found = found

    def search_once(self, search: Callable[[], Architecture], count: int) -> Architecture:
        """Return what `search` finds in the supernet as it is now: it is searched once, and what is found is kept.

        Args:
            search: Ranks architectures by `scores` or `best`.
            count: Number of evaluations at most, for the progress bar and the log.
        """
        self.evaluator.look_at_weights()
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
        return self.evaluator.evaluate_many(architectures, num_batches=num_batches, progress=self._note_progress)

    def _note_progress(self, count: int) -> None:
        if self._advance is not None:
            self._advance(count)
        if self.step == 0:  # no epoch is under way: so a long export may be left, and gone on with
            self.processes.speak_next()
            self.save_between_steps()

    def scored(self, measured: Sequence[Mapping[str, float]]) -> list[float]:
        """Return the score of each: the first process's, since a function may read a clock, say."""
        scores: list[float] = self.processes.first("the scores", [float(self.score(one)) for one in measured])
        return scores

    def scores(self, architectures: Sequence[Architecture], *, num_batches: int | None = None) -> list[float]:
        """Return the score of each architecture, for a searcher."""
        return self.scored(self.evaluated(architectures, num_batches=num_batches))

    def search_front(self, objectives: Mapping[str, str], num_evaluations: int, **options: Any) -> Front:
        """Search the trained supernet for what no other beats in all objectives: see `supernet.search.search_front`.

        In a run directory "evaluations.jsonl" keeps what is measured, so that a later search, under other limits or
        after an interruption, measures nothing twice; and "front.json" is what was found last. All processes must call
        it together.

        Args:
            objectives: Name of a metric, of "loss" or of a cost -> "max" or "min". The first is what `Front.best` goes
                by.
            num_evaluations: Number of architectures that are measured at most, under each limits.
            options: Others of `supernet.search.search_front`; the trainer's limits hold where none are given, and its
                costs and example are known.
        """
        directory = self._run.directory
        if directory is not None:
            options.setdefault("directory", directory.path)
        options = {"limits": self.limits, "example": self._example, "progress": self.progress, **options}
        limits = options["limits"]
        # Limits that are made already have costs of their own; others mean those of the trainer, such as of a board.
        made = [one for one in (limits if isinstance(limits, list | tuple) else [limits]) if isinstance(one, Limits)]
        known = [one.costs for one in (self.limits, *made) if one is not None]
        options["costs"] = reduce(operator.or_, [*known, dict(options.get("costs") or {})], {})
        front = search_front(self.evaluator, objectives, num_evaluations, **options)
        if directory is not None and self.fabric.is_global_zero:
            front.save(directory.path / FRONT)
        return front

    def best(self, architectures: Iterable[Architecture], count: int, **options: Any) -> list[Architecture]:
        """Return the `count` best of these by `score`, best first, each once; of equal ones the first.

        Raises:
            NonFiniteError: Every score is NaN; an architecture whose score is NaN is never among the best.
        """
        distinct = list({json.dumps(a): a for a in architectures}.values())
        scored = map(Scored, distinct, self.scores(distinct, **options))
        return [best.architecture for best in ranked(scored)[:count]]


def _least_loss(measured: Mapping[str, float]) -> float:
    return -measured["loss"]
