"""What can be known of a supernet only by running it, found out before its first step and noted in its slots."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError, MixtureError
from supernet.execution.activation_checkpoints import is_in_reentrant_checkpoint
from supernet.execution.conflicts import check_values
from supernet.execution.fast.shared import one_pass
from supernet.execution.memory_format import agree
from supernet.execution.one_hot import check_one_hot
from supernet.execution.plan import Plan
from supernet.execution.risks import check_risks
from supernet.execution.selection import Selection, is_mixture
from supernet.execution.slot import LayerSlot, Slot
from supernet.nn import Mutable
from supernet.space import SearchSpace

__all__: list[str] = []

logger = logging.getLogger("supernet")

Trial = Callable[[], Any]  # runs the supernet as its plan says, leaving no trace, and returns what comes out


def try_out(
    model: nn.Module,
    plan: Plan,
    replaced: Sequence[tuple[str, nn.Module]],
    trial: Trial,
    space: SearchSpace,
    prepared: Callable[[], Trial] | None = None,
    tries_values: bool = True,
) -> bool:
    """Run a supernet by its present plan, and note in its slots how they are to run it from then on.

    Slots that do not mix now stay as they were, and all do where it raises. A way that once differed stays off.

    Args:
        model: A model whose choices have been replaced.
        plan: The plan that it follows, which is left as it is.
        replaced: Label and module of what stands in each choice's place.
        trial: A function that runs the model; the last of what it returns is in eval form.
        space: The model's space.
        prepared: A function that settles how batches are prepared, once risky decisions have been tried, and returns
            the trial of such a batch. Default: batches stay as they are.
        tries_values: Whether the space's extreme values are tried. Default: they are.

    Returns:
        Whether choices run under reentrant checkpoints.

    Raises:
        ChoiceError: The model does not bear a decision of a choice, or values together; it does not give in a mixture
            what its paths give; or it goes on with an input that a candidate changes in place. What the trial raises is
            passed on.
    """
    slots = [(label, slot) for label, slot in replaced if isinstance(slot, Slot)]
    mixtures = [mixture for label, slot in slots if (mixture := slot.as_mixture(plan.get(label))) is not None]
    mixed = [slot for label, slot in slots if is_mixture(plan.get(label))]  # of inputs too
    before = [(slot, slot.fast, slot.bears_reentrant) for _, slot in slots]
    for _, slot in slots:
        slot.fast = False  # first as written: what is wrong with a model is said in its own terms
        slot.bears_reentrant = True  # for it is noted here

    def in_one_pass(trial: Trial) -> Trial:
        def run() -> Any:
            with one_pass():
                return trial()

        return run

    met: list[bool] = []
    agrees: bool | None = None
    try:
        # What depends on values asks for them, and does not run what stands in their places.
        running = [module for _, module in replaced] + [m for m in model.modules() if isinstance(m, Mutable)]
        with _noting_reentrant_checkpoints(running, met):
            check_risks(model, plan, replaced, in_one_pass(trial))
            if tries_values:
                check_values(model, plan, space, replaced, in_one_pass(trial))
            check_one_hot(model, plan, space, replaced, in_one_pass(trial))
            trial = in_one_pass(trial if prepared is None else prepared())
            expected = _first_run(model, plan, mixed, trial)
            _check_changed_inputs(mixtures, trial, expected)
            if mixtures:
                agrees = _is_same_the_fast_way(model, [slot for _, slot in slots], mixtures, trial, expected)
    finally:
        for slot, fast, bore_reentrant in before:
            has_been_tried = agrees is not None and slot in mixed
            slot.fast = agrees and fast is not False if has_been_tried else fast
            slot.bears_reentrant = bore_reentrant
    for slot, _, bore_reentrant in before:
        slot.note_trial(bears_reentrant=any(met) or bore_reentrant)
    return any(met)


def _first_run(model: nn.Module, plan: Plan, mixed: Sequence[Slot], trial: Trial) -> Any:
    """Return what a trial gives; raise `MixtureError` if the model does not take the weighted sum of a value it calls.

    As a function of torch does not that takes a number, such as `F.dropout` its rate.
    """
    called: dict[str, Slot] = {}

    def note(slot: nn.Module, _: Any, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):  # decided, to see whether the model takes a number
            return value
        assert isinstance(slot, Slot)
        called[slot.label] = slot
        return value.detach().requires_grad_()  # as in a step: a trial has no gradients, and then torch takes a number

    values = [slot for slot in mixed if slot.values and _requires_grad(slot.entry)]
    handles = [slot.register_forward_hook(note) for slot in values]
    try:
        return trial()
    except TypeError as error:
        for labels in dict.fromkeys([*((label,) for label in called), tuple(called)]):
            given = {label: plan[label] for label in labels}
            plan.update({label: called[label].values[0] for label in labels})
            runs = bool(labels) and _runs(trial)
            plan.update(given)
            if runs:
                raise MixtureError(
                    f"choice {', '.join(map(repr, labels))} is mixed, and {type(model).__name__} calls it where a "
                    f"number is taken, not the weighted sum of its values, a tensor ({error}); use a trainer that "
                    "samples, or a layer that takes the choice itself, such as supernet.nn.Dropout for a rate"
                ) from error
        raise
    finally:
        for handle in handles:
            handle.remove()


def _requires_grad(entry: Any) -> bool:
    """Say whether a plan's entry has weights that are trained."""
    weights = entry.weights if isinstance(entry, Selection) else entry
    return isinstance(weights, torch.Tensor) and weights.requires_grad


def _runs(trial: Trial) -> bool:
    try:
        trial()
    except Exception:  # the user's code, which may raise anything
        return False
    return True


@contextmanager
def _noting_reentrant_checkpoints(modules: Sequence[nn.Module], met: list[bool]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda *_: met.append(is_in_reentrant_checkpoint())) for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_changed_inputs(mixtures: Sequence[LayerSlot], trial: Trial, expected: Any) -> None:
    """Raise if the model goes on with an input that a candidate changes in place.

    It would find it changed where that candidate is frozen, and finds it as it was where all are mixed.
    """
    for mixture, name in [(slot, name) for slot in mixtures for name in slot.apart.changing()]:
        with mixture.changed_by(name):
            found = trial()
        if not agree(expected, found):
            raise ChoiceError(
                f"candidate {name!r} of choice {mixture.label!r} changes its input in place, and the model uses "
                "that input again after the choice: where the candidates are mixed it is as it was, in a frozen "
                "network it would not be; let the candidate work on a copy, such as by inplace=False"
            )


def _is_same_the_fast_way(
    model: nn.Module, slots: Sequence[Slot], mixtures: Sequence[LayerSlot], trial: Trial, expected: Any
) -> bool:
    """Say whether a trial gives the same outputs where all slots run mixtures the fast way."""
    cache: dict[Any, Any] = {}
    traces = [trace for mixture in mixtures for trace in mixture.trace(cache).traces.values()]
    for slot in slots:
        slot.fast = True
    try:
        differs = None if agree(expected, trial()) else "gives another output"
    except Exception as error:
        for slot in slots:
            slot.fast = False
        trial()  # what the model itself raises now, whichever the way, is passed on
        differs = f"raises {type(error).__name__} ({str(error).splitlines()[0] if str(error) else error!r})"
    if differs is None:
        is_all_under_autocast = all(mixture.autocast == {True} for mixture in mixtures)
        count = 0 if is_all_under_autocast else sum(not trace.runs_as_it_is for trace in traces)
        logger.info(
            "%d of the %d candidates in %d choices run the fast way, %d as they are; trainer.explain() says why",
            *(count, len(traces), len(mixtures), len(traces) - count),
        )
    else:
        logger.warning(
            "%s %s the fast way, so all its choices run candidate by candidate; please report the model",
            type(model).__name__,
            differs,
        )
    return differs is None
