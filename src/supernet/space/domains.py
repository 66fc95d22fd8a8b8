"""What can be decided at one label: a candidate, or a set of inputs.

A decision is written as JSON has it: a candidate's name, or the ascending list of chosen positions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any, TypeAlias

from supernet.nn.input_choice import bounds, chosen_positions, numbers
from supernet.nn.layer_choice import chosen_name

__all__ = ["Decision", "Domain", "InputDomain", "LayerDomain"]

Decision: TypeAlias = str | list[int]


@dataclass(frozen=True)
class LayerDomain:
    """One candidate out of `names`."""

    label: str
    names: tuple[str, ...]
    prior: tuple[float, ...] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """How many decisions there are."""
        return len(self.names)

    @property
    def is_fixed(self) -> bool:
        """Whether all decisions choose as many candidates: one."""
        return True

    @property
    def n_uniforms(self) -> int:
        """How many numbers `draw` needs."""
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def normalized(self, decision: Any) -> str:
        """Return a decision in the form that we write, or raise `ArchitectureError`."""
        return chosen_name(decision, self.names, self.label)

    def draw(self, uniforms: Sequence[float]) -> str:
        """Return the decision that one number, uniform in [0, 1), gives by the prior."""
        edges, total = self.cut
        return self.names[bisect_right(edges, uniforms[0] * total)]

    def mutate(self, decision: str, uniforms: Sequence[float]) -> str:
        """Return another candidate, by the prior."""
        weights = [0.0 if name == decision else p for name, p in zip(self.names, self._weights(), strict=True)]
        if not any(weights):  # the prior allows no other, but a mutation is asked for
            weights = [float(name != decision) for name in self.names]
        edges, total = _cut(weights)
        return self.names[bisect_right(edges, uniforms[0] * total)]

    def _weights(self) -> tuple[float, ...]:
        return self.prior or (1.0,) * len(self.names)

    @cached_property
    def cut(self) -> tuple[list[float], float]:
        """Where the prior cuts [0, total) for `draw`, and the total."""
        return _cut(self._weights())

    def to_json(self) -> dict[str, Any]:
        """Return this domain as JSON has it."""
        return {"kind": "layer", "candidates": list(self.names)}

    def __str__(self) -> str:
        return " | ".join(self.names)


@dataclass(frozen=True)
class InputDomain:
    """`n_chosen` of `n_candidates` inputs: a number, (low, high) for bounds of it, None for any number."""

    label: str
    n_candidates: int
    n_chosen: int | tuple[int, int] | None
    choose_from: tuple[str, ...] | None = None
    prior: tuple[float, ...] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """How many decisions there are."""
        return sum(math.comb(self.n_candidates, count) for count in self._counts)

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of inputs that may be chosen."""
        return bounds(self.n_chosen, self.n_candidates)

    @property
    def is_fixed(self) -> bool:
        """Whether all decisions choose as many inputs."""
        low, high = self.bounds
        return low == high

    @property
    def _counts(self) -> range:
        low, high = self.bounds
        return range(low, high + 1)

    @property
    def n_uniforms(self) -> int:
        """How many numbers `draw` needs."""
        return self.n_candidates

    def __iter__(self) -> Iterator[list[int]]:
        return (list(chosen) for count in self._counts for chosen in combinations(range(self.n_candidates), count))

    def normalized(self, decision: Any) -> list[int]:
        """Return a decision in the form that we write, or raise `ArchitectureError`."""
        return chosen_positions(decision, self.n_candidates, self.n_chosen, self.choose_from, self.label)

    def draw(self, uniforms: Sequence[float]) -> list[int]:
        """Return the decision that numbers uniform in [0, 1), one an input, give by the prior."""
        if self.n_chosen is None:
            inclusion = self.prior or (0.5,) * self.n_candidates
            return [i for i, (u, p) in enumerate(zip(uniforms, inclusion, strict=True)) if u < p]
        if isinstance(self.n_chosen, tuple):
            return self._draw_within_bounds(uniforms)
        # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis, 2006).
        if self.prior is None:
            keys = [math.log1p(-u) for u in uniforms]
        else:
            keys = [math.log1p(-u) / w if w else -math.inf for u, w in zip(uniforms, self.prior, strict=True)]
        if self.n_chosen == 1:  # the most frequent case, for which sorting would take as long as all the rest
            return [keys.index(max(keys))]
        return sorted(sorted(range(self.n_candidates), key=keys.__getitem__, reverse=True)[: self.n_chosen])

    def _draw_within_bounds(self, uniforms: Sequence[float]) -> list[int]:
        """Include each input on its own, one after another, on condition that the bounds will be kept.

        Without a prior all inputs are as likely as not, so all sets within the bounds are equally likely.
        """
        chosen: list[int] = []
        for i, (u, p) in enumerate(zip(uniforms, self._inclusion, strict=True)):
            keeping = self._keeping[i + 1]
            with_it, without_it = p * keeping[len(chosen) + 1], (1 - p) * keeping[len(chosen)]
            if not without_it or u * (with_it + without_it) < with_it:  # not left out by rounding
                chosen.append(i)
        return chosen

    @property
    def _inclusion(self) -> tuple[float, ...]:
        return self.prior or (0.5,) * self.n_candidates

    @cached_property
    def _keeping(self) -> list[list[float]]:
        """`[i][c]`: how probable the bounds are kept if c of the first i inputs are chosen, up to a factor for each i.

        The factor keeps the largest at 1: those of many inputs would not be numbers any more.
        """
        low, high = self.bounds
        rows = [[float(low <= c <= high) for c in range(self.n_candidates + 2)]]
        for p in reversed(self._inclusion):
            last = rows[-1]
            row = [p * last[c + 1] + (1 - p) * last[c] for c in range(self.n_candidates + 1)] + [0.0]
            largest = max(row)
            rows.append([value / largest for value in row])
        return rows[::-1]

    def mutate(self, decision: list[int], uniforms: Sequence[float]) -> list[int]:
        """Return the decision with one input swapped, or with one taken in or out where that keeps the bounds."""
        if not self.is_fixed:
            low, high = self.bounds
            out = decision if len(decision) > low else []
            into = [i for i in range(self.n_candidates) if i not in decision] if len(decision) < high else []
            changeable = sorted([*out, *into])
            return sorted(set(decision) ^ {changeable[int(uniforms[0] * len(changeable))]})
        others = [i for i in range(self.n_candidates) if i not in decision]
        dropped, taken = decision[int(uniforms[0] * len(decision))], others[int(uniforms[1] * len(others))]
        return sorted({*decision, taken} - {dropped})

    def to_json(self) -> dict[str, Any]:
        """Return this domain as JSON has it."""
        return {
            "kind": "input",
            "n_candidates": self.n_candidates,
            "n_chosen": list(self.n_chosen) if isinstance(self.n_chosen, tuple) else self.n_chosen,
            "choose_from": None if self.choose_from is None else list(self.choose_from),
        }

    def __str__(self) -> str:
        inputs = f" ({', '.join(self.choose_from)})" if self.choose_from else ""
        return f"{'any' if self.n_chosen is None else numbers(self.n_chosen)} of {self.n_candidates} inputs{inputs}"


Domain: TypeAlias = LayerDomain | InputDomain


def _cut(weights: Sequence[float]) -> tuple[list[float], float]:
    """Return where [0, total) is cut in proportion to `weights`, and the total.

    A number between 0 and the total belongs to the index that `bisect_right` finds for it among the edges. There is no
    edge behind the last index of any weight, so that rounding cannot lead beyond it.
    """
    edges = list(accumulate(weights))
    last = max(i for i, w in enumerate(weights) if w)
    return edges[:last], edges[-1]
