"""A choice between tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Choice, Risk
from supernet.nn.domain import Domain, is_int

__all__ = ["InputChoice"]

REDUCTIONS = ("sum", "mean", "concat", "none")
ABSENT = ("omitted", "zeros")


class InputChoice(Choice):
    """Some of several tensors go on from here; which ones is decided by a search.

    Called with a list of `n_candidates` tensors, or with a dict of them where `choose_from` names them. The
    chosen ones are reduced in input order. Where nothing is chosen the result is None, unless absent inputs are zeros.

    Args:
        n_candidates: Number of tensors to choose from. Not needed with `choose_from`.
        n_chosen: How many are chosen: a number; (low, high) for at least and at most so many; None for any number of
            them, none included. Default: 1.
        reduction: "sum", "mean", "concat" (along dimension 1), or "none" (the list itself). Default: "sum".
        absent: What inputs that are not chosen count as. "omitted": as if they were not there. "zeros": as zeros of
            their shape, so that "concat" keeps its width, "none" the length of its list, "mean" divides by
            `n_candidates`, and nothing chosen gives zeros. Default: "omitted".
        choose_from: Names of the inputs, which then come as a dict. Default: inputs come as a list.
        label: The decision's name. Choices of one label are one decision. Default: the path in the model.
        prior: Numbers, one for each input, by which an architecture is sampled. With a number `n_chosen`: weights that
            sum to 1, by which inputs are drawn one after another without replacement. Else: the probability of each
            input to be chosen, each on its own, on condition that the bounds are kept. Default: all sets the same.

    Raises:
        ChoiceError: The numbers, names, reduction or prior do not fit together.

    >>> pick = InputChoice(3, n_chosen=2, label="pick").resolve([0, 2])
    >>> pick([torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)])
    tensor(101.)
    """

    def __init__(
        self,
        n_candidates: int | None = None,
        n_chosen: int | tuple[int, int] | None = 1,
        reduction: str = "sum",
        *,
        absent: str = "omitted",
        choose_from: Sequence[str] | None = None,
        label: str | None = None,
        prior: Sequence[float] | None = None,
    ) -> None:
        super().__init__(label)
        if choose_from is not None:
            choose_from = list(choose_from)
            if not all(isinstance(name, str) and name for name in choose_from):
                raise ChoiceError(f"choose_from has names of inputs, not {choose_from}")
            if len(set(choose_from)) != len(choose_from):
                raise ChoiceError(f"choose_from names an input twice: {choose_from}")
            if n_candidates not in (None, len(choose_from)):
                raise ChoiceError(f"n_candidates is {n_candidates}, but choose_from has {len(choose_from)} names")
            n_candidates = len(choose_from)
        if n_candidates is None:
            raise ChoiceError("an InputChoice needs n_candidates (a number) or choose_from (names)")
        if not is_int(n_candidates) or n_candidates < 1:
            raise ChoiceError(f"n_candidates is a number from 1 on, not {n_candidates!r}")
        if reduction not in REDUCTIONS:
            raise ChoiceError(f"reduction is one of {', '.join(REDUCTIONS)}, not {reduction!r}")
        if absent not in ABSENT:
            raise ChoiceError(f"absent is one of {', '.join(ABSENT)}, not {absent!r}")
        self.n_candidates = n_candidates
        self.n_chosen = _checked_number(n_chosen, n_candidates)
        self.reduction = reduction
        self.absent = absent
        self.choose_from = choose_from
        self._prior = None if prior is None else [float(p) for p in prior]
        self.domain()  # which looks whether that is a prior

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of inputs that may be chosen."""
        return self.domain().bounds

    def domain(self) -> Domain:
        """Return what can be decided here: a set of positions."""
        names = None if self.choose_from is None else list(self.choose_from)
        n_chosen = list(self.n_chosen) if isinstance(self.n_chosen, tuple) else self.n_chosen
        return Domain(
            str(self.label),
            tuple(names or map(str, range(self.n_candidates))),
            self.n_chosen,
            is_set=True,
            prior=None if self._prior is None else tuple(self._prior),
            noun="input",
            are_named=names is not None,
            form={"kind": "input", "n_candidates": self.n_candidates, "n_chosen": n_chosen, "choose_from": names},
        )

    def description(self) -> str:
        """Name this choice, by label where it has one, and its inputs."""
        inputs = ", ".join(self.choose_from) if self.choose_from else f"{self.n_candidates} inputs"
        return f"InputChoice {self.label!r} ({inputs})" if self.label else f"the InputChoice between {inputs}"

    def risks(self) -> list[Risk]:
        """Return to take nothing, and the fewest and the most inputs where what is made of them has another shape."""
        low, high = self.bounds
        if self.absent == "zeros" or low == high:
            return []
        risks = []
        if low == 0:
            mend = f"{f'n_chosen=(1, {high}) or ' if high > 1 else ''}absent='zeros', or handle None"
            risks.append(Risk([], "may choose nothing and then gives None,", mend))
        if self.reduction in ("concat", "none"):
            for number in (max(low, 1), high):
                what = f"may choose {number} of its inputs and reduces them by {self.reduction!r},"
                risks.append(Risk(list(range(number)), what, "absent='zeros', or n_chosen as a number"))
        return risks

    def resolve(self, decision: int | str | Sequence[int | str]) -> nn.Module:
        """Return a plain module that picks and reduces the inputs at these positions or of these names."""
        chosen = self.domain().positions(decision)
        n_with_zeros = self.n_candidates if self.absent == "zeros" else None
        return chosen_inputs(chosen, self.reduction, self.choose_from, n_with_zeros)

    def extra_repr(self) -> str:
        """Show the label and the arguments."""
        inputs = f"n_candidates={self.n_candidates}" if self.choose_from is None else f"choose_from={self.choose_from}"
        absent = "" if self.absent == "omitted" else f", absent={self.absent!r}"
        label = "" if self.label is None else f", label={self.label!r}"
        return f"{inputs}, n_chosen={self.n_chosen}, reduction={self.reduction!r}{absent}{label}"


def _checked_number(n_chosen: Any, n_candidates: int) -> int | tuple[int, int] | None:
    """Return a number, None, or bounds that are neither; or raise `ChoiceError`."""
    if n_chosen is None:
        return None
    if is_int(n_chosen) and 1 <= n_chosen <= n_candidates:
        return operator.index(n_chosen)
    if isinstance(n_chosen, tuple | list) and len(n_chosen) == 2 and all(is_int(number) for number in n_chosen):
        low, high = (operator.index(number) for number in n_chosen)
        if 0 <= low <= high <= n_candidates and high:
            # One form for one meaning: fingerprints of spaces are of what is written.
            return low if low == high else None if (low, high) == (0, n_candidates) else (low, high)
    raise ChoiceError(
        f"n_chosen is None or a number from 1 to {n_candidates} (n_candidates), not {n_chosen!r}; or bounds within 0 "
        f"and {n_candidates}, such as (1, {n_candidates})"
    )


def chosen_inputs(
    chosen: Sequence[int], reduction: str, choose_from: Sequence[str] | None, n_with_zeros: int | None = None
) -> fx.GraphModule:
    """Return a module of torch's own that takes all inputs, picks those at `chosen` and reduces them.

    A graph module carries its code with it, so it can be copied, pickled and compiled, and needs nothing of
    this library where it is loaded.

    Args:
        chosen: Ascending positions of the chosen inputs.
        reduction: How they are reduced, as `InputChoice` has it.
        choose_from: Names of the inputs, where they come as a dict.
        n_with_zeros: Number of all inputs, where those that are not chosen count as zeros. Default: they are omitted.
    """
    graph = fx.Graph()
    inputs = graph.placeholder("inputs")

    def picked(position: int) -> fx.Node:
        return graph.call_function(operator.getitem, (inputs, choose_from[position] if choose_from else position))

    def zeros(position: int) -> fx.Node:
        return graph.call_function(torch.zeros_like, (picked(position),))

    parts = [picked(position) for position in chosen]
    count = len(parts)
    if n_with_zeros is not None:
        count = n_with_zeros
        if reduction in ("concat", "none"):
            parts = [picked(i) if i in chosen else zeros(i) for i in range(n_with_zeros)]
        elif not parts:  # zeros add nothing to a sum, but one is needed to have its shape
            parts, count = [zeros(0)], 1
    result: Any
    if not parts:
        result = None
    elif reduction == "none":
        result = parts
    elif reduction == "concat":
        result = parts[0] if len(parts) == 1 else graph.call_function(torch.cat, (parts, 1))
    else:
        result = reduce(lambda total, tensor: graph.call_function(operator.add, (total, tensor)), parts)
        if reduction == "mean" and count > 1:
            result = graph.call_function(operator.truediv, (result, count))
    graph.output(result)
    return fx.GraphModule(nn.Module(), graph, class_name="ChosenInputs")
