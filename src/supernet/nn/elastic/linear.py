"""Linear layers of elastic width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.nn.elastic.slicing import first, in_one_pass, narrowed, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes, Span

__all__ = ["Linear"]

# I features in, O features out.


class Linear(Mutable, nn.Linear):
    """`torch.nn.Linear` whose widths may be decided by choices: a narrower one has the first rows and columns.

    Args:
        in_features: Number of features of the input: a number, `ValueChoice` or expression.
        out_features: Number of features of the output: a number, `ValueChoice` or expression.
        bias: Whether a bias is added. Default: it is.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    >>> model = nn.Sequential(supernet.nn.Linear(4, ValueChoice([2, 8], label="width")))
    >>> Supernet(model)(torch.ones(1, 4), {"width": 2}).shape
    torch.Size([1, 2])
    """

    def __init__(
        self, in_features: Any, out_features: Any, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        sizes = Sizes(in_features=in_features, out_features=out_features)
        nn.Linear.__init__(self, sizes.largest("in_features"), sizes.largest("out_features"), bias, device, dtype)
        self.sizes = sizes

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return (..., out_features) of x, (..., in_features)."""
        return F.linear(x, *self._sliced(sizes))

    def run_part(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return (..., out_features) of the first features of x."""
        return self.run(sizes, narrowed(x, -1, sizes["in_features"]))

    def mixed(self, x: Tensor) -> Tensor:
        """Return the mixture of all widths: one pass of the mixed weight."""
        return in_one_pass(self._mixed, x, self.sizes)

    def _mixed(self, x: Tensor, detached: bool) -> Tensor:
        spans = Span("out_features", self.out_features), Span("in_features", self.in_features)
        bias_O = None if self.bias is None else self.sizes.entangled(self.bias, spans[0], detached=detached)
        weight_OI = self.sizes.entangled(self.weight, *spans, detached=detached)
        return F.linear(narrowed(x, -1, weight_OI.shape[1]), weight_OI, bias_O)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Linear:
        """Return torch's layer of the widths that are decided."""
        sizes = self.sizes.under(decisions)
        weight_OI, bias_O = self._sliced(sizes)
        with torch.device("meta"):
            layer = nn.Linear(sizes["in_features"], sizes["out_features"], bias_O is not None)
        return with_weights(layer, self, weight=weight_OI, bias=bias_O)

    def _sliced(self, sizes: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        out_features, in_features = sizes["out_features"], sizes["in_features"]
        return first(self.weight, out_features, in_features), first(self.bias, out_features)

    def extra_repr(self) -> str:
        """Show the widths and the bias."""
        return f"{self.sizes.extra_repr()}, bias={self.bias is not None}"
