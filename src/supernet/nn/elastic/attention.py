"""Self-attention of elastic width, number of heads, width of a head, and number of heads of keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.nn.composed import Composed, as_graph_module
from supernet.nn.elastic.arguments import quotients
from supernet.nn.elastic.dropout import check_rate
from supernet.nn.elastic.linear import Linear
from supernet.nn.elastic.slicing import narrowed
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes

__all__ = ["Attention"]

# N batch, L length, H heads, G heads of keys and values, D features of a head.


class Attention(Composed):
    """Self-attention (N, L, embed_dim) -> (N, L, embed_dim), whose sizes may be decided by choices.

    It is made of four elastic `Linear`s around `scaled_dot_product_attention`. A smaller one has the first heads, and
    of each weight the first rows and columns: where `head_dim` is one number, a head stays the same head among more or
    fewer; where it is chosen, heads are cut anew from the same rows. In the frozen network a module of torch stands in
    its place, around four of torch's `Linear`s. It takes no mask but the causal one; `MultiheadAttention` takes any.

    Where sizes are mixed, each `Linear` mixes the slices of its weight, and what each number of heads makes of its
    queries, keys and values is summed (arXiv 2312.10440): one pass for all widths.

    Args:
        embed_dim: Number of features: a number, `ValueChoice` or expression.
        num_heads: Number of heads: a number, `ValueChoice` or expression.
        head_dim: Number of features of a head: a number, `ValueChoice` or expression. Default:
            `embed_dim // num_heads`, and the heads divide the width.
        num_kv_heads: Number of heads of keys and values, each of which several heads share, where it is smaller than
            `num_heads`, and divides it (arXiv 2305.13245): a number, `ValueChoice` or expression. Default: `num_heads`.
        is_causal: Whether a position attends to itself and those before alone. Default: it attends to all.
        dropout: Rate at which attention weights are dropped: a number, `ValueChoice` or expression. Where there is one,
            these are held, which takes memory of the square of the length. Default: none.
        qkv_bias: Whether queries, keys and values have a bias. Default: they have.
        out_bias: Whether the output has a bias. Default: it has.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    Raises:
        ChoiceError: Numbers of heads do not divide what they may meet, or a size or rate cannot be.

    >>> heads = ValueChoice([3, 6], label="heads")
    >>> model = nn.Sequential(supernet.nn.Attention(192, heads, head_dim=64))
    >>> freeze(model, {"heads": 3})[0].q_proj
    Linear(in_features=192, out_features=192, bias=True)
    """

    def __init__(
        self,
        embed_dim: Any,
        num_heads: Any,
        head_dim: Any = None,
        *,
        num_kv_heads: Any = None,
        is_causal: bool = False,
        dropout: Any = 0.0,
        qkv_bias: bool = True,
        out_bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if head_dim is None:
            sizes = Sizes(embed_dim=embed_dim, num_heads=num_heads)
            for name in ("embed_dim", "num_heads"):
                sizes.largest(name)  # which refuses what is no size
            quotients(sizes, "embed_dim", "num_heads")
            head_dim = embed_dim // num_heads
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.heads: Mutable = _Heads(num_heads, num_kv_heads, head_dim, is_causal, dropout)
        made = partial(Linear, device=device, dtype=dtype)
        self.q_proj = made(embed_dim, num_heads * head_dim, qkv_bias)
        self.k_proj = made(embed_dim, num_kv_heads * head_dim, qkv_bias)
        self.v_proj = made(embed_dim, num_kv_heads * head_dim, qkv_bias)
        self.out_proj = made(num_heads * head_dim, embed_dim, out_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position takes of the others."""
        attended: Tensor = self.out_proj(self.heads(self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return attended


class _Heads(Mutable):
    """Attention of queries to keys and values, each with all heads in one dimension; it has no weights."""

    def __init__(self, num_heads: Any, num_kv_heads: Any, head_dim: Any, is_causal: bool, dropout: Any) -> None:
        super().__init__()
        sizes = Sizes(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dropout=dropout)
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            sizes.largest(name)  # which refuses what is no size
        check_rate(sizes, "dropout")
        quotients(sizes, "num_heads", "num_kv_heads")
        self.sizes, self.is_causal = sizes, is_causal

    def run(self, sizes: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (N, L, H * D) of queries (N, L, H * D), keys and values (N, L, G * D)."""
        rate = sizes["dropout"]
        dropout = partial(F.dropout, p=rate, training=self.training) if rate else None
        return _attended(q, k, v, sizes, self.is_causal, dropout)

    def run_part(self, sizes: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the same of the first heads."""
        of_kv = sizes["num_kv_heads"] * sizes["head_dim"]
        q = narrowed(q, -1, sizes["num_heads"] * sizes["head_dim"])
        return self.run(sizes, q, narrowed(k, -1, of_kv), narrowed(v, -1, of_kv))

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a module of torch that does it for the sizes that are decided."""
        return as_graph_module(_DecidedHeads(self.sizes.under(decisions), self.is_causal).train(self.training))

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.sizes.extra_repr()}, is_causal={self.is_causal}"


class _DecidedHeads(nn.Module):
    """What `_Heads` runs for given sizes, to be traced."""

    def __init__(self, sizes: Mapping[str, Any], is_causal: bool) -> None:
        super().__init__()
        self.sizes, self.is_causal = sizes, is_causal
        # A module, for it knows its form: a number in the graph would be that of the form in which it was traced.
        self.dropout = nn.Dropout(sizes["dropout"]) if sizes["dropout"] else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _attended(q, k, v, self.sizes, self.is_causal, self.dropout)


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Mapping[str, Any],
    is_causal: bool,
    dropout: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    num_heads, num_kv_heads, head_dim = sizes["num_heads"], sizes["num_kv_heads"], sizes["head_dim"]
    q_NHLD = q.unflatten(-1, (num_heads, head_dim)).transpose(-3, -2)
    k_NGLD, v_NGLD = (x.unflatten(-1, (num_kv_heads, head_dim)).transpose(-3, -2) for x in (k, v))
    if dropout is None:
        is_grouped = num_kv_heads != num_heads
        o_NHLD = F.scaled_dot_product_attention(q_NHLD, k_NGLD, v_NGLD, is_causal=is_causal, enable_gqa=is_grouped)
    else:
        k_NHLD, v_NHLD = (x.repeat_interleave(num_heads // num_kv_heads, -3) for x in (k_NGLD, v_NGLD))
        scores_NHLL = (q_NHLD * head_dim**-0.5) @ k_NHLD.transpose(-2, -1)
        if is_causal:
            is_later_NHLL = torch.ones_like(scores_NHLL, dtype=torch.bool).triu(1)
            scores_NHLL = scores_NHLL.masked_fill(is_later_NHLL, -math.inf)
        o_NHLD = dropout(scores_NHLL.softmax(-1)) @ v_NHLD
    return o_NHLD.transpose(-3, -2).flatten(-2)
