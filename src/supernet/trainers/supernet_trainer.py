"""What our trainers inherit: the loop, over a model whose choices run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from supernet.cost import Cost, Limits, Parameters
from supernet.cost.extremes import extremes
from supernet.data.loaders import Data, loaders_of_two_parts
from supernet.errors import MixtureError, TrainingError
from supernet.execution import Plan
from supernet.execution.replace import check_not_replaced
from supernet.nn import InputChoice, LayerChoice
from supernet.search.searcher import Constraint
from supernet.space import Architecture, SearchSpace, freeze
from supernet.trainers.base import BaseOneShotTrainer
from supernet.trainers.evaluator import TrainerEvaluator
from supernet.trainers.former_names import FormerNames
from supernet.trainers.keeping_limits import BothKept, GivenLimits, as_record, described, limits_of
from supernet.training.config import FIELDS, describe_options
from supernet.training.health import entropies, share_without_parameters
from supernet.training.loop import TrainingLoop
from supernet.training.metrics import Meter
from supernet.training.run_directory import RunDirectory, failing_softly

__all__ = ["SupernetTrainer"]

logger = logging.getLogger("supernet")


class SupernetTrainer(FormerNames, TrainingLoop, BaseOneShotTrainer):
    """What our trainers inherit; a new algorithm is its plan, its steps and the architecture that it derives.

    A subclass calls `super().__init__`, which checks everything and leaves the model as it is; makes what it
    trains; and calls `build_supernet`. It writes `train_step` (or `train_epoch`, where its steps alternate
    otherwise), in which it calls `forward`, `compute_loss` and `optimizer_step`, and it writes `export`.

    What a subclass returns from `stateful` goes into checkpoints, so that it resumes exactly. What its constructor
    takes beside `*task` and `**config` is in `run.json`, and must be the same at a resume: see `options`.

    Args:
        model: Module with choices.
        loss: `(output, target) -> tensor`, one number: a mean over the samples. None with `loss_fn`.
        metrics: `(output, target) -> number or dict of numbers`, a torchmetrics `Metric` or `MetricCollection`, or
            None.
        optimizer: Optimizer of the model's parameters.
        num_epochs: How many times `fit` goes over the training part.
        dataset: A torch Dataset or DataLoader. A random half, drawn by the seed, trains the weights and the other
            half the architecture, unless `valid_dataset` is given.
        valid_dataset: What trains the architecture. Default: half of `dataset`.
        forward_fn: `(model, X) -> output`, for what X is not the one argument of the model. Default: the model is
            called with X, or with its parts where these and not X alone fit the arguments of its `forward`.
        loss_fn: `(model, batch) -> loss`, or `-> (loss, output, target)` where there are metrics or a reward: does
            all with a batch, which may be anything. Then `loss` is None. The model that it is given runs as the
            trainer wants it to. Default: `loss(model(X), y)`.
        scheduler: Scheduler of the optimizer's learning rate. Default: none.
        scheduler_interval: Whether the scheduler is stepped once an "epoch", or after each "step" of the optimizer,
            as `OneCycleLR` and warm-ups by steps want it. Default: "epoch".
        limits: What the network of an architecture may cost, as `supernet.cost.Limits` takes it: name of a cost -> the
            most, or (least, most), such as `{"parameters": 60_000, "macs": "60%"}`. Default: no limits.
        costs: Further costs by name, as `Limits` takes them. Those that have no limit are reported too. Default: none.
        example: What the model is called with, of which costs of what runs are. Default: the first training sample, as
            a batch of one.
        config: Options that hold where they are not given by name. Default: all have the defaults below.
        {options}

    Attributes:
        space: The model's `SearchSpace`.
        config: The options, as a `TrainingConfig`.
        history: One dict an epoch, as in `metrics.jsonl`.
        stopped: Why the search ended before `num_epochs`, else None.
        evaluator: What says how good architectures are with the supernet's weights.
        limits: The `Limits` that are kept; None where there are none.
        given_options: What was given, by name, as JSON has it: functions by their qualified names.

    Raises:
        TrainingError: The model has no choices, the optimizer lacks parameters of it, or an argument cannot be.
        TypeError: There is no argument of that name; names the nearest.
        AlreadyReplacedError: Another trainer has taken the model over.
        DataError: The data cannot be split or read.
        SpaceError: One label means two different choices.
        CostError: A limit cannot be, or nothing that was found keeps all limits; names the nearest and its costs.
            After any of these the model is as it was.
    """

    recalibration_samples: int = 20_000  # for BatchNorm (arXiv 1904.00420)

    def __init__(
        self,
        *task: Any,
        limits: GivenLimits | None = None,
        costs: Mapping[str, Cost] | None = None,
        example: Any = None,
        **config: Any,
    ) -> None:
        super().__init__(*task, **config)
        self.limits = limits_of(self, limits, costs, example)
        self._example = example if self.limits is None else self.limits.example
        self._ours |= {"limits", "_example", "_costs_found"}

    def _check_model(self, model: nn.Module) -> None:
        self.space = SearchSpace(model)
        check_not_replaced(model)
        if not self.space:
            raise TrainingError(
                f"{type(model).__name__} has no choices to search; mark some by LayerChoice or InputChoice, or train "
                "it as it is by supernet.train"
            )

    def _loaders(self, dataset: Data, valid_dataset: Data | None, **how: Any) -> tuple[Any, Any]:
        return loaders_of_two_parts(dataset, valid_dataset, **how)

    def build_supernet(
        self,
        layer: Callable[[LayerChoice, Plan], nn.Module],
        input: Callable[[InputChoice, Plan], nn.Module],
        plan: dict[str, Any],
    ) -> None:
        """Put modules that run in the place of the model's choices, and try them on a batch.

        Args:
            layer: What makes a module that stands in a `LayerChoice`'s place and follows the plan, such as `LayerSlot`.
            input: The same for an `InputChoice`, such as `InputSlot`.
            plan: A plan that the trial can follow.

        Raises:
            SupernetError: A choice cannot run so. What the model and the loss themselves raise is passed on.
                After either the model is as it was.
        """
        try:
            self._set_up(layer, input, plan)
        except MixtureError as error:
            raise MixtureError(f"{error}; trainers that sample are {', '.join(_that_sample())}") from error
        self.evaluator = TrainerEvaluator(self)
        self._ours.add("evaluator")

    def teacher_in_place(self, teacher: Any) -> Architecture:
        """Return the architecture that teaches: the one that is given, or that of the most parameters for "largest"."""
        if isinstance(teacher, Mapping):
            return self.space.canonical(teacher)
        return extremes(self.space, Parameters(self.model).of).largest

    def explain(self) -> None:
        """Print how each choice runs: which candidates the fast way, and which as they are and why."""
        print(self.supernet.explain())

    def probabilities(self) -> dict[str, list[float]]:
        """Return label -> the present probability of each candidate or input, for the record; none by default."""
        return {}

    def _record_of_choices(self) -> dict[str, Any]:
        probabilities, architecture = self.probabilities(), self.derive()
        record = {"probabilities": probabilities, "entropy": entropies(probabilities, self.space)}
        if architecture is not None:
            last = self.history[-1] if self.history else {}
            stable = last.get("stable_epochs", 0) + 1 if last.get("architecture") == architecture else 0
            free = share_without_parameters(architecture, self.space, self.supernet.candidates_without_parameters())
            record |= {"architecture": architecture, "stable_epochs": stable, "parameter_free_share": free}
            if self.limits is not None:
                record["network_costs"] = self.limits.costs_of(architecture)
        return record

    def within_limits(self, constraint: Constraint | None) -> Constraint | None:
        """Return what says whether an architecture keeps the limits, where there are some, and a constraint too."""
        if self.limits is None or constraint is None:
            return constraint if self.limits is None else self.limits
        return BothKept(self.limits, constraint)

    def identity(self) -> dict[str, Any]:
        """Return what two runs must have in common for one to go on where the other ended."""
        return {**super().identity(), "space": self.space.fingerprint}

    def _standing_result(self, run: RunDirectory) -> Any:
        return run.finished_architecture(self.space)

    def _conclude(self) -> None:
        self._found = self.export()  # some processes share the work
        found = {"the architecture": dict(self._found)}
        self.processes.compare(found, "the processes have found different architectures")
        standing = self._run.standing
        if standing not in (None, self.space.canonical(self._found)):
            raise TrainingError(
                f"the run is finished with the architecture {standing}, and now the search gives {self._found}: "
                "data, a function or a constraint has changed; search anew in another run_dir"
            )
        if self.limits is not None:
            self._note_costs(self.limits)

    def _note_costs(self, limits: Limits) -> None:
        """Say what the frozen network costs, beside each limit."""
        found = dict(self._found)
        known = limits.costs_of(found)
        with failing_softly("what is said of costs is of the architecture, and not counted in the frozen network"):
            network = freeze(self.model, found)
            known = {name: cost.of_network(network, found) for name, cost in limits.costs.items()}
        logger.info("the exported network has %s", described(limits, known))
        if beyond := limits.beyond(known):
            logger.warning("the exported network breaks the limits of %s", ", ".join(beyond))
        self._costs_found = as_record(limits, known)

    def _about_result(self) -> dict[str, Any]:
        return {} if self.limits is None else {"costs": self._costs_found}

    def _write_result(self, run: RunDirectory) -> None:
        if self._run.standing is None:
            run.write_architecture(self._found, self.space)
        run.write_network(lambda: self._network_of(self._found))

    def _write_plots(self, run: RunDirectory) -> None:
        run.write_plots(self.model, self._found, self.space, self.history)

    # --- evaluation of architectures ---------------------------------------------------------------------

    def evaluate(self, architecture: Mapping[str, Any], *, num_batches: int | None = None) -> dict[str, float]:
        """Return loss and metrics of an architecture on the validation part, with the weights of the supernet.

        BatchNorm's running statistics are those of this architecture alone: before, they are computed from scratch
        on training samples, as the plain average over batches. They, the weights and the random numbers are
        after it as they were.

        Args:
            architecture: An architecture, label -> decision.
            num_batches: Number of batches of the validation part. Default: all.

        Raises:
            ArchitectureError: It is not an architecture of the model's space.
        """
        return self.evaluator(architecture, num_batches=num_batches)

    def network(self, architecture: Mapping[str, Any] | None = None) -> nn.Module:
        """Return the frozen network of an architecture, which is what `evaluate` measures.

        It has the weights of the supernet, and BatchNorm's running statistics of this architecture alone. The supernet
        stays as it is, so that the network can be trained further.

        Args:
            architecture: An architecture, label -> decision. Default: the one that `export` gives.

        Raises:
            ArchitectureError: It is not an architecture of the model's space.
            DataError: The training part gives no batch to compute statistics on.
        """
        architecture = self.export() if architecture is None else self.space.canonical(architecture)
        with self.evaluator.recalibrated(architecture):
            return freeze(self.model, architecture)

    def forget_evaluations(self) -> None:
        """Forget what was evaluated, for the weights have moved, in whatever step of a subclass."""
        self.weights_moved = False
        self.evaluator.forget()

    def note_state_loaded(self) -> None:
        """Note that a checkpoint's state, and so its weights, take the place of this trainer's own."""
        super().note_state_loaded()
        self.forget_evaluations()

    def architecture_of(self, epoch: int | Literal["best"]) -> Architecture:
        """Return the architecture that was derived after an epoch.

        Args:
            epoch: Number of the epoch, from 1 on; or "best", the epoch of the least loss on the validation part.

        Raises:
            TrainingError: There is no such epoch, or its record has no architecture.
        """
        records = {record["epoch"]: record for record in self.history if "architecture" in record}
        measured = [n for n, record in records.items() if not math.isnan(record.get("valid_loss", math.nan))]
        if epoch == "best" and measured:
            epoch = min(measured, key=lambda n: records[n]["valid_loss"])
        if epoch not in records:
            known = f"there are 1 to {len(records)}" if records else "no epoch has one"
            raise TrainingError(f"epoch {epoch!r} of {type(self).__name__} has no architecture: {known}")
        return dict(records[epoch]["architecture"])

    def evaluation_meters(self) -> list[Meter]:
        """Return what measures the outputs of an evaluation; the first one takes the loss too."""
        return [Meter(self.metrics, self.device)]

    def _network_of(self, architecture: Architecture) -> nn.Module:
        """Return the frozen network, with the statistics of the whole supernet where its own cannot be computed."""
        with failing_softly("the network's running statistics are those of the whole supernet"):
            return self.network(architecture)
        return freeze(self.model, architecture)


def _that_sample() -> list[str]:
    """Return the names of our trainers that run one path a step, and so bear every choice."""
    import supernet.trainers as trainers  # which holds all of them

    kinds = {name: getattr(trainers, name) for name in trainers.__all__}
    base = trainers.SampledTrainer
    return [n for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, base) and kind is not base]


describe_options(SupernetTrainer, FIELDS.values())
