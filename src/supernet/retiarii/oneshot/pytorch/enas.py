"""`nni.retiarii.oneshot.pytorch.enas`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.optim import Adam

from supernet.errors import TrainingError
from supernet.nn import InputChoice, LayerChoice
from supernet.relaxations import EnasController
from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.oneshot.pytorch.random import RetiariiPaths
from supernet.retiarii.oneshot.pytorch.subclassing import Assignable
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup, Split, halves
from supernet.space import SearchSpace
from supernet.trainers import EnasTrainer as OurEnasTrainer

__all__ = ["EnasTrainer", "ReinforceController", "ReinforceField"]


class ReinforceField(NamedTuple):
    """One decision of a controller that is made from fields: a label, how many there are, and whether it takes one."""

    name: str
    total: int
    choose_one: bool


class ReinforceController(EnasController):
    """`supernet`'s controller as Retiarii's loop asks it.

    Args:
        fields: The decisions, as fields or as a space. Of fields, a decision is the position that is chosen, or a list.
        options: Keyword arguments of `supernet.trainers.EnasController`.

    Attributes:
        sample_log_prob: Minus the log probability of what was drawn last, as it had that name in Retiarii.
        sample_entropy: Entropy of the decisions, in nats.
        sample_skip_penalty: KL of each input's probability to `skip_target`, in nats.
    """

    sample_log_prob: torch.Tensor
    sample_entropy: torch.Tensor
    sample_skip_penalty: torch.Tensor

    def __init__(self, fields: Sequence[ReinforceField] | SearchSpace, **options: Any) -> None:
        self._has_fields = not isinstance(fields, SearchSpace)
        super().__init__(_space_of(fields) if self._has_fields else fields, **options)  # type: ignore[arg-type]

    def resample(self) -> dict[str, Any]:
        """Draw an architecture."""
        drawn = self(generator=torch.default_generator)
        self.sample_log_prob, self.sample_entropy = -drawn.log_prob, drawn.entropy
        self.sample_skip_penalty = drawn.skip_penalty
        if not self._has_fields:
            return drawn.architecture
        return {label: int(d) if isinstance(d, str) else d for label, d in drawn.architecture.items()}


def _space_of(fields: Sequence[ReinforceField]) -> SearchSpace:
    return SearchSpace(
        nn.ModuleList(
            LayerChoice([nn.Identity() for _ in range(total)], label=name)
            if choose_one
            else InputChoice(total, n_chosen=None, label=name)
            for name, total, choose_one in {field.name: field for field in fields}.values()
        )
    )


class _RetiariiEnas(RetiariiPaths):
    """What a subclass of `EnasTrainer` may override: Retiarii's loop of it."""

    epochs: ClassVar[tuple[str, ...]] = ("_train_model", "_train_controller", "fit")
    hooks: ClassVar[tuple[str, ...]] = (*RetiariiPaths.hooks, "_train_model", "_train_controller")
    ctrl_optim = Assignable("controller_optimizer", "_use_controller_optimizer")
    baseline: Any

    def _use_controller_optimizer(self, optimizer: Any) -> None:
        self.controller_optimizer = optimizer

    def _resample(self) -> dict[str, Any]:
        """Draw a path by the controller, let the modules in the choices' places follow it, and return it; a hook."""
        return self._followed(self.sample() if self.is_ours else self.controller.resample())

    def _score(self, logits: Any, y: Any) -> Any:
        return self._given("reward_function")(logits, y)

    def _fit_one_epoch(self, epoch: int) -> None:
        self._train_model(epoch)
        self._train_controller(epoch)

    def _train_model(self, epoch: int) -> None:
        """Take a step of the weights of a drawn path with each batch; a hook."""
        self.controller.eval()
        self._train_on(self.train_loader, epoch, "Model Epoch")

    def _train_controller(self, epoch: int) -> None:
        """Take a step of the controller with each `ctrl_steps_aggregate` batches of the validation data; a hook."""
        if self.is_ours:
            raise TrainingError("_train_controller is of Retiarii's loop, and this trainer runs in ours: call fit()")
        self.model.eval()
        self.controller.train()
        meters, reward_function, sampled = AverageMeterGroup(), self._given("reward_function"), 0
        self.ctrl_optim.zero_grad()
        for step, (X, y) in enumerate(self._on_device(self.valid_loader)):
            self._resample()
            with torch.no_grad():
                logits = self.model(X)
            reward = float(reward_function(logits, y))
            self.baseline = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * reward
            controller = self.controller
            loss = (reward - self.baseline) * controller.sample_log_prob
            loss = loss - self.entropy_weight * controller.sample_entropy
            loss = loss + self.skip_weight * controller.sample_skip_penalty
            loss.backward()
            sampled += 1
            if sampled == self.ctrl_steps_aggregate:
                self._step_controller(sampled)
                sampled = 0
            meters.update({"reward": reward, "baseline": self.baseline})
            self._note(meters, logits, y, loss, ("RL Epoch", epoch, step, self.valid_loader))
        if sampled:
            self._step_controller(sampled)

    def _step_controller(self, sampled: int) -> None:
        """Take a step down the mean of so many gradients."""
        parameters = list(self.controller.parameters())
        for p in parameters:
            if p.grad is not None:
                p.grad /= sampled
        if self.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        self.ctrl_optim.step()
        self.ctrl_optim.zero_grad()


class EnasTrainer(_RetiariiEnas, OurEnasTrainer):
    """`supernet.EnasTrainer` with Retiarii's signature.

    Args:
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        options: Further keyword arguments of `supernet.EnasTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Any,
        reward_function: Callable[[Any, Any], Any] | None,
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        grad_clip: float | None = 5.0,
        entropy_weight: float = 0.0001,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
        ctrl_lr: float = 0.00035,
        ctrl_steps_aggregate: int = 20,
        ctrl_kwargs: Mapping[str, Any] | None = None,
        *,
        split: Split = "random",
        **options: Any,
    ) -> None:
        given = {"loss": loss or options.get("loss_fn"), "reward_function": reward_function}
        why = self._why_own_loop(**given, optimizer=optimizer, dataset=dataset)
        if why is not None:
            self._take_arguments(
                why, options, device=device, model=model, loss=loss, metrics=metrics, reward_function=reward_function,
                optimizer=optimizer, num_epochs=num_epochs, dataset=dataset, batch_size=batch_size, workers=workers,
                log_frequency=log_frequency, grad_clip=grad_clip, entropy_weight=entropy_weight,
                skip_weight=skip_weight, baseline_decay=baseline_decay, ctrl_steps_aggregate=ctrl_steps_aggregate,
                split=split, baseline=0.0,
            )  # fmt: skip
            self._put_modules_in()
            self.controller = ReinforceController(self.space, seed=self.seed, **(ctrl_kwargs or {}))
            self.ctrl_optim = Adam(self.controller.parameters(), ctrl_lr)
            self.init_dataloader()
            return
        super().__init__(
            model,
            loss,
            metrics,
            reward_function,  # type: ignore[arg-type]
            optimizer,
            num_epochs,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            grad_clip=grad_clip,
            entropy_weight=entropy_weight,
            skip_weight=skip_weight,
            baseline_decay=baseline_decay,
            ctrl_lr=ctrl_lr,
            ctrl_steps_aggregate=ctrl_steps_aggregate,
            ctrl_kwargs=ctrl_kwargs,
            **{**halves(dataset, split), **options},
        )


__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch.enas")
