"""ValueChoice and Repeat as Retiarii had them: automatic labels, and running undecided."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

import supernet.nn as ours
from supernet.errors import ChoiceError
from supernet.nn import Alternative, Value
from supernet.nn.repeat import depths_of
from supernet.retiarii.choices import Retiariis
from supernet.retiarii.labels import next_labels, pass_over_label

__all__ = ["Repeat", "ValueChoice"]


class ValueChoice(Retiariis, ours.ValueChoice):
    """`supernet.ValueChoice` with an automatic label. Run as it is, it gives its first value, with a warning."""

    def __init__(
        self, candidates: Iterable[Any], *, prior: Sequence[float] | None = None, label: str | None = None
    ) -> None:
        automatic, later = (None, None) if label else next_labels()
        candidates = list(candidates)
        modules = [value for value in candidates if isinstance(value, nn.Module | type)]
        if modules:
            raise ChoiceError(f"a ValueChoice chooses between numbers or texts, not {modules[0]!r}; use a LayerChoice")
        ours.ValueChoice.__init__(self, candidates, label=label or str(automatic), prior=prior)
        self.label_of_2_6 = later

    def _count(self) -> int:
        return len(self.candidates)

    def forward(self) -> Any:
        """Return the first value, with a warning."""
        self._warn_of_running()
        return self.candidates[0]

    def alternatives(self) -> list[Alternative]:
        """Return the first value alone, with a warning: what layers that depend on it run by."""
        return [Alternative(self.forward())]


class Repeat(Retiariis, ours.Repeat):
    """`supernet.Repeat` with an automatic label. Run as it is, it runs all blocks, with a warning."""

    def __init__(self, blocks: Any, depth: Any, *, label: str | None = None) -> None:
        depth = tuple(depth) if isinstance(depth, list) else depth
        later: str | None = None
        if isinstance(depth, Value):
            if label is not None:
                warnings.warn("label= of a Repeat is ignored: its depth is a ValueChoice", stacklevel=3)
            label = None
        elif isinstance(depth, int):
            pass_over_label()
        elif not label:
            label, later = next_labels()
        if isinstance(blocks, Sequence):
            blocks = blocks[: max(depths_of(depth))]
        ours.Repeat.__init__(self, blocks, depth, label=label)
        self.label_of_2_6 = later

    def _count(self) -> int:
        return len(self.domain().options)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks."""
        return list(self.children())

    def forward(self, x: Any) -> Any:
        """Run all blocks, with a warning."""
        self._warn_of_running("what all its blocks give")
        for block in self.blocks:
            x = block(x)
        return x
