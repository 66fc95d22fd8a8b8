"""What can be decided at one label, as plain data: the same for all kinds of choice."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any, TypeAlias

from supernet.errors import ArchitectureError, ChoiceError

__all__ = ["Decision", "Domain"]

Decision: TypeAlias = str | int | float | list[int]


@dataclass(frozen=True)
class Domain:
    """One of several options, or a set of them.

    A decision is written as JSON has it: the option's name (or its value, where options are values), or of a set the
    ascending list of positions.

    Args:
        label: The decision's name.
        options: A name for each option, for people, files and plots.
        arity: How many options are chosen: a number; (low, high) for at least and at most so many; None for any number,
            none included. Default: 1.
        is_set: Whether a decision is a list of positions, also where one is chosen. Default: it is one option.
        values: What each option is in an architecture: a number or a text, no two the same. Default: its name.
        prior: How probable options are where an architecture is sampled. Of one option: probabilities that sum to 1. Of
            a set of a fixed number: weights that sum to 1, by which options are drawn without replacement. Of another
            set: the probability of each to be in it, on condition that the arity is kept. Default: all decisions the
            same.
        noun: What an option is called in messages. Default: "option".
        are_named: Whether options have names of their own; else these are positions as texts. Default: they have.
        form: What `to_json` returns, where that is not the common form: spaces and architectures that were written
            before are known by it. Default: the common form.

    >>> Domain("width", ("narrow", "wide"), values=(64, 128)).decision([1])
    128
    """

    label: str
    options: tuple[str, ...]
    arity: int | tuple[int, int] | None = 1
    is_set: bool = False
    values: tuple[Any, ...] | None = None
    prior: tuple[float, ...] | None = field(default=None, compare=False)
    noun: str = field(default="option", compare=False)
    are_named: bool = True
    form: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        count, (low, high) = len(self.options), self.bounds
        if not count or not all(isinstance(name, str) for name in self.options):
            raise ChoiceError(f"choice {self.label!r} needs options, each with a text as its name: {self.options}")
        if not 0 <= low <= high <= count or (not self.is_set and self.arity != 1):
            raise ChoiceError(f"choice {self.label!r} cannot choose {in_words(self.arity)} of {count} {self.noun}s")
        outcomes = self.outcomes
        if len(outcomes) != count or len({_key(outcome) for outcome in outcomes}) != count:
            raise ChoiceError(
                f"choice {self.label!r} needs a name or value for each of its {count} {self.noun}s, no two the same, "
                f"not {list(outcomes)}"
            )
        if self.prior is not None:
            self._check_prior(list(self.prior))

    def _check_prior(self, prior: list[float]) -> None:
        """Raise `ChoiceError` unless decisions can be drawn by this prior."""
        low, high = self.bounds
        if len(prior) != len(self.options):
            raise ChoiceError(f"a prior has one number for each of {len(self.options)} {self.noun}s, not {len(prior)}")
        if not all(0 <= p <= 1 for p in prior):
            raise ChoiceError(f"a prior has probabilities between 0 and 1, not {prior}")
        if self.is_fixed and not math.isclose(sum(prior), 1, abs_tol=1e-6):  # float32's sums too
            raise ChoiceError(f"a prior sums to 1, not to {sum(prior):g}: {prior}")
        if sum(p > 0 for p in prior) < low:
            raise ChoiceError(f"{low} {self.noun}s are to be chosen, but the prior allows fewer: {prior}")
        if low < high and sum(p == 1 for p in prior) > high:
            raise ChoiceError(f"at most {high} {self.noun}s are to be chosen, but the prior demands more: {prior}")

    # --- decisions and positions -----------------------------------------------------------------------------

    @property
    def outcomes(self) -> tuple[Any, ...]:
        """What each option is in an architecture, where one is chosen."""
        return self.options if self.values is None else self.values

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of options that may be chosen."""
        if self.arity is None:
            return 0, len(self.options)
        return self.arity if isinstance(self.arity, tuple) else (self.arity, self.arity)

    @property
    def is_fixed(self) -> bool:
        """Whether all decisions choose as many options."""
        low, high = self.bounds
        return low == high

    @property
    def size(self) -> int:
        """How many decisions there are."""
        return sum(math.comb(len(self.options), count) for count in self._counts)

    @property
    def _counts(self) -> range:
        low, high = self.bounds
        return range(low, high + 1)

    def __iter__(self) -> Iterator[Decision]:
        positions = range(len(self.options))
        return (self.decision(chosen) for count in self._counts for chosen in combinations(positions, count))

    def decision(self, positions: Iterable[int]) -> Decision:
        """Return the decision that chooses the options at these positions."""
        if self.is_set:
            return sorted(positions)
        (position,) = positions
        decision: Decision = self.outcomes[position]
        return decision

    def positions(self, decision: Any) -> tuple[int, ...]:
        """Return the ascending positions of the options that a decision chooses.

        A name or a position is understood too; of a set a lone one, and names among positions.

        Raises:
            ArchitectureError: It is no decision of this domain; names what it is and what there is.
        """
        if not self.is_set:
            return (self._position_of(decision),)
        items = [decision] if isinstance(decision, str) or is_int(decision) else decision
        if not isinstance(items, list | tuple):
            raise ArchitectureError(f"choice {self.label!r} takes positions of {self.noun}s, say [0], not {decision!r}")
        positions = [self.position_in_set(item) for item in items]
        if len(set(positions)) != len(positions):
            raise ArchitectureError(f"choice {self.label!r} names an {self.noun} twice: {decision!r}")
        low, high = self.bounds
        if not low <= len(positions) <= high:
            raise ArchitectureError(
                f"choice {self.label!r} takes {in_words(self.arity)} {self.noun}s, not {len(positions)}: {decision!r}"
            )
        return tuple(sorted(positions))

    def normalized(self, decision: Any) -> Decision:
        """Return a decision in the form that we write, or raise `ArchitectureError`."""
        return self.decision(self.positions(decision))

    def _position_of(self, decision: Any) -> int:
        positions = self._positions_by_outcome
        if (key := _key(decision)) in positions:
            return positions[key]
        # Where options are numbers, a number is never a position: 1 of the values 4, 2, 1 would mean two things.
        if self.values is None and is_position(decision, len(self.options)):
            return operator.index(decision)
        known = ", ".join(map(str, self.outcomes))
        raise ArchitectureError(f"choice {self.label!r} has no {self.noun} {decision!r}; it has: {known}")

    @cached_property
    def _positions_by_outcome(self) -> dict[Any, int]:
        return {_key(outcome): position for position, outcome in enumerate(self.outcomes)}

    def position_in_set(self, item: Any) -> int:
        """Return the position of one option of a set, which a name or a position says.

        Raises:
            ArchitectureError: There is no such option; names what there is.
        """
        if self.are_named and isinstance(item, str) and item in self.options:
            return self.options.index(item)
        if is_position(item, len(self.options)):
            return operator.index(item)
        known = f" or names: {', '.join(self.options)}" if self.are_named else ""
        raise ArchitectureError(
            f"choice {self.label!r} has no {self.noun} {item!r}; it takes positions from 0 to "
            f"{len(self.options) - 1}{known}"
        )

    def best(self, scores: Sequence[float]) -> tuple[int, ...]:
        """Return the positions of the largest scores; of equal ones the first counts.

        Where the number of chosen options is not fixed, those above 0, or as many of the largest as keep the bounds.

        Args:
            scores: One number for each option.
        """
        ranked = sorted(range(len(scores)), key=lambda k: -scores[k])
        low, high = self.bounds
        return tuple(sorted(ranked[: min(max(sum(score > 0 for score in scores), low), high)]))

    # --- drawing and mutating --------------------------------------------------------------------------------

    @property
    def num_random_numbers(self) -> int:
        """How many numbers `draw` needs."""
        return len(self.options) if self.is_set else 1

    def draw(self, uniforms: Sequence[float]) -> Decision:
        """Return the decision that numbers uniform in [0, 1), `num_random_numbers` of them, give by the prior."""
        if not self.is_set:
            edges, total = self.cdf
            return self.outcomes[bisect_right(edges, uniforms[0] * total)]
        if self.arity is None:
            return [i for i, (u, p) in enumerate(zip(uniforms, self._inclusion, strict=True)) if u < p]
        if isinstance(self.arity, tuple):
            return self._draw_within_bounds(uniforms)
        # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis, 2006). In logs, for
        # these powers round to 0 where w is small; and of 1 - u, which is as uniform and never 0.
        if self.prior is None:
            keys = [math.log1p(-u) for u in uniforms]
        else:
            keys = [math.log1p(-u) / w if w else -math.inf for u, w in zip(uniforms, self.prior, strict=True)]
        if self.arity == 1:  # the most frequent case, for which sorting would take as long as all the rest
            return [keys.index(max(keys))]
        return sorted(sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[: self.arity])

    @cached_property
    def cdf(self) -> tuple[list[float], float]:
        """Where the prior of one option cuts [0, total) for `draw`, and the total."""
        return _cdf(self._weights())

    def _weights(self) -> tuple[float, ...]:
        return self.prior or (1.0,) * len(self.options)  # whose sums are exact, as those of 1 / K are not

    def _draw_within_bounds(self, uniforms: Sequence[float]) -> list[int]:
        """Include each option on its own, one after another, on condition that the bounds will be kept.

        Without a prior all options are as likely as not, so all sets within the bounds are equally likely.
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
        return self.prior or (0.5,) * len(self.options)

    @cached_property
    def _keeping(self) -> list[list[float]]:
        """`[i][c]`: how probable the bounds are kept if c of the first i options are chosen, up to a factor for each i.

        The factor keeps the largest at 1: those of many options would not be numbers any more.
        """
        (low, high), count = self.bounds, len(self.options)
        rows = [[float(low <= c <= high) for c in range(count + 2)]]
        for p in reversed(self._inclusion):
            last = rows[-1]
            row = [p * last[c + 1] + (1 - p) * last[c] for c in range(count + 1)] + [0.0]
            largest = max(row)
            rows.append([value / largest for value in row])
        return rows[::-1]

    def mutate(self, decision: Decision, uniforms: Sequence[float]) -> Decision:
        """Return a neighbour of a decision, of a domain that has several, by two numbers uniform in [0, 1).

        Of one option another, by the prior. Of a set the one with an option swapped, or with one taken in or out where
        the number is not fixed.
        """
        chosen = self.positions(decision)
        others = [i for i in range(len(self.options)) if i not in chosen]
        if not self.is_set:
            weights = [0.0 if i in chosen else p for i, p in enumerate(self._weights())]
            if not any(weights):  # the prior allows no other, but a mutation is asked for
                weights = [float(i not in chosen) for i in range(len(weights))]
            edges, total = _cdf(weights)
            return self.decision([bisect_right(edges, uniforms[0] * total)])
        if not self.is_fixed:
            low, high = self.bounds
            changeable = sorted([*(chosen if len(chosen) > low else ()), *(others if len(chosen) < high else ())])
            return self.decision({*chosen} ^ {changeable[int(uniforms[0] * len(changeable))]})
        dropped, added = chosen[int(uniforms[0] * len(chosen))], others[int(uniforms[1] * len(others))]
        return self.decision({*chosen, added} - {dropped})

    # --- for files and people --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return this domain as JSON has it."""
        if self.form is not None:
            return dict(self.form)
        return {
            "kind": "set" if self.is_set else "one",
            "options": list(self.options),
            "arity": list(self.arity) if isinstance(self.arity, tuple) else self.arity,
            "values": None if self.values is None else list(self.values),
        }

    def __str__(self) -> str:
        if not self.is_set:
            return " | ".join(map(str, self.outcomes))
        names = f" ({', '.join(self.options)})" if self.are_named else ""
        return f"{'any' if self.arity is None else in_words(self.arity)} of {len(self.options)} {self.noun}s{names}"

    def names(self) -> list[str]:
        """Return what each option is called where it stands alone, as in a plot."""
        return list(self.options) if self.are_named else [f"{self.noun} {name}" for name in self.options]


def in_words(arity: int | tuple[int, int] | None) -> str:
    """Return an arity in words, such as "1 to 2" or "any number"."""
    if arity is None:
        return "any number"
    return f"{arity[0]} to {arity[1]}" if isinstance(arity, tuple) else str(arity)


def is_position(value: Any, count: int) -> bool:
    """Say whether `value` is a whole number from 0 to `count - 1`."""
    return is_int(value) and 0 <= value < count


def is_int(value: Any) -> bool:
    """Say whether `value` is a whole number (NumPy's too), which True and False are not here."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0:
        return False
    try:
        operator.index(value)
    except TypeError:  # a tensor of a number that is not whole, too
        return False
    return True


def _key(outcome: Any) -> Any:
    """Return what an outcome is told from others by: 1 and 1.0 are one number, of which True is none."""
    if hasattr(outcome, "item") and getattr(outcome, "ndim", None) == 0:  # a number of NumPy, or a tensor of one
        outcome = outcome.item()
    return (isinstance(outcome, bool), outcome) if isinstance(outcome, str | int | float | None) else repr(outcome)


def _cdf(weights: Sequence[float]) -> tuple[list[float], float]:
    """Return where [0, total) is cut in proportion to `weights`, and the total.

    A number between 0 and the total belongs to the index that `bisect_right` finds for it among the edges. There is no
    edge behind the last index of any weight, so that rounding cannot lead beyond it.
    """
    edges = list(accumulate(weights))
    last = max(i for i, w in enumerate(weights) if w)
    return edges[:last], edges[-1]
