"""The weighted sum of candidates' outputs, with a last BatchNorm folded into it.

With `xhat_k = (z_k - mu_k) r_k` per channel, `r_k = 1 / sqrt(var_k + eps)`, the mixture of normalized outputs is one
sum with a factor a channel: `m = sum_k (w_k gamma_k r_k) z_k + sum_k w_k (beta_k - gamma_k r_k mu_k)`. Its gradients,
with `g = dL/dm`, `S = sum g` and `P_k = sum g xhat_k` over the n positions of a channel:
`dw_k = sum_c (gamma_k P_k + beta_k S)`, `dgamma_k = w_k P_k`, `dbeta_k = w_k S`,
`dz_k = w_k gamma_k r_k (g - S / n - xhat_k P_k / n)`. In eval mode mu and r are constants, and the last two terms
vanish. So neither a normalized nor a weighted output is held: only `z_k`, which the layer before gives, and (C,)
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd import Function

from supernet.execution.fast.convolution import layout_of
from supernet.execution.fast.segment import (
    Norm,
    count_batch,
    differentiable_gradients,
    differentiable_norm,
    normalized_gradients,
)
from supernet.execution.fast.shared import Shared

__all__ = ["Term", "fused_weighted_sum"]


# N batch, C channels, ... any positions, K candidates, T terms: candidates that do not give zeros, M terms with a norm.
# A name that ends in such letters is a tensor, or a sequence of tensors, of that shape.


@dataclass(frozen=True)
class Term:
    """A candidate's output.

    Args:
        position: Position of its weight among all candidates' weights.
        tensor: The output, of shape (N, C, ...) with a norm, else of any.
        norm: The BatchNorm that is still to be applied to it. Default: none.
        is_shared: Whether the tensor is that of other edges too, so that its statistics are worth being kept.
    """

    position: int
    tensor: torch.Tensor
    norm: Norm | None = None
    is_shared: bool = False

    def output(self) -> Any:
        """Return the tensor, normalized."""
        return self.tensor if self.norm is None else self.norm(self.tensor)


def fused_weighted_sum(weights_K: torch.Tensor, terms: Sequence[Term], shared: Shared) -> torch.Tensor:
    """Return `sum_k weights[k] * norm_k(tensor_k)` over the terms; running statistics move as the norms' own would.

    Args:
        weights_K: Weights (K,) of all candidates.
        terms: At least one term; their tensors have one shape and dtype.
        shared: What is known in this pass.
    """
    affine = [tensor for t in terms if t.norm is not None for tensor in (t.norm.weight, t.norm.bias)]
    return _WeightedSum.apply(weights_K, terms, shared, *(t.tensor for t in terms), *affine)


class _WeightedSum(Function):
    @staticmethod
    def forward(
        ctx: Any, weights_K: torch.Tensor, terms: Sequence[Term], shared: Shared, *tensors: Any
    ) -> torch.Tensor:
        outputs, affine = tensors[: len(terms)], tensors[len(terms) :]
        # Without the tensors, which belong to what autograd saves.
        positions, norms = tuple(t.position for t in terms), [t.norm for t in terms]
        weights_T = weights_K.detach()[_index(positions, weights_K.device)]
        mean_TC = rstd_TC = gamma_TC = beta_TC = None
        factors: Any = weights_T
        if any(norms):
            statistics = [_statistics(t, z, shared) for t, z in zip(terms, outputs, strict=True)]
            mean_TC = torch.stack([mean_C for mean_C, _ in statistics])
            eps_T1 = _column(tuple(0.0 if norm is None else norm.eps for norm in norms), mean_TC.dtype, mean_TC.device)
            rstd_TC = torch.rsqrt(torch.stack([variance_C for _, variance_C in statistics]) + eps_T1)
            gamma_TC, beta_TC = _stacked(affine[::2], norms, 1.0, mean_TC), _stacked(affine[1::2], norms, 0.0, mean_TC)
            weights_T1 = weights_T[:, None]
            factors_TC = weights_T1 * rstd_TC if gamma_TC is None else weights_T1 * rstd_TC * gamma_TC
            if beta_TC is None:
                offsets_TC = -factors_TC * mean_TC
            else:
                offsets_TC = torch.addcmul(weights_T1 * beta_TC, factors_TC, mean_TC, value=-1)
            column = (1, -1, *(1,) * (outputs[0].dim() - 2))
            factors = factors_TC.view(len(terms), *column).unbind()
            total = torch.addcmul(offsets_TC.sum(0).view(column), outputs[0], factors[0])
        else:
            total = outputs[0] * factors[0]
        # In place, one after another: stacking them would hold every output twice.
        for output, factor in zip(outputs[1:], factors[1:], strict=True):
            total.addcmul_(output, factor)
        ctx.positions, ctx.norms = positions, norms
        # A norm may be put into another form between the two passes.
        ctx.in_training = [norm is not None and norm.training for norm in norms]
        ctx.save_for_backward(weights_K, mean_TC, rstd_TC, gamma_TC, beta_TC, *tensors)
        return total

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor) -> Any:
        weights_K, mean_TC, rstd_TC, gamma_TC, beta_TC, *tensors = ctx.saved_tensors
        positions, norms, in_training = ctx.positions, ctx.norms, ctx.in_training
        outputs, affine = tensors[: len(norms)], tensors[len(norms) :]
        wants_weights, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # a second backward: through operations that have one

            def again(weights_K: Any, *tensors: Any) -> torch.Tensor:
                outputs, affine = tensors[: len(norms)], tensors[len(norms) :]
                return _differentiable_sum(weights_K, positions, norms, outputs, affine, in_training, mean_TC, rstd_TC)

            wanted = (wants_weights, *wants)
            grad_weights_K, *others = differentiable_gradients(again, grad_sum, wanted, (weights_K, *tensors))
            return grad_weights_K, None, None, *others
        grad_sum = grad_sum.contiguous(memory_format=layout_of(outputs[0]))
        weights_T = weights_K[_index(positions, weights_K.device)]
        weight_of_each = weights_T.unbind()
        grad_outputs: list[Any] = [None] * len(norms)
        grad_weights: list[Any] = [None] * len(norms)
        P_of_each: list[Any] = []
        S_C = None
        if mean_TC is not None:
            mean_of_each, rstd_of_each = mean_TC.unbind(), rstd_TC.unbind()
            scale_of_each = (
                weights_T[:, None].expand_as(mean_TC).contiguous()
                if gamma_TC is None
                else weights_T[:, None] * gamma_TC
            ).unbind()
        for i, (norm, z) in enumerate(zip(norms, outputs, strict=True)):
            if norm is None:
                grad_weights[i] = _dot(grad_sum, z) if wants_weights else None
                grad_outputs[i] = grad_sum * weight_of_each[i] if wants[i] else None
            else:
                # A BatchNorm whose weight is w_k gamma_k: of it dz is what is wanted, and P and S come along.
                grad_outputs[i], P_C, S_C = normalized_gradients(
                    grad_sum, z, scale_of_each[i], mean_of_each[i], rstd_of_each[i], norm, in_training[i]
                )
                P_of_each.append(P_C)
        grad_affine: list[Any] = [None] * len(affine)
        if P_of_each:
            P_MC, places = torch.stack(P_of_each), tuple(i for i, norm in enumerate(norms) if norm is not None)
            normed = _index(places, P_MC.device)
            if wants_weights:
                products_MC = P_MC if gamma_TC is None else gamma_TC[normed] * P_MC
                products_MC = products_MC if beta_TC is None else products_MC + beta_TC[normed] * S_C
                for i, grad_weight in zip(places, products_MC.sum(1).unbind(), strict=True):
                    grad_weights[i] = grad_weight
            if any(wants[len(norms) :]):
                weights_M1 = weights_T[normed][:, None]
                grad_gamma_MC, grad_beta_MC = weights_M1 * P_MC, weights_M1 * S_C
                for row in range(len(places)):
                    for j, gradients_MC in ((2 * row, grad_gamma_MC), (2 * row + 1, grad_beta_MC)):
                        grad_affine[j] = gradients_MC[row] if wants[len(norms) + j] else None
        grad_weights_K = None
        if wants_weights:
            grad_weights_K = torch.zeros_like(weights_K)  # what is not among the terms is zero
            grad_weights_K[_index(positions, weights_K.device)] = torch.stack(grad_weights).to(weights_K.dtype)
        return grad_weights_K, None, None, *grad_outputs, *grad_affine


@lru_cache(maxsize=256)
def _index(positions: tuple[int, ...], device: torch.device) -> Any:
    """Return what picks these positions: a slice where they follow each other, which costs much less.

    Else a list, or beside the CPU a tensor that is made once: to bring a list to a GPU waits for all that runs there.
    """
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    if device.type == "cpu":
        return list(positions)
    with torch.inference_mode(False):  # a later pass may save it for its backward pass
        return torch.tensor(positions, device=device)


@lru_cache(maxsize=256)
def _column(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)[:, None]


@lru_cache(maxsize=256)
def _untouched(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a mean and a variance that change nothing."""
    return torch.zeros(channels, dtype=dtype, device=device), torch.ones(channels, dtype=dtype, device=device)


def _statistics(term: Term, z: torch.Tensor, shared: Shared) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance (C,) that the term's norm takes, and move its running statistics."""
    norm = term.norm
    if norm is None:
        return _untouched(z.shape[1], z.dtype, z.device)
    assert norm.running_mean is not None and norm.running_var is not None
    if not norm.training:
        return norm.running_mean, norm.running_var  # stacked, and so copied, by whoever asks
    count_batch(norm)
    momentum: float = norm.momentum  # type: ignore[assignment]  # one without is not folded
    if z.device.type == "cpu" and not term.is_shared:
        mean_C, variance_C = torch.ops.aten.batch_norm_update_stats(z, norm.running_mean, norm.running_var, momentum)
        return mean_C, variance_C
    mean_C, variance_C = shared.of(term.tensor, "statistics", lambda _: _moments(z))
    positions = z.numel() // z.shape[1]
    norm.running_mean.lerp_(mean_C, momentum)
    # What is normalized by is the biased variance, what is noted the unbiased one, as in torch's own.
    norm.running_var.lerp_(variance_C * (positions / (positions - 1)), momentum)
    return mean_C, variance_C


def _moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if z.device.type == "cpu":  # var_mean takes 15 times as long in channels_last
        unread_2C = torch.zeros(2, z.shape[1], dtype=z.dtype)
        mean_C, variance_C = torch.ops.aten.batch_norm_update_stats(z, unread_2C[0], unread_2C[1], 0.0)
        return mean_C, variance_C
    variance_C, mean_C = torch.var_mean(z, [dim for dim in range(z.dim()) if dim != 1], correction=0)
    return mean_C, variance_C


def _stacked(
    vectors: Sequence[torch.Tensor | None], norms: Sequence[Norm | None], neutral: float, like: torch.Tensor
) -> torch.Tensor | None:
    """Return the norms' vectors as (T, C), neutral ones for terms without a norm; None where all lack."""
    if all(vector is None for vector in vectors):
        return None
    of_norms = iter(vectors)
    rows = [None if norm is None else next(of_norms) for norm in norms]
    return torch.stack([like.new_full(like.shape[1:], neutral) if v is None else v.detach() for v in rows])


def _differentiable_sum(
    weights_K: torch.Tensor,
    positions: Sequence[int],
    norms: Sequence[Norm | None],
    outputs: Sequence[torch.Tensor],
    affine: Sequence[torch.Tensor | None],
    in_training: Sequence[bool],
    mean_TC: torch.Tensor | None,
    rstd_TC: torch.Tensor | None,
) -> torch.Tensor:
    """Return the sum by operations that can be differentiated twice; statistics do not move."""
    total, vectors = torch.zeros_like(outputs[0]), iter(affine)
    for i, (position, norm, z) in enumerate(zip(positions, norms, outputs, strict=True)):
        if norm is not None:
            assert mean_TC is not None and rstd_TC is not None
            gamma_C, beta_C = next(vectors), next(vectors)
            z = differentiable_norm(norm, z, gamma_C, beta_C, in_training[i], mean_TC[i], rstd_TC[i])
        total = total + weights_K[position] * z
    return total


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(*(t.as_strided((t.numel(),), (1,)) for t in (a, b))) if _alike(a, b) else (a * b).sum()


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors lie in memory in the same way, without gaps."""
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    return dense and a.stride() == b.stride() and a.shape == b.shape
