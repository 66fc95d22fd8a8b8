"""The expected mean of inputs each of which is chosen on its own."""

from __future__ import annotations

from functools import lru_cache

import torch

__all__: list[str] = []

# K inputs, Q nodes of the quadrature.


def weights_of_mean(probabilities_K: torch.Tensor) -> torch.Tensor:
    """Return w (K,) such that `sum_i w_i x_i` is the expected mean of the chosen inputs, zeros where none is chosen.

    With b_j whether input j is chosen, `w_i = p_i E[1 / (1 + sum_(j != i) b_j)]`. As `1 / (1 + n)` is the integral of
    `t^n` over [0, 1], that expectation is the integral of `prod_(j != i) (1 - p_j + p_j t)`: of a polynomial, for which
    Gauss's quadrature is exact.

    Args:
        probabilities_K: Probability (K,) of each input to be chosen.
    """
    nodes_Q1, weights_Q1 = _quadrature(len(probabilities_K), probabilities_K.dtype, probabilities_K.device)
    # In logs, where leaving one factor out of the product is a subtraction: K terms for each node, and not K^2.
    logs_QK = torch.log(1 - probabilities_K + probabilities_K * nodes_Q1)  # of numbers above 0, as the nodes are
    others_QK = torch.exp(logs_QK.sum(-1, keepdim=True) - logs_QK)
    return probabilities_K * (weights_Q1 * others_QK).sum(0)  # a matrix product would lose bits in mixed precision


@lru_cache(maxsize=256)
def _quadrature(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nodes and weights (Q, 1) on [0, 1], exact below degree `count` (Golub and Welsch, 1969)."""
    with torch.inference_mode(False):  # they outlive the pass that asks for them first
        # The nodes are the eigenvalues of the Jacobi matrix of Legendre's polynomials, moved from [-1, 1] to [0, 1].
        k = torch.arange(1, (count + 1) // 2, dtype=torch.float64)
        beside = 0.5 / torch.sqrt(1 - (2 * k) ** -2)
        values, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
        nodes, weights = (values + 1) / 2, vectors[0].square()
        return nodes[:, None].to(device, dtype), weights[:, None].to(device, dtype)
