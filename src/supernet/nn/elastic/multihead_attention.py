"""torch's attention of elastic width and number of heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.nn.elastic.arguments import quotients
from supernet.nn.elastic.dropout import check_rate
from supernet.nn.elastic.slicing import first, narrowed, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes
from supernet.nn.value import Value, values_of

__all__ = ["MultiheadAttention"]

# E features.


class MultiheadAttention(Mutable, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose sizes may be decided by choices.

    A narrower one has the first rows and columns of each weight: of the queries', the keys' and the values' part of the
    packed one, too. Its heads divide what it has; so with another number of heads each has another width. For heads
    that stay the same, of which there are more or fewer, see `supernet.nn.Attention`.

    Where sizes are mixed, it runs once for each joint size that may be decided; `supernet.nn.Attention` projects once.

    Args:
        embed_dim: Number of features: a number, `ValueChoice` or expression.
        num_heads: Number of heads, which divides `embed_dim`: a number, `ValueChoice` or expression.
        dropout: Rate at which attention weights are dropped: a number, `ValueChoice` or expression. Default: none.
        bias: Whether biases are added. Default: they are.
        add_bias_kv: Whether a bias is put at the end of the sequences of keys and values. Default: none.
        add_zero_attn: Whether zeros are put at the end of these. Default: none.
        kdim: Number of features of keys: a number, `ValueChoice` or expression. Default: `embed_dim`.
        vdim: Number of features of values: a number, `ValueChoice` or expression. Default: `embed_dim`.
        batch_first: Whether inputs are (N, L, E), not (L, N, E). Default: they are not.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    Raises:
        ChoiceError: Some `num_heads` does not divide an `embed_dim` that it may meet, or a size or rate cannot be.

    >>> width = ValueChoice([8, 16], label="width")
    >>> attention = supernet.nn.MultiheadAttention(width, num_heads=width // 4, batch_first=True)
    >>> freeze(nn.ModuleList([attention]), {"width": 8})[0].num_heads
    2
    """

    def __init__(
        self,
        embed_dim: Any,
        num_heads: Any,
        dropout: Any = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: Any = None,
        vdim: Any = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = Sizes(
            embed_dim=embed_dim,
            num_heads=num_heads,
            kdim=embed_dim if kdim is None else kdim,
            vdim=embed_dim if vdim is None else vdim,
            dropout=dropout,
        )
        largest = {name: sizes.largest(name) for name in ("embed_dim", "num_heads", "kdim", "vdim")}
        check_rate(sizes, "dropout")
        quotients(sizes, "embed_dim", "num_heads")
        options = bias, add_bias_kv, add_zero_attn, largest["kdim"], largest["vdim"], batch_first, device, dtype
        # With one head at first, which divides any width.
        nn.MultiheadAttention.__init__(self, largest["embed_dim"], 1, max(values_of(dropout)), *options)
        self.num_heads = largest["num_heads"]
        self.sizes = sizes
        widths = (sizes[name] for name in ("embed_dim", "kdim", "vdim"))
        is_packed = values_of(Value.compute(lambda e, k, v: e == k == v, *widths)) == [True]
        if self._qkv_same_embed_dim and not is_packed:  # the same at their largest only
            for part, weight_EE in zip("qkv", self.in_proj_weight.detach().chunk(3), strict=True):
                setattr(self, f"{part}_proj_weight", nn.Parameter(weight_EE.clone()))
            self.register_parameter("in_proj_weight", None)
        # Always, for where it is true `TransformerEncoderLayer`'s fast path reads the weights itself, and unsliced.
        self._qkv_same_embed_dim = False
        if not is_packed:
            self._reset_parameters()

    def run(
        self,
        sizes: Mapping[str, Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and the attention weights (None unless they are needed), as torch's layer does."""
        is_transposed = self.batch_first and query.dim() == 3
        # Once of each tensor, for torch projects together what is one.
        as_expected = {id(x): x.transpose(0, 1) if is_transposed else x for x in (query, key, value)}
        output, attention_weights = F.multi_head_attention_forward(
            query=as_expected[id(query)],
            key=as_expected[id(key)],
            value=as_expected[id(value)],
            embed_dim_to_check=sizes["embed_dim"],
            num_heads=sizes["num_heads"],
            use_separate_proj_weight=self.in_proj_weight is None,
            **self._sliced(sizes),
            **{f"out_proj_{name}": tensor for name, tensor in self._sliced_projection(sizes).items()},
            add_zero_attn=self.add_zero_attn,
            dropout_p=sizes["dropout"],
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return output.transpose(0, 1) if is_transposed else output, attention_weights

    def run_part(
        self, sizes: Mapping[str, Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same of the first features of queries, keys and values."""
        wanted = (query, sizes["embed_dim"]), (key, sizes["kdim"]), (value, sizes["vdim"])
        parts = {(id(x), features): narrowed(x, -1, features) for x, features in wanted}
        q, k, v = (parts[id(x), features] for x, features in wanted)
        return self.run(sizes, q, k, v, *args, **kwargs)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.MultiheadAttention:
        """Return torch's layer of the sizes that are decided."""
        sizes = self.sizes.under(decisions)
        with torch.device("meta"):
            layer = nn.MultiheadAttention(
                sizes["embed_dim"],
                sizes["num_heads"],
                sizes["dropout"],
                self.in_proj_bias is not None,
                self.bias_k is not None,
                self.add_zero_attn,
                sizes["kdim"],
                sizes["vdim"],
                self.batch_first,
            )
        tensors = self._sliced(sizes)
        if layer._qkv_same_embed_dim and self.in_proj_weight is None:  # torch packs what has the same width now
            packed = torch.cat([tensors.pop(f"{part}_proj_weight") for part in "qkv"])
            layer.in_proj_weight = nn.Parameter(packed.detach(), self.q_proj_weight.requires_grad)
        with_weights(layer.out_proj, self.out_proj, **self._sliced_projection(sizes))
        return with_weights(layer, self, **tensors)

    def _sliced(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of the weights but the last that sizes take, None for those that there are not."""
        features = sizes["embed_dim"]
        tensors = {
            "in_proj_weight": _first_of_thirds(self.in_proj_weight, features, features),
            "in_proj_bias": _first_of_thirds(self.in_proj_bias, features),
        }
        for part, width in zip("qkv", (features, sizes["kdim"], sizes["vdim"]), strict=True):
            tensors[f"{part}_proj_weight"] = first(getattr(self, f"{part}_proj_weight"), features, width)
        for bias in ("bias_k", "bias_v"):
            tensors[bias] = first(getattr(self, bias), 1, 1, features)
        return tensors

    def _sliced_projection(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of the weight and bias of the last projection."""
        weight_EE, bias_E, features = self.out_proj.weight, self.out_proj.bias, sizes["embed_dim"]
        return {"weight": first(weight_EE, features, features), "bias": first(bias_E, features)}

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.sizes.extra_repr()}, batch_first={self.batch_first}"


def _first_of_thirds(packed: Tensor | None, *sizes: int) -> Tensor | None:
    """Return the first of each of the three parts that are packed into one weight, packed again."""
    return None if packed is None else first(packed.unflatten(0, (3, -1)), 3, *sizes).flatten(0, 1)
