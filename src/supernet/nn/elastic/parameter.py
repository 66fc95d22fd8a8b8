"""Weights of elastic shape by themselves: class tokens, tables of positions, scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from supernet.nn.elastic.slicing import first, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes, Span

__all__ = ["Parameter"]


class Parameter(Mutable):
    """A weight whose shape may be decided by choices: called without arguments, it gives the first of each dimension.

    It begins with zeros; `nn.init.trunc_normal_(position.weight, std=0.02)` begins otherwise. In the frozen network a
    module of torch stands in its place, which gives the weight as it is.

    Args:
        shape: Length of each dimension: numbers, `ValueChoice`s or expressions.
        device: Device of the weight. Default: torch's.
        dtype: Type of the weight. Default: torch's.

    Attributes:
        weight: The weight at its largest.

    >>> class Tokens(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         width = ValueChoice([4, 8], label="width")
    ...         self.embed, self.first = supernet.nn.Linear(3, width), supernet.nn.Parameter((1, 1, width))
    ...
    ...     def forward(self, x):
    ...         return torch.cat([self.first().expand(len(x), -1, -1), self.embed(x)], 1)
    >>> Supernet(Tokens())(torch.ones(2, 5, 3), {"width": 4}).shape
    torch.Size([2, 6, 4])
    """

    def __init__(self, shape: Sequence[Any], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.sizes = Sizes(**{f"size_{dim}": length for dim, length in enumerate(shape)})
        largest = [self.sizes.largest(f"size_{dim}") for dim in range(len(shape))]
        self.weight = nn.Parameter(torch.zeros(largest, device=device, dtype=dtype))

    def run(self, sizes: Mapping[str, Any]) -> Tensor:
        """Return the part of the weight that the sizes take."""
        return first(self.weight, *sizes.values())

    def mixed(self) -> Tensor:
        """Return the mixture of all parts, padded with zeros."""
        return self.sizes.entangled(self.weight, *(Span(f"size_{i}", n) for i, n in enumerate(self.weight.shape)))

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a module of torch that, called, gives the part that is decided; its name is `weight` there too."""
        holder = nn.Module()
        holder.weight = nn.Parameter(torch.empty(0, device="meta"))
        holder = with_weights(holder, self, weight=self.run(self.sizes.under(decisions)))
        graph = fx.Graph()
        graph.output(graph.get_attr("weight"))
        return fx.GraphModule(holder, graph, class_name="Parameter")
