"""DARTS: Differentiable Architecture Search (arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from typing_extensions import Unpack

from supernet.checks import check_numbers
from supernet.data.loaders import Data
from supernet.errors import TrainingError
from supernet.execution import InputSlot, LayerSlot
from supernet.execution.state import RandomState, no_grad_for, preserve_values
from supernet.relaxations import most_probable, new_logits, probabilities
from supernet.space import Architecture
from supernet.trainers.supernet_trainer import SupernetTrainer
from supernet.training.loop import LoopOptions
from supernet.training.metrics import Metrics

__all__ = ["DartsTrainer"]


class DartsTrainer(SupernetTrainer):
    """DARTS (arXiv 1806.09055), first and second order.

    Every candidate runs; their outputs are mixed by softmax(alpha). Alphas and weights are trained in turn,
    on two halves of the data. An InputChoice is a mixture of its inputs by the same rule; where it may choose more or
    fewer of them, each is chosen on its own, with probability sigmoid(alpha).

    Departs from the paper: architecture steps do not move BatchNorm's running statistics.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: as `SupernetTrainer` has them.
        arc_learning_rate: of Adam(betas (0.5, 0.999), weight decay 1e-3), which trains the alphas. Default: 3e-4.
        memory: "lean" holds only the inputs of mixtures for the backward pass, and computes these again there: a
            fraction of the memory for some more time, with the same results. Default: "fast".
        unrolled: second order: the alphas' gradient looks through one virtual step of the weights. The
            optimizer must be `torch.optim.SGD`. Default: first order.
        loop: the keyword arguments of `SupernetTrainer`.

    Attributes:
        alphas: label -> logits (K,), of float32 at least. They are in no optimizer of the weights and in no module.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: as `SupernetTrainer`; `unrolled` with an optimizer
            whose virtual step is not known, with "16-mixed", whose scaled gradients it cannot use, or with weights of
            16 bits.
        ChoiceError: candidates' outputs differ in shape, or a reduction is one that a mixture cannot stand for.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        *,
        arc_learning_rate: float = 3e-4,
        memory: Literal["fast", "lean"] = "fast",
        unrolled: bool = False,
        **loop: Unpack[LoopOptions],
    ) -> None:
        check_numbers(arc_learning_rate=arc_learning_rate)
        if memory not in ("fast", "lean"):
            raise TrainingError(f"memory is 'fast' or 'lean', not {memory!r}")
        if unrolled and type(optimizer) is not SGD:
            name = type(optimizer).__name__
            raise TrainingError(f"unrolled=True knows the step of torch.optim.SGD, not that of {name}; use SGD")
        if unrolled and (loop.get("accumulate", 1) != 1 or loop.get("precision") == "16-mixed"):
            raise TrainingError("unrolled=True goes with accumulate=1 only, and with 'bf16-mixed' but not '16-mixed'")
        if unrolled and (
            _is_low(p.dtype for p in model.parameters()) or loop.get("precision") in ("16-true", "bf16-true")
        ):
            raise TrainingError(
                "unrolled=True compares gradients at weights so near to each other that 16 bits cannot tell apart; use "
                "float32 weights, say with precision='bf16-mixed'"
            )
        super().__init__(model, loss, metrics, optimizer, num_epochs, dataset, **loop)
        self.note_options(arc_learning_rate=arc_learning_rate, memory=memory, unrolled=unrolled)
        self.unrolled = unrolled
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.alphas = new_logits(self.space, seed=self.seed, dtype=dtype, device=self.device)
        self.architecture_optimizer: Any = self.fabric.setup_optimizers(
            Adam(self.alphas.values(), arc_learning_rate, betas=(0.5, 0.999), weight_decay=1e-3)
        )
        self.build_supernet(partial(LayerSlot, lean=memory == "lean"), InputSlot, self.plan())

    def stateful(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the algorithm: see `SupernetTrainer`."""
        return {
            **super().stateful(),
            "alphas": self.alphas,
            "architecture_optimizer": self.architecture_optimizer,
        }

    def plan(self) -> dict[str, torch.Tensor]:
        """Return label -> the probability of each candidate or input (K,)."""
        return probabilities(self.space, self.alphas)

    def train_step(self, trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> None:
        """Take a step of the alphas, then one of the weights."""
        if self.unrolled:
            self.train_architecture(val_X, val_y, trn_X, trn_y)
        else:
            self.train_architecture(val_X, val_y)
        self.train_model_weight(trn_X, trn_y)

    def train_architecture(self, val_X: Any, val_y: Any, trn_X: Any = None, trn_y: Any = None) -> None:
        """Take a step of the alphas on a validation batch; a training batch is what `unrolled` looks through."""
        if self.unrolled:
            self._take_unrolled_gradient(val_X, val_y, trn_X, trn_y)
            self.architecture_optimizer.step()
        else:
            with self.frozen_weights():
                output = self.forward(val_X, self.plan())
                self.optimizer_step(self.compute_loss("valid", output, val_y), self.architecture_optimizer)
        self.check_finite(torch.cat(list(self.alphas.values())), "an architecture parameter")

    def train_model_weight(self, trn_X: Any, trn_y: Any) -> None:
        """Take a step of the weights on a training batch."""
        with no_grad_for(self.alphas.values()):
            output = self.forward(trn_X, self.plan())
            self.optimizer_step(self.compute_loss("train", output, trn_y), self.optimizer, clip=self.grad_clip)

    def export(self, epoch: int | Literal["best"] | None = None) -> Architecture:
        """Return the most probable architecture: that of the largest alphas.

        Args:
            epoch: after which epoch, from 1 on; "best" is that of the least validation loss. Default: as they are now.

        Raises:
            TrainingError: there is no such epoch.
        """
        if epoch is not None:
            return self.architecture_of(epoch)
        return most_probable(self.space, self.alphas)

    def derive(self) -> Architecture:
        """Return what `export` returns, a subclass's own too."""
        return self.export()

    def probabilities(self) -> dict[str, list[float]]:
        """Return label -> softmax(alpha), or sigmoid(alpha) where the number of chosen inputs is not fixed."""
        return {label: weights.tolist() for label, weights in self.plan().items()}

    def _take_unrolled_gradient(self, val_X: Any, val_y: Any, trn_X: Any, trn_y: Any) -> None:
        """Set the alphas' gradient to that of `L_val(w'(alpha), alpha)`, w' being the weights after a step of SGD.

        d/dalpha L_val(w', alpha) = dL_val/dalpha - sum_w c d^2 L_trn/dalpha dw v, with v = dL_val/dw' and c what w'
        takes of dL_trn/dw. The product with the second derivative is a central difference of dL_trn/dalpha, at
        w +- eps c v, eps = 0.01 / ||c v||.
        """
        alphas = list(self.alphas.values())
        noise = RandomState(self.device)  # dropout's: the passes over the training batch must see the same
        with preserve_values(self.weights):
            # What a pass does to buffers is undone after it, for each must find the same.
            with self.supernet.preserve_buffers(), no_grad_for(alphas):
                trn_loss = self.shared("train", self.loss_of(self.forward(trn_X, self.plan()), trn_y))
                gradients = self.supernet.gradients(trn_loss, self.weights)
            taken = _virtual_step(self.given_optimizer, self.weights, gradients)
            with self.supernet.preserve_buffers():
                val_loss = self.compute_loss("valid", self.forward(val_X, self.plan()), val_y)
                of_both = self.supernet.gradients(val_loss, [*alphas, *self.weights])
        if not val_loss.requires_grad:  # the batch moves nothing
            self.architecture_optimizer.zero_grad()
            return
        direct, v = of_both[: len(alphas)], of_both[len(alphas) :]
        direction = [_or_zero(v_w, w) * c for v_w, w, c in zip(v, self.weights, taken, strict=True)]
        norms = [torch.linalg.vector_norm(d) for d in direction]  # none where all weights are frozen
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else alphas[0].new_zeros(())
        # Without a direction both sides are equal, and the term is 0 whatever eps is.
        eps = 0.01 / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
        with preserve_values(self.weights), self.supernet.without_gradients():
            above = self._training_gradient_at(direction, eps, trn_X, trn_y, noise)
            below = self._training_gradient_at(direction, -2 * eps, trn_X, trn_y, noise)
        for alpha, g, a, b in zip(alphas, direct, above, below, strict=True):
            alpha.grad = _or_zero(g, alpha) - (_or_zero(a, alpha) - _or_zero(b, alpha)) / (2 * eps)

    def _training_gradient_at(
        self, direction: Sequence[torch.Tensor], eps: torch.Tensor, trn_X: Any, trn_y: Any, noise: RandomState
    ) -> list[torch.Tensor | None]:
        """Move the weights by `eps * direction`, and return dL_trn/dalpha there."""
        with torch.no_grad():
            for w, d in zip(self.weights, direction, strict=True):
                w.add_(d * eps)
        noise.put_back()
        # The difference of two losses so near to each other is lost in what bfloat16 rounds.
        run = self.supernet.in_float32 if self.precision.endswith("-mixed") else self.forward
        with self.supernet.preserve_buffers():
            loss = self.shared("train", self.loss_of(run(trn_X, self.plan()), trn_y))
            return self.supernet.gradients(loss, list(self.alphas.values()))


@torch.no_grad()
def _virtual_step(
    optimizer: Optimizer, weights: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor | None]
) -> list[float]:
    """Move the weights as `SGD.step` would, but no state of it; return -dw'/dgradient of each weight.

    A weight without a gradient is not moved, as in SGD itself.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    taken = []
    for w, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            taken.append(0.0)
            continue
        group = groups[id(w)]
        momentum, factor = group["momentum"], -1.0 if group["maximize"] else 1.0
        step = change = factor * gradient + group["weight_decay"] * w
        if momentum:
            buffer = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
            if buffer is not None:  # the first step has no dampening
                step = momentum * buffer + (1 - group["dampening"]) * change
                factor *= 1 - group["dampening"]
            if group["nesterov"]:
                step = change + momentum * step
                factor *= 1 + momentum
        w.sub_(float(group["lr"]) * step)
        taken.append(float(group["lr"]) * factor)
    return taken


def _is_low(dtypes: Iterable[torch.dtype]) -> bool:
    return any(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)


def _or_zero(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
