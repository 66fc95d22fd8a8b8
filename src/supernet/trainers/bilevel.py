"""Two levels in turn: a distribution over architectures on validation batches, the weights on training batches."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch.optim import Adam, Optimizer

from supernet.checks import check_counts
from supernet.cost import Limits
from supernet.errors import TrainingError
from supernet.execution import InputSlot, LayerSlot
from supernet.execution.structure import mapped
from supernet.files.checkpoint import StateDict
from supernet.relaxations import Relaxation
from supernet.space import Architecture
from supernet.trainers.given_relaxation import (
    Term,
    check_plan,
    check_term,
    checked_terms,
    name_of_function,
    new_relaxation,
    what_follows_progress,
)
from supernet.trainers.keeping_limits import LimitsTerm, Penalty, check_penalty, check_relaxation, described
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.trainers.unrolled import check_looks_through, check_unrolled, take_unrolled_gradient

__all__ = ["BilevelTrainer"]

logger = logging.getLogger("supernet")

# DARTS's, arXiv 1806.09055
PAPER_ADAM = partial(Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)


class BilevelTrainer(SupernetTrainer):
    """Trains a relaxation and the weights in turn, on two halves of the data; exports the most probable architecture.

    Each training batch has a validation batch beside it, on which first a step of the architecture is taken. An
    algorithm is its `Relaxation`, and further losses if it has some: see docs/custom_trainer.md.

    Departs from papers: architecture steps do not move BatchNorm's running statistics.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        relaxation: The distribution that is trained: a `Relaxation` class, or what is called as one,
            `(space, seed=..., dtype=..., device=...) -> Relaxation`.
        terms: Further losses of the architecture's parameters, each `(relaxation, plan, progress) -> scalar tensor`.
            They are added to the validation loss, and are computed from the plan of this step or the relaxation by
            torch: what has no gradient would move nothing, and is refused. Default: none.
        architecture_optimizer: `parameters -> Optimizer`, of the relaxation's. Default: DARTS's
            Adam(3e-4, betas (0.5, 0.999), weight decay 1e-3).
        limit_penalty: What being beyond `limits` costs while the architecture is trained, as a share of each limit:
            "hinge" (arXiv 1812.00332) or "log_ratio" (arXiv 1812.03443, 1905.09717), of the mean cost or that of the
            most probable architecture, whichever is further beyond. Default: "hinge".
        limit_strength: What the penalty is multiplied by at the end of the search; it rises from 0. Default: 10.
        warmup_epochs: Number of first epochs in which the weights alone are trained. Default: 0.
        unrolled: Whether the architecture's gradient looks through one virtual step of the weights, which is of second
            order. Their optimizer must be `torch.optim.SGD`. Default: first order.
        memory: "lean" holds only the inputs of mixtures for the backward pass, and computes these again there: a
            fraction of the memory for some more time, with the same results. Default: "fast".
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Attributes:
        relaxation: The distribution that is trained. Its parameters are in no optimizer of the weights.
        alphas: Logits (K,) of each label, those of the relaxation.
        architecture_optimizer: What trains them.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: As `SupernetTrainer`; `unrolled` with an optimizer
            whose virtual step is not known, with "16-mixed", whose scaled gradients it cannot use, or with weights of
            16 bits.
        ChoiceError: Candidates' outputs differ in shape, or a choice cannot run as the relaxation would have it.
    """

    def __init__(
        self,
        *task: Any,
        relaxation: Callable[..., Relaxation],
        terms: Sequence[Term] = (),
        limit_penalty: Penalty = "hinge",
        limit_strength: float = 10.0,
        architecture_optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer] = PAPER_ADAM,
        warmup_epochs: int = 0,
        unrolled: bool = False,
        memory: Literal["fast", "lean"] = "fast",
        **config: Any,
    ) -> None:
        if memory not in ("fast", "lean"):
            raise TrainingError(f"memory is 'fast' or 'lean', not {memory!r}")
        if unrolled not in (True, False):
            raise TrainingError(f"unrolled is True or False, not {unrolled!r}")
        check_counts(0, warmup_epochs=warmup_epochs)
        check_penalty(limit_penalty, limit_strength)  # where there are no limits, too
        terms = checked_terms(terms)
        super().__init__(*task, **config)
        if unrolled:
            check_unrolled(self)
        if warmup_epochs >= self.num_epochs:
            logger.warning(
                "warmup_epochs=%d of %d epochs: the architecture is not trained, and what is exported is noise",
                *(warmup_epochs, self.num_epochs),
            )
        # What leads to limits is a term like others, but that policies take it apart from the reward.
        self.limit_terms: tuple[LimitsTerm, ...] = ()
        if self.limits is not None and self.limits.bounds:
            self.limit_terms = (LimitsTerm(self.limits, limit_penalty, limit_strength),)
        self.terms, self.warmup_epochs, self.unrolled = (*terms, *self.limit_terms), warmup_epochs, bool(unrolled)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.relaxation = new_relaxation(relaxation, self.space, seed=self.seed, dtype=dtype, device=self.device)
        self.architecture_optimizer: Any = self.fabric.setup_optimizers(
            architecture_optimizer(list(self.relaxation.parameters()))
        )
        # Which methods the relaxation has of its own, beside `plan`: a step calls no others.
        hooks, kind = ("begin_step", "stepping", "weights_plan"), type(self.relaxation)
        self._hooks = [name for name in hooks if getattr(kind, name) is not getattr(Relaxation, name)]
        self._length = self.steps_of_an_epoch() or math.inf
        self._ours |= {"_hooks", "_length", "limit_terms"}
        if self.limits is not None:
            check_relaxation(self.relaxation, self.space)
        trial = copy.deepcopy(self.relaxation)  # so that nothing of the search's is drawn
        with torch.enable_grad():
            plan = trial.plan(0.0)
            check_plan(trial, plan)
            for term in self.terms:
                check_term(term, trial, plan)
        if unrolled:
            check_looks_through(plan)
        # A path decides what it reaches alone, and all is tried.
        others = self.space.draw(torch.Generator().manual_seed(self.seed))
        plan = {**others, **{label: mapped(entry, _leaf) for label, entry in plan.items()}}
        self.build_supernet(partial(LayerSlot, lean=memory == "lean"), InputSlot, plan)
        if "stepping" in self._hooks:
            self._steps.around = self._around_step

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {
            **super().stateful(),
            "relaxation": self.relaxation,
            "architecture_optimizer": self.architecture_optimizer,
        }

    @property
    def alphas(self) -> Mapping[str, torch.nn.Parameter]:
        """label -> logits (K,), those of the relaxation."""
        return self.relaxation.logits

    @property
    def architecture_parameters(self) -> list[torch.nn.Parameter]:
        """What the architecture optimizer trains."""
        return [p for group in self.architecture_optimizer.param_groups for p in group["params"]]

    @property
    def fraction_done(self) -> float:
        """How much of the search is done, from 0 to 1, for plans and terms; of a stream in whole epochs."""
        return (self.epoch + self.step / self._length) / self.num_epochs

    def note_other_num_epochs(self, before: int) -> None:
        """Warn where what is trained depends on how much of the search is done, which is another share now."""
        if following := what_follows_progress(self.relaxation, self.terms):
            logger.warning(
                "num_epochs was %d and is %d, so the progress that %s of %s follows jumps here: the result is not that "
                "of %d epochs from the beginning; give num_epochs=%d, or search anew, where that matters",
                *(before, self.num_epochs, ", ".join(following), type(self).__name__, self.num_epochs, before),
            )

    def plan(self) -> dict[str, Any]:
        """Return label -> what runs in a step of the architecture."""
        return self.relaxation.plan(self.fraction_done)

    def weights_plan(self) -> dict[str, Any]:
        """Return label -> what runs in a step of the weights."""
        if self.epoch < self.warmup_epochs:
            return self.relaxation.warmup_plan(self.fraction_done)
        if "weights_plan" in self._hooks:
            return self.relaxation.weights_plan(self.fraction_done)
        with torch.no_grad():
            return self.plan()  # a subclass's own too

    def train_step(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Take a step of the architecture, unless the weights are still warming up, then one of the weights."""
        if self.epoch >= self.warmup_epochs:
            self.train_architecture(val_X, val_y, *((trn_X, trn_y) if self.unrolled else ()))
        self.train_model_weight(trn_X, trn_y)

    def train_architecture(self, val_X: Any, val_y: Any, trn_X: Any = None, trn_y: Any = None) -> None:
        """Take a step of the architecture on a validation batch; a training batch is what `unrolled` looks through."""
        if "begin_step" in self._hooks and self.step % self.accumulate == 0:
            self.relaxation.begin_step()
        if self.unrolled:
            take_unrolled_gradient(self, val_X, val_y, trn_X, trn_y)
            self.apply_gradients(self.architecture_optimizer)
        else:
            with self.frozen_weights():
                plan = self.plan()
                loss = self.compute_loss("valid", self.forward(val_X, plan), val_y)
                self.optimizer_step(self.with_terms(loss, plan) if self.terms else loss, self.architecture_optimizer)
        self.check_architecture()

    def train_model_weight(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step of the weights on a training batch."""
        loss = self.compute_loss("train", self.forward(trn_X, self.weights_plan()), trn_y)
        self.optimizer_step(loss, self.optimizer, clip=self.grad_clip)

    def check_architecture(self) -> None:
        """Stop if an architecture parameter is NaN or infinite: see `check_finite`."""
        parameters = [p.flatten() for group in self.architecture_optimizer.param_groups for p in group["params"]]
        self.check_finite(torch.cat(parameters), "an architecture parameter")

    def with_terms(self, loss: Any, plan: Mapping[str, Any], terms: Sequence[Term] | None = None) -> Any:
        """Return the loss with the further ones of the architecture's parameters, or with some of them."""
        for term in self.terms if terms is None else terms:
            value = term(self.relaxation, plan, self.fraction_done)
            if self.on_nonfinite == "stop":  # else its gradient decides
                self.check_finite(torch.as_tensor(value, device=self.device), f"the term {name_of_function(term)}")
            loss = loss + value
        return loss

    def _around_step(self, optimizer: Any) -> AbstractContextManager[None]:
        return self.relaxation.stepping() if optimizer is self.architecture_optimizer else nullcontext()

    def export(self, epoch: int | Literal["best"] | None = None) -> Architecture:
        """Return the most probable architecture that keeps the limits, where there are some.

        Args:
            epoch: After which epoch, from 1 on; "best" is that of the least validation loss. Default: as it is now.

        Raises:
            TrainingError: There is no such epoch.
        """
        if epoch is not None:
            return self.architecture_of(epoch)
        derived = self.relaxation.derive()
        return derived if self.limits is None or self.limits(derived) else self._most_probable_within(self.limits)[0]

    def _most_probable_within(self, limits: Limits) -> tuple[Architecture, bool]:
        """Return the most probable architecture found that keeps limits, and whether it is known to be the most."""
        return limits.best({label: log_p_D.tolist() for label, log_p_D in self.relaxation.log_probs().items()})

    def _note_costs(self, limits: Limits) -> None:
        derived = self.relaxation.derive()
        if beyond := limits.excess(derived):
            costs = limits.costs_of(derived)
            what = "the most probable" if self._most_probable_within(limits)[1] else "the most probable found"
            logger.warning(
                "the most probable architecture breaks limits: it has %s; exported is %s that keeps them",
                *(described(limits, {name: costs[name] for name in beyond}), what),
            )
        super()._note_costs(limits)

    def _record_of_choices(self) -> dict[str, Any]:
        record = super()._record_of_choices()
        if self.limits is not None:
            log_probs = self.relaxation.log_probs()
            p_D = {label: log_p_D.detach().exp() for label, log_p_D in log_probs.items()}
            known = self.limit_terms[0].bounds if self.limit_terms else ()
            record["mean_costs"] = {name: float(self.limits.costs[name].expected(p_D)) for name in known}
            record["most_probable_keeps_limits"] = self.limits(self.relaxation.derive())
        return record

    def derive(self) -> Architecture:
        """Return what `export` returns, a subclass's own too."""
        return self.export()

    def probabilities(self) -> dict[str, list[float]]:
        """Return label -> the present probability of each option, as the relaxation has it."""
        return {label: p_K.tolist() for label, p_K in self.relaxation.probabilities().items()}

    def upgraded_state(self, named: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state as `stateful` names it, of a checkpoint from when a trainer held alphas and generator."""
        if "relaxation" in named or "alphas" not in named:
            return named
        extra = self.relaxation.get_extra_state()
        if (generator := named.get("generator")) is not None:  # in version 1 what its `get_state` returned
            extra["generator"] = generator.get_state() if isinstance(generator, torch.Generator) else generator
        if "drawn" in extra:
            extra["drawn"] = named["_drawn"]
        logits = {f"logits.{label}": alpha for label, alpha in named["alphas"].items()}
        state = {**self.relaxation.state_dict(), **logits, "_extra_state": extra}
        others = {name: value for name, value in named.items() if name not in ("alphas", "generator", "_drawn")}
        return {**others, "relaxation": StateDict(type(self.relaxation).__qualname__, state, {})}


def _leaf(weights: torch.Tensor) -> torch.Tensor:
    """Return weights without the graph that made them, which take gradients where they do."""
    return weights.detach().requires_grad_(weights.requires_grad)
