"""`nni.retiarii.oneshot.pytorch.darts`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import SGD, Adam

from supernet.errors import TrainingError
from supernet.execution import InputSlot, LayerSlot, Plan, replace_input_choice, replace_layer_choice
from supernet.execution.state import Buffers, RandomState
from supernet.nn import InputChoice, LayerChoice
from supernet.relaxations.logits import most_probable_of, probabilities_of
from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.choices import as_list
from supernet.retiarii.oneshot.pytorch.alpha import HasAlpha
from supernet.retiarii.oneshot.pytorch.subclassing import Assignable, RetiariiTrainer
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup, Split, halves
from supernet.space import Decision
from supernet.trainers import DartsTrainer as OurDartsTrainer
from supernet.trainers.unrolled import unrolled_gradients

__all__ = ["DartsInputChoice", "DartsLayerChoice", "DartsTrainer"]


class DartsLayerChoice(HasAlpha, LayerSlot):
    """Mixes candidates by softmax(alpha), which is its own if it is made without a plan, in a trainer of one's own."""

    def __init__(self, layer_choice: LayerChoice, plan: Plan | None = None, lean: bool = False) -> None:
        LayerSlot.__init__(self, layer_choice, Plan() if plan is None else plan, lean)
        self._take_alpha(len(self.candidates), plan)

    @property
    def op_choices(self) -> dict[str, nn.Module]:
        """The candidates by name."""
        return self.candidates

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Mix what the candidates return."""
        if self._computes_its_own():
            self.plan[self.label] = torch.softmax(self.alpha, -1)
        return super().forward(*args, **kwargs)

    def export(self) -> str:
        """Return the name of the candidate of the largest alpha."""
        return list(self.candidates)[int(self.alpha.argmax())]


class DartsInputChoice(HasAlpha, InputSlot):
    """The same for the inputs of an InputChoice; by sigmoid(alpha) where their number is not fixed."""

    def __init__(self, input_choice: InputChoice, plan: Plan | None = None) -> None:
        InputSlot.__init__(self, input_choice, Plan() if plan is None else plan)
        self.n_chosen = input_choice.n_chosen or 1
        self.domain = input_choice.domain()
        self._take_alpha(input_choice.n_candidates, plan)

    def forward(self, inputs: Any) -> Any:
        """Mix the inputs."""
        if self._computes_its_own():
            self.plan[self.label] = probabilities_of(self.domain, self.alpha)
        return super().forward(as_list(inputs))

    def export(self) -> Decision:
        """Return the most probable positions, ascending."""
        return most_probable_of(self.domain, self.alpha)


class _RetiariiDarts(RetiariiTrainer):
    """What a subclass of `DartsTrainer` may override: Retiarii's loop of it."""

    hooks: ClassVar[tuple[str, ...]] = (
        *RetiariiTrainer.hooks, "_train_one_epoch", "_logits_and_loss", "_backward", "_unrolled_backward",
    )  # fmt: skip
    model_optim = Assignable("given_optimizer", "_use_optimizer")
    ctrl_optim = Assignable("architecture_optimizer", "_use_architecture_optimizer")

    def _put_modules_in(self, arc_learning_rate: float) -> None:
        replace_layer_choice(self.model, DartsLayerChoice, self.nas_modules)
        replace_input_choice(self.model, DartsInputChoice, self.nas_modules)
        self.ctrl_optim = Adam(self._shared_alphas(), arc_learning_rate, betas=(0.5, 0.999), weight_decay=1e-3)

    def _train_one_epoch(self, epoch: int) -> None:
        """Take a step of the alphas and one of the weights with each two batches; a hook."""
        self._to_training_form()
        meters, buffers, optimizer = AverageMeterGroup(), Buffers(self.model), self._given("model_optim")
        for step, ((trn_X, trn_y), (val_X, val_y)) in enumerate(self._pairs()):
            self.ctrl_optim.zero_grad()
            with buffers.preserve():  # validation data moves nothing on the weights' side
                if self.unrolled:
                    self._unrolled_backward(trn_X, trn_y, val_X, val_y)
                else:
                    self._backward(val_X, val_y)
            self.ctrl_optim.step()
            optimizer.zero_grad()
            logits, loss = self._logits_and_loss(trn_X, trn_y)
            loss.backward()
            if self.grad_clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
            optimizer.step()
            self._note(meters, logits, trn_y, loss, ("Epoch", epoch, step, self.train_loader))

    def _logits_and_loss(self, X: Any, y: Any) -> tuple[Any, torch.Tensor]:
        """Return the model's output and the loss; a hook."""
        logits = self.model(X)
        return logits, self._given("loss")(logits, y)

    def _backward(self, val_X: Any, val_y: Any) -> None:
        """Add the alphas' gradient of first order to theirs; a hook."""
        self._logits_and_loss(val_X, val_y)[1].backward()

    def _unrolled_backward(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Set the alphas' gradient to that of second order, as `supernet.DartsTrainer` computes it; a hook."""
        optimizer = self._given("model_optim")
        if type(optimizer) is not SGD:
            raise TrainingError(f"unrolled=True knows the step of torch.optim.SGD, not of {type(optimizer).__name__}")
        weights = [p for p in self.model.parameters() if p.requires_grad]
        alphas = list({id(module.alpha): module.alpha for _, module in self.nas_modules}.values())
        buffers, noise = Buffers(self.model), RandomState(self.device)

        def gradients(X: Any, y: Any, parameters: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
            with buffers.preserve():
                return torch.autograd.grad(self._logits_and_loss(X, y)[1], parameters, allow_unused=True)

        def of_alphas() -> Sequence[torch.Tensor | None]:
            noise.put_back()
            return gradients(trn_X, trn_y, alphas)

        found = unrolled_gradients(
            alphas,
            weights,
            optimizer,
            of_weights=lambda: gradients(trn_X, trn_y, weights),
            of_both=lambda: gradients(val_X, val_y, [*alphas, *weights]),
            of_alphas=of_alphas,
        )
        for alpha, gradient in zip(alphas, found or (), strict=True):
            alpha.grad = gradient


class DartsTrainer(_RetiariiDarts, OurDartsTrainer):
    """`supernet.DartsTrainer` with Retiarii's signature.

    Args:
        learning_rate: Leads to a warning: the weights' learning rate is the optimizer's.
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        loop: Further keyword arguments of `supernet.DartsTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Any,
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        grad_clip: float | None = 5.0,
        learning_rate: float = 2.5e-3,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        arc_learning_rate: float = 3e-4,
        unrolled: bool = False,
        *,
        split: Split = "random",
        **loop: Any,
    ) -> None:
        if learning_rate != 2.5e-3:
            warnings.warn("learning_rate is ignored: the optimizer has its own", DeprecationWarning, stacklevel=2)
        why = self._why_own_loop(loss=loss or loop.get("loss_fn"), optimizer=optimizer, dataset=dataset)
        if why is not None:
            self._take_arguments(
                why, loop, device=device, model=model, loss=loss, metrics=metrics, model_optim=optimizer,
                num_epochs=num_epochs, dataset=dataset, grad_clip=grad_clip, batch_size=batch_size, workers=workers,
                log_frequency=log_frequency, unrolled=unrolled, split=split,
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
            grad_clip=grad_clip,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            arc_learning_rate=arc_learning_rate,
            unrolled=unrolled,
            **{**halves(dataset, split), **loop},
        )

    def build_supernet(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in, each of which knows its alpha."""
        super().build_supernet(partial(DartsLayerChoice, **layer.keywords), DartsInputChoice, plan)
        for label, module in self.nas_modules:
            if isinstance(module, HasAlpha):
                module.alpha = self.alphas[label]


__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch.darts")
