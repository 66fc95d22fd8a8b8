"""The architecture's gradient of second order (arXiv 1806.09055, equations 7 and 8): through a step of the weights.

With w' the weights after a step of SGD and c what w' takes of dL_trn/dw,

    d/dalpha L_val(w', alpha) = dL_val/dalpha - sum_w c d^2 L_trn/dalpha dw v,  v = dL_val/dw'.

The product with the second derivative is a central difference of dL_trn/dalpha, at w +- eps c v, eps = 0.01 / ||c v||.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from supernet.errors import TrainingError
from supernet.execution.selection import selection_of
from supernet.execution.state import RandomState, no_grad_for, preserve_values

if TYPE_CHECKING:
    from supernet.trainers.bilevel import BilevelTrainer

__all__: list[str] = []

Gradients: TypeAlias = Sequence[torch.Tensor | None]  # of parameters, None where a loss does not depend on one


def check_unrolled(trainer: BilevelTrainer) -> None:
    """Raise `TrainingError` if a gradient of second order is not known for what a trainer was given."""
    if type(trainer.given_optimizer) is not SGD:
        name = type(trainer.given_optimizer).__name__
        raise TrainingError(f"unrolled=True knows the step of torch.optim.SGD, not that of {name}; use SGD")
    if trainer.accumulate != 1 or trainer.precision == "16-mixed":
        raise TrainingError("unrolled=True goes with accumulate=1 only, and with 'bf16-mixed' but not '16-mixed'")
    if _is_low(p.dtype for p in trainer.model.parameters()) or trainer.precision in ("16-true", "bf16-true"):
        raise TrainingError(
            "unrolled=True compares gradients at weights so near to each other that 16 bits cannot tell apart; use "
            "float32 weights, say with precision='bf16-mixed'"
        )


def check_looks_through(plan: Mapping[str, Any]) -> None:
    """Raise `TrainingError` if a plan runs something that the weights' step has no gradient of second order through."""
    for label, entry in plan.items():
        selection = selection_of(entry)
        if selection.weights is None or not selection.weights.requires_grad or selection.detached:
            raise TrainingError(
                f"unrolled=True looks through what all weigh that run, but of choice {label!r} the relaxation runs one "
                "without a weight or others for their outputs only; leave unrolled out, or use another relaxation"
            )


def take_unrolled_gradient(trainer: BilevelTrainer, val_X: Any, val_y: Any, trn_X: Any, trn_y: Any) -> None:
    """Set the gradient of the architecture's parameters to that of `L_val(w'(alpha), alpha)` and its terms.

    All passes see the same draws of the relaxation; those over the training batch the same of dropout, too. What a
    pass does to buffers is undone after it, for each must find the same.
    """
    supernet, distributed = trainer.supernet, trainer.distributed
    alphas, weights = trainer.architecture_parameters, trainer.weights
    generator, noise = trainer.relaxation.generator, RandomState(trainer.device)
    draws = generator.get_state()

    def plan() -> dict[str, Any]:
        generator.set_state(draws)
        return trainer.plan()

    def training_loss(run: Callable[..., Any]) -> torch.Tensor:
        return trainer.shared("train", trainer.loss_of(run(trn_X, plan()), trn_y))

    def of_weights() -> Gradients:
        with supernet.preserve_buffers(), no_grad_for(alphas):
            return distributed.gradients(training_loss(trainer.forward), weights)

    def of_both() -> Gradients | None:
        with supernet.preserve_buffers():
            selected = plan()
            loss = trainer.compute_loss("valid", trainer.forward(val_X, selected), val_y)
            loss = trainer.with_terms(loss, selected)
            return distributed.gradients(loss, [*alphas, *weights]) if loss.requires_grad else None

    def of_alphas() -> Gradients:
        noise.put_back()
        # The difference of two losses so near to each other is lost in what bfloat16 rounds.
        run = distributed.in_float32 if trainer.precision.endswith("-mixed") else trainer.forward
        with supernet.preserve_buffers(), supernet.without_gradients():
            return distributed.gradients(training_loss(run), alphas)

    gradients = unrolled_gradients(alphas, weights, trainer.given_optimizer, of_weights, of_both, of_alphas)
    if gradients is None:
        trainer.architecture_optimizer.zero_grad()
        return
    for alpha, gradient in zip(alphas, gradients, strict=True):
        alpha.grad = gradient


def unrolled_gradients(
    alphas: Sequence[torch.Tensor],
    weights: Sequence[nn.Parameter],
    optimizer: Optimizer,
    of_weights: Callable[[], Gradients],
    of_both: Callable[[], Gradients | None],
    of_alphas: Callable[[], Gradients],
) -> list[torch.Tensor] | None:
    """Return the gradient of second order of each alpha.

    Args:
        alphas: The architecture's parameters.
        weights: The weights, which are as before after it.
        optimizer: The weights' SGD, which is left as it is.
        of_weights: Returns dL_trn/dw, at the weights as they are when it is called. So do the others.
        of_both: Returns dL_val/dalpha and dL_val/dw, one after the other; None if the batch moves nothing, and then so
            does this function.
        of_alphas: Returns dL_trn/dalpha.
    """
    with preserve_values(weights):
        taken = virtual_step(optimizer, weights, of_weights())
        both = of_both()
    if both is None:
        return None
    direct, v = both[: len(alphas)], both[len(alphas) :]
    direction = [_or_zero(v_w, w) * c for v_w, w, c in zip(v, weights, taken, strict=True)]
    norms = [torch.linalg.vector_norm(d) for d in direction]  # none where all weights are frozen
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else alphas[0].new_zeros(())
    # Without a direction both sides are equal, and the term is 0 whatever eps is.
    eps = 0.01 / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    sides = []
    with preserve_values(weights):
        for move in (eps, -2 * eps):
            with torch.no_grad():
                for w, d in zip(weights, direction, strict=True):
                    w.add_(d * move)
            sides.append(of_alphas())
    return [
        _or_zero(g, alpha) - (_or_zero(above, alpha) - _or_zero(below, alpha)) / (2 * eps)
        for alpha, g, above, below in zip(alphas, direct, *sides, strict=True)
    ]


@torch.no_grad()
def virtual_step(optimizer: Optimizer, weights: Sequence[nn.Parameter], gradients: Gradients) -> list[float]:
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
