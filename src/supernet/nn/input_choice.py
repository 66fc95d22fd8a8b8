"""A choice between tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from supernet.errors import ArchitectureError, ChoiceError
from supernet.nn.choice import Choice, checked_prior, is_int, is_position

__all__ = ["InputChoice"]

REDUCTIONS = ("sum", "mean", "concat", "none")


class InputChoice(Choice):
    """Some of several tensors go on from here; which ones is decided by a search.

    Called with a list of `n_candidates` tensors, or with a dict of them where `choose_from` names them. The
    chosen ones are reduced in input order. Where nothing is chosen the result is None.

    Args:
        n_candidates: how many tensors there are to choose from. Not needed with `choose_from`.
        n_chosen: how many are chosen; None for any number of them, none included.
        reduction: "sum", "mean", "concat" (along dimension 1), or "none" (the list itself).
        choose_from: names of the inputs, which then come as a dict.
        label: the decision's name. Choices of one label are one decision. Default: the path in the model.
        prior: used when an architecture is sampled. With `n_chosen` given: weights that sum to 1, by which
            inputs are drawn one after another without replacement. With None: the probability of each input
            to be chosen, each on its own. Default: all architectures the same.

    Raises:
        ChoiceError: the numbers, names, reduction or prior do not fit together.
    """

    def __init__(
        self,
        n_candidates: int | None = None,
        n_chosen: int | None = 1,
        reduction: str = "sum",
        *,
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
        if n_chosen is not None and (not is_int(n_chosen) or not 1 <= n_chosen <= n_candidates):
            raise ChoiceError(f"n_chosen is None or a number from 1 to {n_candidates} (n_candidates), not {n_chosen!r}")
        if reduction not in REDUCTIONS:
            raise ChoiceError(f"reduction is one of {', '.join(REDUCTIONS)}, not {reduction!r}")
        self.n_candidates = n_candidates
        self.n_chosen = n_chosen
        self.reduction = reduction
        self.choose_from = choose_from
        self.prior = checked_prior(prior, n_candidates, sums_to_one=n_chosen is not None)
        if self.prior and n_chosen is not None and sum(p > 0 for p in self.prior) < n_chosen:
            raise ChoiceError(f"{n_chosen} inputs are to be chosen, but the prior allows fewer: {self.prior}")

    def description(self) -> str:
        """Name this choice, by label where it has one, and its inputs."""
        inputs = ", ".join(self.choose_from) if self.choose_from else f"{self.n_candidates} inputs"
        return f"InputChoice {self.label!r} ({inputs})" if self.label else f"the InputChoice between {inputs}"

    def decided(self, decision: int | str | Sequence[int | str]) -> nn.Module:
        """Return a plain module that picks and reduces the inputs at these positions or of these names."""
        chosen = chosen_positions(decision, self.n_candidates, self.n_chosen, self.choose_from, self.label)
        return chosen_inputs(chosen, self.reduction, self.choose_from)

    def extra_repr(self) -> str:
        """Show the label and the arguments."""
        inputs = f"n_candidates={self.n_candidates}" if self.choose_from is None else f"choose_from={self.choose_from}"
        label = "" if self.label is None else f", label={self.label!r}"
        return f"{inputs}, n_chosen={self.n_chosen}, reduction={self.reduction!r}{label}"


def chosen_positions(
    decision: Any,
    n_candidates: int,
    n_chosen: int | None,
    choose_from: Sequence[str] | None,
    label: str | None,
) -> list[int]:
    """Return the ascending positions that a decision on inputs means, or raise `ArchitectureError`."""
    items = [decision] if isinstance(decision, str) or is_int(decision) else decision
    if not isinstance(items, list | tuple):
        raise ArchitectureError(f"choice {label!r} takes positions of inputs, say [0], not {decision!r}")
    positions = []
    for item in items:
        if isinstance(item, str) and choose_from and item in choose_from:
            positions.append(choose_from.index(item))
        elif is_position(item, n_candidates):
            positions.append(operator.index(item))
        else:
            known = f" or names: {', '.join(choose_from)}" if choose_from else ""
            raise ArchitectureError(
                f"choice {label!r} has no input {item!r}; it takes positions from 0 to {n_candidates - 1}{known}"
            )
    if len(set(positions)) != len(positions):
        raise ArchitectureError(f"choice {label!r} names an input twice: {decision!r}")
    if n_chosen is not None and len(positions) != n_chosen:
        raise ArchitectureError(f"choice {label!r} takes {n_chosen} inputs, not {len(positions)}: {decision!r}")
    return sorted(positions)


def chosen_inputs(chosen: Sequence[int], reduction: str, choose_from: Sequence[str] | None) -> fx.GraphModule:
    """Return a module of torch's own that takes all inputs, picks those at `chosen` and reduces them.

    A graph module carries its code with it, so it can be copied, pickled and compiled, and needs nothing of
    this library where it is loaded.
    """
    graph = fx.Graph()
    inputs = graph.placeholder("inputs")
    picked = [
        graph.call_function(operator.getitem, (inputs, choose_from[position] if choose_from else position))
        for position in chosen
    ]
    result: Any
    if not picked:
        result = None
    elif reduction == "none":
        result = picked
    elif len(picked) == 1:
        result = picked[0]
    elif reduction == "concat":
        result = graph.call_function(torch.cat, (picked, 1))
    else:
        result = reduce(lambda total, tensor: graph.call_function(operator.add, (total, tensor)), picked)
        if reduction == "mean":
            result = graph.call_function(operator.truediv, (result, len(picked)))
    graph.output(result)
    return fx.GraphModule(nn.Module(), graph, class_name="ChosenInputs")
