"""The weighted sum of candidates' outputs, with a last BatchNorm folded into it.

With `xhat_k = (z_k - mu_k) r_k` per channel, `r_k = 1 / sqrt(var_k + eps)`, the mixture of normalized outputs is one
sum with a factor a channel: `m = sum_k (p_k gamma_k r_k) z_k + sum_k p_k (beta_k - gamma_k r_k mu_k)`. Its gradients,
with `g = dL/dm`, `S = sum g` and `P_k = sum g xhat_k` over the n positions of a channel:
`dp_k = sum_c (gamma_k P_k + beta_k S)`, `dgamma_k = p_k P_k`, `dbeta_k = p_k S`,
`dz_k = p_k gamma_k r_k (g - S / n - xhat_k P_k / n)`. In eval mode mu and r are constants, and the last two terms
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
    normalized_gradients,
    plainly_normalized,
)
from supernet.execution.fast.shared import Shared

__all__ = ["Term", "fused_weighted_sum"]


@dataclass(frozen=True)
class Term:
    """A candidate's output.

    Args:
        position: of its weight.
        tensor: (N, C, ...) with a norm, else (...).
        norm: the BatchNorm that is still to be applied to it.
        is_shared: whether the tensor is that of other edges too, so that its statistics are worth being kept.
    """

    position: int
    tensor: torch.Tensor
    norm: Norm | None = None
    is_shared: bool = False

    def output(self) -> Any:
        """Return the tensor, normalized."""
        return self.tensor if self.norm is None else self.norm(self.tensor)


def fused_weighted_sum(p: torch.Tensor, terms: Sequence[Term], shared: Shared) -> torch.Tensor:
    """Return `sum_k p[k] * norm_k(tensor_k)` over the terms; running statistics move as the norms' own would.

    Args:
        p: (K,).
        terms: at least one; tensors of one shape and dtype.
        shared: what is known in this pass.
    """
    affine = [tensor for t in terms if t.norm is not None for tensor in (t.norm.weight, t.norm.bias)]
    return _WeightedSum.apply(p, terms, shared, *(t.tensor for t in terms), *affine)


class _WeightedSum(Function):
    @staticmethod
    def forward(ctx: Any, p: torch.Tensor, terms: Sequence[Term], shared: Shared, *tensors: Any) -> torch.Tensor:
        outputs, affine = tensors[: len(terms)], tensors[len(terms) :]
        # Without the tensors, which belong to what autograd saves.
        positions, norms = tuple(t.position for t in terms), [t.norm for t in terms]
        weights = p.detach()[_index(positions)]
        mean = rstd = gamma = beta = None
        factors: Any = weights
        if any(norms):
            statistics = [_statistics(t, z, shared) for t, z in zip(terms, outputs, strict=True)]
            mean = torch.stack([m for m, _ in statistics])
            eps = tuple(0.0 if norm is None else norm.eps for norm in norms)
            rstd = torch.rsqrt(torch.stack([v for _, v in statistics]) + _column(eps, mean.dtype, mean.device))
            gamma, beta = _stacked(affine[::2], norms, 1.0, mean), _stacked(affine[1::2], norms, 0.0, mean)
            weight = weights[:, None]
            factors = weight * rstd if gamma is None else weight * rstd * gamma
            offsets = -factors * mean if beta is None else torch.addcmul(weight * beta, factors, mean, value=-1)
            column = (1, -1, *(1,) * (outputs[0].dim() - 2))
            factors = factors.view(len(terms), *column).unbind()
            total = torch.addcmul(offsets.sum(0).view(column), outputs[0], factors[0])
        else:
            total = outputs[0] * factors[0]
        for output, factor in zip(outputs[1:], factors[1:], strict=True):
            total.addcmul_(output, factor)
        ctx.positions, ctx.norms = positions, norms
        ctx.in_training = [norm is not None and norm.training for norm in norms]
        ctx.save_for_backward(p, mean, rstd, gamma, beta, *tensors)
        return total

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        p, mean, rstd, gamma, beta, *tensors = ctx.saved_tensors
        positions, norms, in_training = ctx.positions, ctx.norms, ctx.in_training
        outputs, affine = tensors[: len(norms)], tensors[len(norms) :]
        wants_p, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # a second backward: through operations that have one

            def again(p: Any, *tensors: Any) -> torch.Tensor:
                outputs, affine = tensors[: len(norms)], tensors[len(norms) :]
                return _plainly(p, positions, norms, outputs, affine, in_training, mean, rstd)

            of_p, *others = differentiable_gradients(again, g, (wants_p, *wants), (p, *tensors))
            return of_p, None, None, *others
        g = g.contiguous(memory_format=layout_of(outputs[0]))
        weights = p[_index(positions)]
        of_each = weights.unbind()
        of_outputs: list[Any] = [None] * len(norms)
        products: list[Any] = [None] * len(norms)  # dL/dp
        with_xhat: list[Any] = []  # P of each norm
        of_mixture = None  # S
        if mean is not None:
            means, rstds = mean.unbind(), rstd.unbind()
            scales = (
                weights[:, None].expand_as(mean).contiguous() if gamma is None else weights[:, None] * gamma
            ).unbind()
        for i, (norm, z) in enumerate(zip(norms, outputs, strict=True)):
            if norm is None:
                products[i] = _dot(g, z) if wants_p else None
                of_outputs[i] = g * of_each[i] if wants[i] else None
            else:
                of_outputs[i], P, of_mixture = normalized_gradients(
                    g, z, scales[i], means[i], rstds[i], norm, in_training[i]
                )
                with_xhat.append(P)
        of_affine: list[Any] = [None] * len(affine)
        if with_xhat:
            normed = [i for i, norm in enumerate(norms) if norm is not None]
            P = torch.stack(with_xhat)
            if wants_p:
                together = P if gamma is None else gamma[normed] * P
                together = together if beta is None else together + beta[normed] * of_mixture
                for i, product in zip(normed, together.sum(1).unbind(), strict=True):
                    products[i] = product
            if any(wants[len(norms) :]):
                of_normed = weights[normed][:, None]
                of_gamma, of_beta = of_normed * P, of_normed * of_mixture
                for row in range(len(normed)):
                    for j, gradients in ((2 * row, of_gamma), (2 * row + 1, of_beta)):
                        of_affine[j] = gradients[row] if wants[len(norms) + j] else None
        of_p = None
        if wants_p:
            of_p = torch.zeros_like(p)  # what is not among the terms is zero
            of_p[_index(positions)] = torch.stack(products).to(p.dtype)
        return of_p, None, None, *of_outputs, *of_affine


def _index(positions: tuple[int, ...]) -> Any:
    """Return what picks these positions: a slice where they follow each other, which costs much less."""
    first, last = positions[0], positions[-1]
    return slice(first, last + 1) if last - first + 1 == len(positions) else list(positions)


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
        return norm.running_mean.clone(), norm.running_var
    count_batch(norm)
    momentum: float = norm.momentum  # type: ignore[assignment]  # one without is not folded
    if z.device.type == "cpu" and not term.is_shared:
        mean, variance = torch.ops.aten.batch_norm_update_stats(z, norm.running_mean, norm.running_var, momentum)
        return mean, variance
    mean, variance = shared.of(term.tensor, "statistics", lambda _: _moments(z))
    positions = z.numel() // z.shape[1]
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (positions / (positions - 1)), momentum)
    return mean, variance


def _moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if z.device.type == "cpu":  # var_mean takes 15 times as long in channels_last
        unread = torch.zeros(2, z.shape[1], dtype=z.dtype)
        mean, variance = torch.ops.aten.batch_norm_update_stats(z, unread[0], unread[1], 0.0)
        return mean, variance
    variance, mean = torch.var_mean(z, [dim for dim in range(z.dim()) if dim != 1], correction=0)
    return mean, variance


def _stacked(
    vectors: Sequence[torch.Tensor | None], norms: Sequence[Norm | None], neutral: float, like: torch.Tensor
) -> torch.Tensor | None:
    """Return the norms' vectors as (K, C), neutral ones for terms without a norm; None where all lack."""
    if all(vector is None for vector in vectors):
        return None
    of_norms = iter(vectors)
    rows = [None if norm is None else next(of_norms) for norm in norms]
    return torch.stack([like.new_full(like.shape[1:], neutral) if v is None else v.detach() for v in rows])


def _plainly(
    p: torch.Tensor,
    positions: Sequence[int],
    norms: Sequence[Norm | None],
    outputs: Sequence[torch.Tensor],
    affine: Sequence[torch.Tensor | None],
    in_training: Sequence[bool],
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
) -> torch.Tensor:
    """Return the sum by operations that can be differentiated twice; statistics do not move."""
    total, vectors = torch.zeros_like(outputs[0]), iter(affine)
    for i, (position, norm, z) in enumerate(zip(positions, norms, outputs, strict=True)):
        if norm is not None:
            assert mean is not None and rstd is not None
            gamma, beta = next(vectors), next(vectors)
            z = plainly_normalized(norm, z, gamma, beta, in_training[i], mean[i], rstd[i])
        total = total + p[position] * z
    return total


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(*(t.as_strided((t.numel(),), (1,)) for t in (a, b))) if _alike(a, b) else (a * b).sum()


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors lie in memory in the same way, without gaps."""
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    return dense and a.stride() == b.stride() and a.shape == b.shape
