"""`nni.retiarii.oneshot.pytorch.proxyless`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Adam

from supernet.errors import TrainingError
from supernet.execution import InputSlot, LayerSlot, Plan, Selection, replace_input_choice, replace_layer_choice
from supernet.execution.state import Buffers, no_grad_for
from supernet.nn import InputChoice, LayerChoice
from supernet.relaxations import binary_gates
from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.choices import as_list
from supernet.retiarii.oneshot.pytorch.alpha import HasAlpha
from supernet.retiarii.oneshot.pytorch.subclassing import Assignable, RetiariiTrainer
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup, Split, halves
from supernet.trainers import ProxylessTrainer as OurProxylessTrainer

__all__ = ["ProxylessInputChoice", "ProxylessLayerChoice", "ProxylessTrainer"]

logger = logging.getLogger("supernet")


class _HasGates(HasAlpha):
    """What a choice becomes that runs the decision at `sampled`; while alpha is trained, with a gate for each decision.

    The gates' gradient goes to alpha in the backward pass itself, so that of a pass is whole after `loss.backward()`.
    """

    decisions: list[Any]

    @property
    def sampled(self) -> int | None:
        """The position of the decision that runs; None before one is drawn."""
        now = self.plan.get(self.label)
        return None if now is None else self.decisions.index(now.active[0] if isinstance(now, Selection) else now)

    @sampled.setter
    def sampled(self, sampled: int) -> None:
        self.plan[self.label] = self.decisions[sampled]

    def resample(self) -> None:
        """Draw a decision by softmax(alpha)."""
        self.sampled = int(torch.multinomial(self.export_prob().detach(), 1))

    def finalize_grad(self) -> None:
        """Do nothing: alpha has its gradient already."""

    def export_prob(self) -> torch.Tensor:
        """Return softmax(alpha)."""
        return torch.softmax(self.alpha, -1)

    def export(self) -> Any:
        """Return the decision of the largest alpha."""
        return self.decisions[int(self.alpha.argmax())]

    def _follow_sampled(self) -> None:
        if not self._computes_its_own() or self.sampled is None:
            return
        order = [self.sampled, *(k for k in range(len(self.decisions)) if k != self.sampled)]
        if self.alpha.requires_grad and torch.is_grad_enabled():
            decisions = tuple(self.decisions[k] for k in order)
            self.plan[self.label] = Selection(decisions, binary_gates(self.alpha, order, 0), detached=len(order) - 1)
        else:
            self.sampled = order[0]


class ProxylessLayerChoice(_HasGates, LayerSlot):
    """Runs one candidate, with gates."""

    def __init__(self, layer_choice: LayerChoice, plan: Plan | None = None) -> None:
        LayerSlot.__init__(self, layer_choice, Plan() if plan is None else plan)
        self.decisions = list(self.candidates)
        self._take_alpha(len(self.decisions), plan)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the candidate."""
        self._follow_sampled()
        return super().forward(*args, **kwargs)


class ProxylessInputChoice(_HasGates, InputSlot):
    """Reduces one set of inputs, with gates."""

    def __init__(self, input_choice: InputChoice, plan: Plan | None = None) -> None:
        InputSlot.__init__(self, input_choice, Plan() if plan is None else plan)
        self.decisions = list(input_choice.domain())
        self._take_alpha(len(self.decisions), plan)

    def forward(self, inputs: Any) -> Any:
        """Reduce the inputs."""
        self._follow_sampled()
        return super().forward(as_list(inputs))


class _RetiariiProxyless(RetiariiTrainer):
    """What a subclass of `ProxylessTrainer` may override: Retiarii's loop of it."""

    hooks: ClassVar[tuple[str, ...]] = (
        *RetiariiTrainer.hooks, "_train_one_epoch", "_logits_and_loss", "_logits_and_loss_for_arch_update",
        "_logits_and_loss_for_weight_update", "_resample",
    )  # fmt: skip
    optimizer = Assignable("optimizer", "_use_optimizer")
    ctrl_optim = Assignable("architecture_optimizer", "_use_architecture_optimizer")

    def build_supernet(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in, each of which knows its alpha."""
        super().build_supernet(ProxylessLayerChoice, ProxylessInputChoice, plan)  # type: ignore[misc]
        for label, module in self.nas_modules:
            if isinstance(module, HasAlpha):
                module.alpha = self.alphas[label]

    def _put_modules_in(self, arc_learning_rate: float) -> None:
        replace_layer_choice(self.model, ProxylessLayerChoice, self.nas_modules)
        replace_input_choice(self.model, ProxylessInputChoice, self.nas_modules)
        self.ctrl_optim = Adam(self._shared_alphas(), arc_learning_rate, betas=(0.0, 0.999))

    def _resample(self) -> None:
        """Draw a decision of each label; a hook."""
        drawn: dict[str, int] = {}
        for label, module in self.nas_modules:
            if label not in drawn:
                module.resample()
            module.sampled = drawn.setdefault(label, module.sampled)

    def _train_one_epoch(self, epoch: int) -> None:
        """Take a step of the alphas, after the warm-up, and one of the weights with each two batches; a hook."""
        self._to_training_form()
        meters, buffers, optimizer = AverageMeterGroup(), Buffers(self.model), self._given("optimizer")
        for step, ((trn_X, trn_y), (val_X, val_y)) in enumerate(self._pairs()):
            if epoch >= self.warmup_epochs:
                self._resample()
                self.ctrl_optim.zero_grad()
                with buffers.preserve():  # validation data moves nothing on the weights' side
                    self._logits_and_loss_for_arch_update(val_X, val_y)[1].backward()
                for _, module in self.nas_modules:
                    module.finalize_grad()
                self.ctrl_optim.step()
            self._resample()
            optimizer.zero_grad()
            with no_grad_for(module.alpha for _, module in self.nas_modules):
                logits, loss = self._logits_and_loss_for_weight_update(trn_X, trn_y)
                if loss.requires_grad:  # a path may have no parameters
                    loss.backward()
            optimizer.step()
            self._note(meters, logits, trn_y, loss, ("Epoch", epoch, step, self.train_loader))

    def _logits_and_loss(self, X: Any, y: Any) -> tuple[Any, torch.Tensor]:
        """Return the model's output and the loss; a hook."""
        logits = self.model(X)
        return logits, self._given("loss")(logits, y)

    def _logits_and_loss_for_arch_update(self, X: Any, y: Any) -> tuple[Any, torch.Tensor]:
        """Do so for the alphas' step; a hook."""
        return self._logits_and_loss(X, y)

    def _logits_and_loss_for_weight_update(self, X: Any, y: Any) -> tuple[Any, torch.Tensor]:
        """Do so for the weights' step; a hook."""
        return self._logits_and_loss(X, y)


class ProxylessTrainer(_RetiariiProxyless, OurProxylessTrainer):
    """`supernet.ProxylessTrainer` with Retiarii's signature.

    Args:
        grad_reg_loss_type: How the latency of a table `cost` counts: None and "add#linear" add it to the loss.
        grad_reg_loss_params: Parameters of "add#linear", {"lambda": ...}: the cost counts lambda / ref_latency.
            Default: 0.2.
        applied_hardware: Hardware whose latencies are in `cost`. Nothing here predicts them.
        dummy_input: Ignored.
        ref_latency: Latency that the cost is divided by, in the unit of the cost. Default: 65.
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        options: Further keyword arguments of `supernet.ProxylessTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Any,
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        warmup_epochs: int = 0,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        arc_learning_rate: float = 1e-3,
        grad_reg_loss_type: str | None = None,
        grad_reg_loss_params: Mapping[str, float] | None = None,
        applied_hardware: str | None = None,
        dummy_input: Any = (1, 3, 224, 224),
        ref_latency: float | None = 65,
        *,
        split: Split = "random",
        **options: Any,
    ) -> None:
        weight = _cost_weight(grad_reg_loss_type, grad_reg_loss_params, applied_hardware, ref_latency, options)
        why = self._why_own_loop(loss=loss or options.get("loss_fn"), optimizer=optimizer, dataset=dataset)
        if why is not None:
            self._take_arguments(
                why, options, device=device, model=model, loss=loss, metrics=metrics, optimizer=optimizer,
                num_epochs=num_epochs, dataset=dataset, warmup_epochs=warmup_epochs, batch_size=batch_size,
                workers=workers, log_frequency=log_frequency, split=split,
            )  # fmt: skip
            self._put_modules_in(arc_learning_rate)
            self.init_dataloader()
            return
        super().__init__(
            model,
            loss,
            metrics,
            optimizer,
            num_epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            arc_learning_rate=arc_learning_rate,
            **{**halves(dataset, split), **weight, **options},
        )


def _cost_weight(
    kind: str | None,
    params: Mapping[str, float] | None,
    hardware: str | None,
    ref_latency: float | None,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """Return what NNI 2.6's terms for the latency mean for ours.

    `loss + lambda * (latency - ref) / ref` is `loss + cost_weight * cost` for `cost_weight = lambda / ref`, but for a
    constant.
    """
    table = "cost={label: {candidate: milliseconds}}"
    if kind not in (None, "add#linear", "mul#log"):
        raise TrainingError(f"grad_reg_loss_type is None, 'add#linear' or 'mul#log', not {kind!r}")
    if not options.get("cost"):
        if hardware is not None:
            raise TrainingError(
                f"applied_hardware={hardware!r}: latencies are not predicted here, as nn-Meter did in NNI; measure the "
                f"candidates there, and give {table} beside grad_reg_loss_type"
            )
        if kind is not None:
            logger.warning("grad_reg_loss_type=%r has no effect without latencies, as in NNI; give %s", kind, table)
        return {}
    if kind == "mul#log":
        raise TrainingError(
            "grad_reg_loss_type='mul#log' multiplies the loss by a power of the latency, which is no sum over "
            "candidates; give 'add#linear', or cost_weight"
        )
    if kind is None:
        return {}
    if not ref_latency or ref_latency <= 0:
        raise TrainingError(f"ref_latency is a number above 0, not {ref_latency!r}")
    return {"cost_weight": (params or {}).get("lambda", 0.2) / ref_latency}


__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch.proxyless")
