"""Mixtures of values that are no mixtures of paths: one-hot weights must give what the path gives.

In a mixture all widths come padded with zeros to the widest. A model that reads features by their position or number
takes the zeros for features, and the mixture that it computes is not what a search means by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.conflicts import extremes, smallest_change
from supernet.execution.memory_format import TOLERANCE, agree
from supernet.execution.plan import Plan
from supernet.execution.selection import Selection, is_mixture, weights_of
from supernet.execution.slot import Slot
from supernet.execution.structure import tensors_of
from supernet.nn.mutable import padded
from supernet.space import SearchSpace

__all__: list[str] = []

NEAR = 1e-4  # a norm makes of what is constant but for rounding, 1e-7, up to 300 times as much


def check_one_hot(
    model: nn.Module,
    plan: Plan,
    space: SearchSpace,
    replaced: Sequence[tuple[str, nn.Module]],
    trial: Callable[[], Any],
) -> None:
    """Compare one-hot mixtures of the smallest values, and of those of a draw, with their paths.

    Only values that the plan mixes are looked at; a plan without such costs no pass, another four trials at most.

    Args:
        model: A model whose choices have been replaced.
        plan: The plan that it follows, which is left as it is.
        space: The model's space, whose constraints are kept.
        replaced: Label and module of what stands in each choice's place.
        trial: A function that runs the model; the last of what it returns is in eval form.

    Raises:
        ChoiceError: They differ; names the smallest set of choices that must be mixed for it.
    """
    of_values = {label for label, module in replaced if getattr(module, "pads_what_is_mixed", False)}
    mixed = [label for label in space if label in of_values and is_mixture(plan.get(label))]
    if not mixed:
        return
    given, tolerance = dict(plan), _tolerance(model, replaced)
    decided = {label: entry for label, entry in given.items() if not isinstance(entry, torch.Tensor | Selection)}

    def output(entries: Mapping[str, Any]) -> Any:
        """Return what the model gives in eval form; None where that is not known, or differs from pass to pass."""
        plan.update(entries)
        with _noting_last_pass(model) as notes:
            result = trial()
        if not notes:
            return result[-1]  # its parts are called, not the model itself
        is_training, draws, found = notes[-1]
        return None if is_training or draws else found

    def difference(decisions: Mapping[str, Any]) -> list[str]:
        path = {label: decisions[label] for label in mixed}
        expected = output(path)
        if expected is None:
            return []
        one_hot = {label: _one_hot(given[label], space[label].positions(path[label])) for label in mixed}

        def differs(entries: Mapping[str, Any]) -> bool | None:
            found = output(entries)
            of_path, of_mixture = _padded(expected, found), tensors_of(found)
            if agree(of_path, of_mixture, tolerance) or _are_near(of_path, of_mixture):
                return None
            return True

        return list(smallest_change(path, one_hot, differs)) if differs(one_hot) else []

    try:
        tried = extremes(space)
        for decisions in {repr([each[label] for label in mixed]): each for each in (tried[0], tried[-1])}.values():
            decisions = {**decisions, **decided}
            if not space.allows(space.follow(decisions.__getitem__)):
                continue
            # Choices of layers as the plan mixes them, so that all candidates are looked at; where these do not run
            # beside some values, as they are decided.
            for others in ({}, {label: decisions[label] for label in given if label not in mixed}):
                plan.update({**given, **others})
                try:
                    labels = difference(decisions)
                except Exception:  # of the user's code: what the given plan raises, its own trial tells
                    continue
                if labels:
                    raise _padding_error({label: decisions[label] for label in labels})
                break
    finally:
        plan.clear()
        plan.update(given)


@contextmanager
def _noting_last_pass(model: nn.Module) -> Iterator[list[tuple[bool, bool, Any]]]:
    """Note of each pass whether it is in training form, whether it draws random numbers, and what it gives."""
    states: list[list[torch.Tensor]] = []
    notes: list[tuple[bool, bool, Any]] = []

    def begin(*_: Any) -> None:
        states.append(_random_state())

    def end(module: nn.Module, _: Any, output: Any) -> None:
        draws = not all(map(torch.equal, states[-1], _random_state()))
        notes.append((module.training, draws, output))

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        yield notes
    finally:
        for handle in handles:
            handle.remove()


def _random_state() -> list[torch.Tensor]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpus]


def _padded(expected: Any, found: Any) -> list[torch.Tensor]:
    """Return the tensors of what a path gives as wide as a mixture's: what comes out may itself be an elastic width."""
    tensors, wide = tensors_of(expected), tensors_of(found)
    if len(tensors) != len(wide):
        return tensors
    return [a if a.dim() != b.dim() else padded(a, list(b.shape)) for a, b in zip(tensors, wide, strict=True)]


def _are_near(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> bool:
    """Say whether outputs are near each other, though not in parts of their norm: of noise alone, such as a norm's."""
    return [a.shape for a in expected] == [b.shape for b in found] and all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=NEAR) for a, b in zip(expected, found, strict=True)
    )


def _one_hot(entry: Any, positions: Sequence[int]) -> torch.Tensor:
    weights: torch.Tensor = entry if isinstance(entry, torch.Tensor) else weights_of(entry)
    return weights.new_zeros(len(weights)).index_fill(0, torch.tensor(positions, device=weights.device), 1)


def _tolerance(model: nn.Module, replaced: Sequence[tuple[str, nn.Module]]) -> float:
    """Return how far apart two orders of the same sums may be in what the model computes in."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    roundings = [torch.finfo(weight.dtype).eps for weight in weights]
    if any(weight.is_cuda for weight in weights):
        roundings.append(torch.finfo(torch.float16).eps)  # that of TF32, in which convolutions are by default
    if any(True in module.autocast for _, module in replaced if isinstance(module, Slot)):
        roundings.append(torch.finfo(torch.bfloat16).eps)
    return max([TOLERANCE, *(16 * rounding for rounding in roundings)])


def _padding_error(decisions: Mapping[str, Any]) -> ChoiceError:
    *first, last = [f"{label!r} = {decision!r}" for label, decision in decisions.items()]
    several = f"choices {', '.join(first)} and {last} do not give what their" if first else None
    return ChoiceError(
        f"in a mixture {several or f'choice {last} does not give what its'} path gives: the model reads features by "
        "their position or number (concatenation, chunk, softmax, mean, shape), and all widths come padded with zeros "
        "to the widest; concatenate the fixed part first, split the layer in two, use the norms of supernet.nn, or use "
        "a trainer that samples"
    )
