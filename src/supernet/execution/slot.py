"""What stands in a choice's place; and how a `LayerChoice` runs: one candidate, a mixture (DARTS), or with gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _top_saved_tensors_default_hooks as _hooks
from torch.compiler import is_compiling

from supernet.execution.activation_checkpoints import check_gradient, is_checkpointed, plan_of_region
from supernet.execution.apart import Apart
from supernet.execution.fast.candidates import Candidates, can_be_fast
from supernet.execution.fast.shared import shared_now
from supernet.execution.fast.tracing import TraceCache
from supernet.execution.lean import recomputed
from supernet.execution.mixing import weighted_sum_of_structures
from supernet.execution.plan import Plan
from supernet.execution.selection import Selection, is_mixture, positions_of, selection_of
from supernet.execution.state import Buffers, preserve_random_numbers
from supernet.execution.structure import copied, mapped
from supernet.nn import Choice, LayerChoice
from supernet.nn.layer_choice import ByNameAndPosition

__all__ = ["LayerSlot", "Slot", "weighted_sum"]


class Slot(nn.Module):
    """Stands in a choice's place, and runs what the plan has for its label: see `Selection`.

    What a trial of the supernet finds out is noted here, before any step: so each step is the same.

    Args:
        choice: The choice in whose place it stands.
        plan: The plan that it follows.

    Attributes:
        fast: Whether a mixture is computed the fast way, where there is one. Default: it is; in a supernet None, which
            stands for not, until a trial has shown that it gives the same.
        bears_reentrant: Whether the gradients of weights come through a reentrant checkpoint around it. Default: no.
    """

    fast: bool | None = True
    bears_reentrant = False
    values: tuple[Any, ...] = ()  # of which it gives one or a weighted sum, where what the model calls is a value
    tells_passes_apart = False  # whether what it does depends on whether a pass of the supernet runs
    pads_what_is_mixed = False  # whether modules that depend on it give one output, as wide as the widest, in a mixture

    def __init__(self, choice: Choice, plan: Plan) -> None:
        super().__init__()
        self.label, self.plan = str(choice.label), plan
        self.autocast: set[bool] = set()  # whether passes are under it, as far as is known: for `explain`

    @property
    def key(self) -> str:
        """The same as `label`."""
        return self.label

    @property
    def entry(self) -> Any:
        """What the plan has for this choice; in a region that is computed again, the plan of its own pass."""
        return (self.plan if is_compiling() or not is_checkpointed() else plan_of_region(self.plan))[self.label]

    def check(self, entry: Any) -> None:
        """Raise `ChoiceError` unless the choice can run as a plan's entry says."""

    def as_mixture(self, entry: Any) -> LayerSlot | None:
        """Return this slot where a plan's entry lets it run several candidates side by side."""
        return None

    def note_trial(self, bears_reentrant: bool) -> None:
        """Note, after a trial, how the choice is to run from now on."""
        self.bears_reentrant = bears_reentrant

    def explain(self) -> str:
        """Return how the choice runs, a line for each option where these differ."""
        return f"  {type(self).__name__}"


class LayerSlot(ByNameAndPosition, Slot):
    """Stands in a `LayerChoice`'s place, and runs what the plan has for its label: see `Selection`.

    One candidate alone runs as it is. Several give `sum_k w_k o_k(x)`, a mixture: they may return a tensor, or tuples,
    lists, mappings and dataclasses of tensors, all the same structure, which comes out; what cannot be weighted in it
    (integers, masks, None) is to be equal. Where all is as the fast way knows it, the mixture is computed so, with the
    same result. Each candidate sees the input as it was, also where others work in place. Of those that are detached
    only the outputs are wanted, for the gradients of their weights `<dL/do, o_k(x)>`: they run without a graph, so
    none of their activations is held (arXiv 1812.00332).

    The candidates are its children by their own names, as they are the choice's: so parameters, and the keys of
    `state_dict`, are called as in the model as written. `len`, iteration, `in` and indexing are the choice's too.

    Args:
        choice: The choice in whose place it stands.
        plan: The plan that it follows.
        lean: Whether a mixture holds its input only, and is computed again in the backward pass. Default: it holds what
            that needs.
    """

    held_candidates_apart = True  # in a ModuleDict, once: see `former_names`

    def __init__(self, choice: LayerChoice, plan: Plan, lean: bool = False) -> None:
        super().__init__(choice, plan)
        self.lean = lean
        self._names, self._every = choice.names, tuple(range(len(choice.names)))
        self._modules.update(choice.named_children())
        self.apart = Apart(self.label)
        self.needs_no_guard = False  # found by a trial: the candidates leave their input, one tensor, alone
        # What runs inside a candidate may be another path each time.
        with_choices = [n for n, c in self.candidates.items() if any(hasattr(m, "plan") for m in c.modules())]
        self._apart_of_gates = Apart(self.label, with_choices)
        self._traced: Candidates | None = None
        self._state: Buffers | None = None  # what computing a mixture again must leave as it was

    @property
    def names(self) -> list[str]:
        """The candidates' names, in order."""
        return list(self._names)

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """The candidates by name."""
        return {name: self._modules[name] for name in self._names}  # type: ignore[misc]  # never None

    def _candidates(self) -> dict[str, nn.Module]:
        return self.candidates

    def description(self) -> str:
        """Name the choice in whose place it stands, for a message."""
        return f"choice {self.label!r} ({', '.join(self._names)})"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what is selected."""
        # As `entry`, but without a call: where nothing is done to what is saved, no region is checkpointed.
        entry = self.plan[self.label] if is_compiling() or _hooks(False) is None else self.entry
        if isinstance(entry, str):  # a path: the most frequent, and as quick as the candidate itself
            return self._modules[entry](*args, **kwargs)  # type: ignore[misc]
        if self.fast or not self.needs_no_guard or not isinstance(entry, torch.Tensor) or not torch.is_grad_enabled():
            return self._run(selection_of(entry), args, kwargs)
        version, outputs = args[0]._version, {}  # torch's count of the changes in place
        for name in self._names:
            outputs[name] = self._modules[name](*args, **kwargs)  # type: ignore[misc]
            if args[0]._version != version:
                raise self._has_changed(name)
        return weighted_sum(outputs, entry, self.label)

    def _has_changed(self, name: str) -> Exception:
        self.needs_no_guard = False
        return self.apart.has_changed(name, self.candidates[name])

    def _run(self, selection: Selection, args: Any, kwargs: Any) -> Any:
        """Run what is selected, whatever it is, with all guards in place."""
        weights = selection.weights
        if weights is None:
            (only,) = self._named(selection)
            return self._modules[only](*args, **kwargs)  # type: ignore[misc]
        if weights.requires_grad and not torch.is_grad_enabled() and not self.bears_reentrant:
            check_gradient(self.label)
        if selection.detached:
            return self._gated(selection, weights, args, kwargs)
        if not self.lean or not torch.is_grad_enabled() or is_checkpointed():
            return self._mixture(*args, **kwargs)
        self._state = self._state or Buffers(self)
        return recomputed(self._mixture, args, kwargs, self.plan, self._state, weights.device)

    def _named(self, selection: Selection) -> list[str]:
        """Return the names of what is selected."""
        weights = selection.weights
        if weights is not None and selection.active == self._every and len(weights) == len(self._every):
            return self._names
        return [self._names[position] for position in positions_of(selection, self._names, self.label)]

    def _mixture(self, *args: Any, **kwargs: Any) -> Any:
        selection = selection_of(self.entry)
        weights, names = selection.weights, self._named(selection)
        assert weights is not None, "several run"
        is_of_all = names == self._names and len(args) == 1 < len(names) and not kwargs
        if self.fast and is_of_all and can_be_fast(args[0], weights):
            candidates = self._traced or self.trace({})
            if candidates.common is None:
                outputs = candidates.weighted_sum(args[0], weights, shared_now(), self.apart)
                return outputs if isinstance(outputs, torch.Tensor) else weighted_sum(outputs, weights, self.label)
        if len(names) == 1:  # alone, as in the frozen network
            outputs = {name: self._modules[name](*args, **kwargs) for name in names}  # type: ignore[misc]
        else:
            outputs = {name: self.apart.run(name, self.candidates[name], args, kwargs) for name in names}
        return weighted_sum(outputs, weights, self.label)

    def _gated(self, selection: Selection, weights: torch.Tensor, args: Any, kwargs: Any) -> Any:
        """Run what is active, and the others for their outputs only.

        Where no gradient is computed (inside a candidate that is itself detached, too), these do not run: their weights
        are to be 0.
        """
        names, candidates, apart = self._named(selection), self.candidates, self._apart_of_gates
        active, others = names[: -selection.detached], names[-selection.detached :]
        if not torch.is_grad_enabled():
            others = []
        if not others and len(active) == 1:
            return weighted_sum({active[0]: candidates[active[0]](*args, **kwargs)}, weights[:1], self.label)
        # Before the active ones, which may change the input, as they do where they run alone.
        with torch.no_grad():
            of_others = {other: apart.run(other, candidates[other], args, kwargs) for other in others}
        of_others = mapped(of_others, torch.Tensor.detach)  # one of which may be the input itself
        *before_last, last = active
        outputs = {name: apart.run(name, candidates[name], args, kwargs) for name in before_last}
        if apart.may_change(last, candidates[last]):
            of_others, outputs = copied((of_others, outputs))
        outputs[last] = apart.run_last(last, candidates[last], args, kwargs)
        return weighted_sum({**outputs, **of_others}, weights[: len(outputs) + len(of_others)], self.label)

    @contextmanager
    def changed_by(self, name: str) -> Iterator[None]:
        """Let the input be, after the mixture inside this context, as the named candidate alone would leave it."""

        def change(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            with preserve_random_numbers(self.plan[self.label].device):
                self.candidates[name](*args, **kwargs)

        handle = self.register_forward_hook(change, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def as_mixture(self, entry: Any) -> LayerSlot | None:
        """Return this slot where a plan's entry lets it run several candidates side by side."""
        return self if is_mixture(entry) else None

    def note_trial(self, bears_reentrant: bool) -> None:
        """Note, after a trial, how the choice is to run from now on."""
        super().note_trial(bears_reentrant)
        self.needs_no_guard = not self.lean and self.apart.is_superfluous(self._names)

    def trace(self, cache: TraceCache) -> Candidates:
        """Find out what the candidates are made of, now that all inside them is in its place.

        Args:
            cache: Graphs of other choices' candidates; new ones are added.
        """
        self._traced = Candidates(self.candidates, cache)
        return self._traced

    def explain(self) -> str:
        """Return how each candidate runs in a mixture, a line each."""
        if not is_mixture(self.plan.get(self.label)):
            return f"  {type(self).__name__}: what is selected, as it is"
        if not self.fast:
            return "  candidate by candidate, as they are"
        if self.autocast == {True}:
            return "  candidate by candidate, as they are: under autocast"
        candidates = self._traced or self.trace({})
        if candidates.common is not None:
            return f"  candidate by candidate, as they are: {candidates.common}"
        traces = [f"  {name}: {trace.text}" for name, trace in candidates.traces.items()]
        return "\n".join(traces + ["  under autocast candidate by candidate, as they are"] * (True in self.autocast))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_traced": None, "_state": None}  # a copy has candidates of its own

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)  # an attribute and a candidate of one name do not meet
        else:
            super().__setattr__(name, value)


def weighted_sum(outputs: Mapping[str, Any], weights: torch.Tensor, label: str) -> Any:
    """Return `sum_k weights[k] * outputs[k]` (DARTS, arXiv 1806.09055), in each tensor that all outputs are made of.

    Args:
        outputs: Name -> tensor, or structure of tensors, of each candidate; all have the same shapes.
        weights: Weights (K,), in the order of the outputs.
        label: Label of the choice, for errors.

    Raises:
        ChoiceError: Two outputs differ in shape or structure, or in what cannot be weighted.
    """
    first, *others = outputs.values()
    if len(weights) != len(outputs) or not all(_goes_with(first, other) for other in outputs.values()):
        return weighted_sum_of_structures(outputs, weights, label)
    total = weights[0] * first
    for k, other in enumerate(others, 1):  # one by one: stacking them would hold every output twice
        total = total + weights[k] * other
    return total


def _goes_with(first: Any, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and other.is_floating_point() and other.shape == first.shape != torch.Size()


def former_names(model: nn.Module, names: list[str]) -> list[str]:
    """Return how parameters or buffers were called while a slot's candidates stood in a ModuleDict, `candidates`."""
    slots = {
        path for path, m in model.named_modules(remove_duplicate=False) if hasattr(type(m), "held_candidates_apart")
    }

    def parts(name: str) -> Iterator[str]:
        path = ""
        if path in slots:
            yield "candidates"
        for part in name.split("."):
            yield part
            path = f"{path}.{part}" if path else part
            if path in slots:
                yield "candidates"

    return [".".join(parts(name)) for name in names]
