"""Choices that run as a mixture: every candidate, weighted (DARTS, arXiv 1806.09055)."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.apart import Apart
from supernet.execution.expected_mean import weights_of_mean
from supernet.execution.fast.candidates import Candidates, can_be_fast
from supernet.execution.fast.reading import Known
from supernet.execution.fast.shared import Shared
from supernet.execution.fast.weighted_sum import Term, weighted_sum
from supernet.execution.lean import recomputed
from supernet.execution.path import PathInput
from supernet.execution.plan import Plan, is_checkpointed
from supernet.execution.slot import LayerSlot
from supernet.execution.state import Buffers, random_numbers_kept
from supernet.execution.structure import outline_of, parts_of, rebuilt
from supernet.nn import InputChoice, LayerChoice
from supernet.nn.domain import in_words

__all__ = ["MixedInput", "MixedLayer", "mixed"]


class MixedLayer(LayerSlot):
    """Stands in a `LayerChoice`'s place: `sum_k p_k o_k(x)`, p the plan's weights for the choice's label.

    Where the plan has a candidate's name instead of weights, that candidate runs alone, as in one path.

    Candidates may return a tensor, or tuples, lists, mappings and dataclasses of tensors, all the same structure, which
    comes out; what cannot be weighted in it (integers, masks, None) is to be equal. Where all is as the fast way knows
    it, the mixture is computed so, with the same result. Each candidate sees the input as it was, also where others
    work in place.

    Args:
        choice: in whose place it stands.
        plan: what it follows.
        lean: hold the input only, and compute the mixture again in the backward pass. Default: hold what that needs.
    """

    def __init__(self, choice: LayerChoice, plan: Plan, lean: bool = False) -> None:
        super().__init__(choice, plan)
        self.lean = lean
        self.apart = Apart(self.label)
        self._read: Candidates | None = None
        self._state: Buffers | None = None  # what computing it again must leave as it was

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every candidate and mix what they return; the decided one alone where the plan has its name."""
        weights = self.plan[self.label]
        if isinstance(weights, str):
            return self._modules[weights](*args, **kwargs)  # type: ignore[misc]
        if weights.requires_grad and not torch.is_grad_enabled():
            self.plan.check_gradient(self.label)
        if not self.lean or not torch.is_grad_enabled() or is_checkpointed():
            return self._run(*args, **kwargs)
        device = weights.device
        self._state = self._state or Buffers(self)
        return recomputed(self._run, args, kwargs, self.plan, self._state, device)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        weights = self.plan[self.label]
        if self.plan.fast and len(args) == 1 < len(self._names) and not kwargs and can_be_fast(args[0], weights):
            candidates = self._read or self.read({})
            if candidates.common is None:
                outputs = candidates.mixed(args[0], weights, self.plan.shared_now(), self.apart)
                return outputs if isinstance(outputs, torch.Tensor) else mixed(outputs, weights, self.label)
        return self.plain(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same candidate by candidate: the twin that the fast way is held against."""
        run, of_candidates = self.apart.run, self.candidates.items()
        if len(of_candidates) == 1:  # alone, as in the frozen network
            outputs = {name: candidate(*args, **kwargs) for name, candidate in of_candidates}
        else:
            outputs = {name: run(name, candidate, args, kwargs) for name, candidate in of_candidates}
        return mixed(outputs, self.plan[self.label], self.label)

    @contextmanager
    def changed_by(self, name: str) -> Iterator[None]:
        """Let the input be, after the mixture inside this context, as the named candidate alone would leave it."""

        def change(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            with random_numbers_kept(self.plan[self.label].device):
                self.candidates[name](*args, **kwargs)

        handle = self.register_forward_hook(change, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def read(self, known: Known) -> Candidates:
        """Find out what the candidates are made of, now that all inside them is in its place.

        Args:
            known: what other choices' candidates are made of; new findings are added.
        """
        self._read = Candidates(self.candidates, known)
        return self._read

    def explain(self) -> str:
        """Return how each candidate runs, a line each."""
        if not self.plan.fast:
            return "  candidate by candidate, as they are"
        candidates = self._read or self.read({})
        if candidates.common is not None:
            return f"  candidate by candidate, as they are: {candidates.common}"
        return "\n".join(f"  {name}: {reading.text}" for name, reading in candidates.readings.items())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None, "_state": None}  # a copy has candidates of its own


class MixedInput(PathInput):
    """Stands in an `InputChoice`'s place: all its inputs, weighted by the plan's probabilities for the choice's label.

    Where the plan has a decision, the positions of inputs, these are picked and reduced as the choice says.

    A fixed number k of inputs has probabilities p that sum to one: the mixture is `sum_i p_i x_i` for "sum" and "mean"
    alike. Any other number has a probability of each input, chosen on its own: the mixture is the mean of what the
    choice gives then, where nothing chosen counts as zeros. Where absent inputs are zeros, a mixture stands for
    "concat" and "none" too: each input weighted (by k p_i, so that they add up to k, where the number is fixed).

    Raises:
        ChoiceError: the choice's reduction is one that a mixture cannot stand for.
    """

    def __init__(self, choice: InputChoice, plan: Plan) -> None:
        super().__init__(choice, plan)
        has_zeros, number = choice.absent == "zeros", choice.n_chosen if isinstance(choice.n_chosen, int) else None
        keeps_each = choice.reduction == "none" or (choice.reduction == "concat" and (has_zeros or number != 1))
        if keeps_each and not has_zeros:
            raise ChoiceError(
                f"choice {self.label!r} reduces {in_words(choice.n_chosen)} of its inputs by {choice.reduction!r}, "
                "for which a mixture of all inputs cannot stand; use 'sum' or 'mean', or absent='zeros', or n_chosen=1 "
                "with 'concat', or a trainer that samples"
            )
        self._reduction = choice.reduction if keeps_each else "sum"
        self._takes_mean = choice.reduction == "mean" and number is None and not has_zeros
        self._factor = 1.0
        if keeps_each:
            self._factor = float(number or 1)
        elif choice.reduction == "mean" and has_zeros:
            self._factor = (number or 1) / choice.n_candidates
        self.names = [str(i) for i in range(choice.n_candidates)] if choice.choose_from is None else choice.choose_from
        self.by_name = choice.choose_from is not None

    def forward(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Mix the inputs: a list of tensors, or a dict of them where the choice names its inputs."""
        weights, named = self.plan[self.label], self._named(inputs)
        if not isinstance(weights, torch.Tensor):
            return super().forward(inputs)
        tensors = list(named.values())
        if self._takes_mean:
            weights = weights_of_mean(weights)
        if self._factor != 1:
            weights = weights * self._factor
        if self._reduction != "sum":
            parts = [weighted(weight, x) for weight, x in zip(weights.unbind(), tensors, strict=True)]
            return torch.cat(parts, 1) if self._reduction == "concat" else parts
        if self.plan.fast and all(can_be_fast(x, weights) and x.shape == tensors[0].shape for x in tensors):
            return weighted_sum(weights, [Term(k, x) for k, x in enumerate(tensors)], Shared())
        return mixed(named, weights, self.label)

    def _named(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        if self.by_name:
            if not isinstance(inputs, Mapping) or not all(name in inputs for name in self.names):
                raise ChoiceError(f"choice {self.label!r} is called with a dict of {', '.join(self.names)}")
            return {name: inputs[name] for name in self.names}
        if isinstance(inputs, Mapping) or len(inputs) != len(self.names):
            raise ChoiceError(
                f"choice {self.label!r} is called with a list of {len(self.names)}, not {len(inputs)} tensors"
            )
        return dict(zip(self.names, inputs, strict=True))


def mixed(outputs: Mapping[str, Any], weights: torch.Tensor, label: str) -> Any:
    """Return `sum_k weights[k] * outputs[k]`, in each tensor of the structure that all outputs have.

    What is no floating point or complex tensor cannot be weighted: positions, lengths, masks, numbers, texts. It is to
    be equal in all outputs, and comes out as it is.

    Args:
        outputs: name -> tensor, or structure of tensors; shapes (...) equal.
        weights: (K,).
        label: the choice's, for errors.

    Raises:
        ChoiceError: two outputs differ in shape or structure, or in what cannot be weighted.
    """
    (name, first), *others = outputs.items()
    outline = outline_of(first)
    for other, output in others:
        if outline_of(output) != outline:
            raise ChoiceError(
                f"the outputs of choice {label!r} differ in shape, so they cannot be mixed: "
                f"{name!r} gives {outline}, {other!r} gives {outline_of(output)}"
            )
    return _mixed(list(outputs.values()), weights, label, list(outputs))


def weighted(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the product in the dtype of x, which may have fewer bits than the weight."""
    return (
        weight * x if x.dim() else weight.to(x.dtype) * x
    )  # a weight has no dimensions: those of x win, if it has any


def _mixed(values: Sequence[Any], weights: torch.Tensor, label: str, names: Sequence[str]) -> Any:
    first = values[0]
    if all(isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()) for value in values):
        # Added one by one: stacking them would hold every output twice.
        total = weighted(weights[0], first)
        for k in range(1, len(values)):
            total = total + weighted(weights[k], values[k])
        return total
    if (parts := parts_of(first)) is not None:
        each = [parts_of(value) or {} for value in values]
        return rebuilt(first, {key: _mixed([p[key] for p in each], weights, label, names) for key in parts})
    for name, value in zip(names, values, strict=True):
        if not _is_equal(first, value):
            raise ChoiceError(
                f"the outputs of choice {label!r} hold what cannot be mixed, and so is to be equal for all candidates: "
                f"{names[0]!r} gives {_shown(first)}, {name!r} gives {_shown(value)}"
            )
    return first


def _is_equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)  # waits for the device: the price of knowing
    try:
        return bool(a == b or (a != a and b != b))  # NaN too
    except Exception:  # such as arrays, of which no truth is known
        return False


def _shown(value: Any) -> str:
    return f"{value.dtype} {reprlib.repr(value.tolist())}" if isinstance(value, torch.Tensor) else reprlib.repr(value)
