"""Embeddings of elastic width, from tables of elastic length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.errors import ChoiceError
from supernet.nn.elastic.slicing import first, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes, Span
from supernet.nn.value import shown, values_of

__all__ = ["Embedding"]

# V rows, E features.


class Embedding(Mutable, nn.Embedding):
    """`torch.nn.Embedding` whose sizes may be decided by choices: a smaller one has the first rows and columns.

    Where sizes are mixed, a row that some of them do not have counts as zeros there.

    Args:
        num_embeddings: Number of rows: a number, `ValueChoice` or expression.
        embedding_dim: Number of features: a number, `ValueChoice` or expression.
        padding_idx: Row that takes no gradient, and is zero at first. Default: none.
        max_norm: Largest norm that a row keeps, only where no choice decides the sizes. Default: any.
        norm_type: The p of that norm.
        scale_grad_by_freq: Whether a row's gradient is divided by how often it was looked up. Default: it is not.
        sparse: Whether gradients are sparse, only where no choice decides the sizes. Default: they are not.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    Raises:
        ChoiceError: `padding_idx` is not one row of all tables that may be chosen; or choices decide the sizes, and
            `max_norm` or `sparse` is given.

    >>> words = supernet.nn.Embedding(10, ValueChoice([2, 8], label="width"))
    >>> Supernet(nn.Sequential(words))(torch.tensor([3, 7]), {"width": 2}).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        num_embeddings: Any,
        embedding_dim: Any,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = Sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        rows, features = sizes.largest("num_embeddings"), sizes.largest("embedding_dim")
        if not sizes.is_decided and (sparse or max_norm is not None):
            # Both work on whole rows of a weight that is a leaf, which a slice is not.
            name, value = ("sparse", sparse) if sparse else ("max_norm", max_norm)
            raise ChoiceError(f"an Embedding whose sizes are chosen takes no {name} (it is {value}); leave it out")
        for n in [] if padding_idx is None else values_of(num_embeddings):
            if not -n <= padding_idx < n or padding_idx % n != padding_idx % rows:
                raise ChoiceError(
                    f"padding_idx={padding_idx} is one row of all tables, but is not of both {n} and {rows} rows, as "
                    f"num_embeddings={shown(num_embeddings)} may be; give one that all have, counted from the first"
                )
        options = padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        nn.Embedding.__init__(self, rows, features, *options, device=device, dtype=dtype)
        self.sizes = sizes

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: a table has its sizes already, and leaves none to a choice."""
        raise ChoiceError(
            "Embedding.from_pretrained takes its sizes from the table, and leaves none to a choice; make "
            "supernet.nn.Embedding(...) as large as the table, and copy the table into its weight, or use "
            "torch.nn.Embedding.from_pretrained"
        )

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return (..., embedding_dim) of the indices x, (...)."""
        return self._looked_up(x, first(self.weight, sizes["num_embeddings"], sizes["embedding_dim"]))

    def mixed(self, x: Tensor) -> Tensor:
        """Return the mixture of all sizes: rows of the mixed table."""
        spans = Span("num_embeddings", self.num_embeddings), Span("embedding_dim", self.embedding_dim)
        return self._looked_up(x, self.sizes.entangled(self.weight, *spans))

    def _looked_up(self, x: Tensor, weight_VE: Tensor) -> Tensor:
        return F.embedding(x, weight_VE, *self._options())

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Embedding:
        """Return torch's layer of the sizes that are decided."""
        sizes = self.sizes.under(decisions)
        rows, features = sizes["num_embeddings"], sizes["embedding_dim"]
        with torch.device("meta"):
            layer = nn.Embedding(rows, features, *self._options())
        return with_weights(layer, self, weight=first(self.weight, rows, features))

    def _options(self) -> tuple[Any, ...]:
        return self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse

    def extra_repr(self) -> str:
        """Show the sizes, and the row for padding where there is one."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.sizes.extra_repr()}{padding}"
