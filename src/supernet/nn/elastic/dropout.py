"""Dropout at a rate that a choice may decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from supernet.errors import ChoiceError
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes
from supernet.nn.value import shown, values_of

__all__ = ["Dropout"]


class Dropout(Mutable, nn.Dropout):
    """`torch.nn.Dropout` whose rate may be decided by a choice.

    Where rates are mixed, it gives the weighted sum of what each gives, each with features of its own dropped, and
    leaves its input as it is.

    Args:
        p: The probability of a feature to be dropped: a number, `ValueChoice` or expression. Default: 0.5.
        inplace: Whether a rate that is decided works in place. Default: it does not.

    Raises:
        ChoiceError: Some rate is no number from 0 to 1.

    >>> freeze(nn.Sequential(supernet.nn.Dropout(ValueChoice([0.1, 0.3], label="rate"))), {"rate": 0.3})[0]
    Dropout(p=0.3, inplace=False)
    """

    def __init__(self, p: Any = 0.5, inplace: bool = False) -> None:
        sizes = Sizes(p=p)
        check_rate(sizes, "p")
        nn.Dropout.__init__(self, max(values_of(p)), inplace)
        self.sizes = sizes

    def _check_set(self, name: str, value: Any) -> None:
        """Let a rate that no choice decides be set, as torch's is; raise `ChoiceError` for one that a choice does."""
        if name == "p" and self.sizes.is_decided:
            sizes = Sizes(p=value)
            check_rate(sizes, "p")
            self.sizes = sizes
        else:
            super()._check_set(name, value)

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x with some of its numbers set to 0 and the others scaled up, in training form."""
        return F.dropout(x, sizes["p"], self.training, self.inplace)

    def run_part(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return the same, and leave x as it is."""
        return F.dropout(x, sizes["p"], self.training)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Dropout:
        """Return torch's layer of the rate that is decided."""
        layer = nn.Dropout(self.sizes.under(decisions)["p"], self.inplace)
        layer.training = self.training
        return layer

    def extra_repr(self) -> str:
        """Show the rate, and whether it works in place."""
        return f"{self.sizes.extra_repr()}, inplace={self.inplace}"


def check_rate(sizes: Sizes, name: str) -> None:
    """Raise `ChoiceError` unless a number is a probability, whatever is decided."""
    for p in values_of(sizes[name]):
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p <= 1:
            raise ChoiceError(f"{name}={shown(sizes[name])} is a number from 0 to 1, but may be {p!r}; choose others")
