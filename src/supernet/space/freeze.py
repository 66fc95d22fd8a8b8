"""From a model with choices and an architecture to the plain network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from supernet.errors import ArchitectureError, ReplacementError
from supernet.nn import Choice, Expression, Mutable, Sizes
from supernet.nn.choice import constructors_follow
from supernet.nn.composed import Composed
from supernet.space.constraints import detach
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.hanging import carry_over, check_nothing_is_lost, leave_hooks_behind
from supernet.space.original import (
    all_parents,
    forget,
    model_itself,
    original_branches,
    original_children,
    replaced_children,
)
from supernet.space.space import SearchSpace
from supernet.space.strides import give_back_strides, give_strides_like

__all__ = ["fixed_architecture", "freeze"]

Copies: TypeAlias = list[tuple[nn.Module, nn.Module]]


def freeze(model: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Return the plain network that `architecture` describes, with the weights that `model` has.

    This is `supernet.freeze`, where more is said, with an example; here without data to recalibrate by.
    """
    model = model_itself(model)
    decisions = SearchSpace(model).canonical(architecture)
    check_nothing_is_lost(model)

    shared = {_place_of(p): p for p in model.parameters() if p.layout == torch.strided}

    def network_of(memo: dict[int, Any]) -> nn.Module:
        copies: Copies = []
        _copy_chosen(model, None, decisions, memo, set(), dict(shared), copies)
        # A choice and what stands in its place are already in the memo, as the chosen: `deepcopy` takes those
        # wherever it meets either, in a child, a list or an attribute, and copies the candidates dropped nowhere.
        network: nn.Module = copy.deepcopy(model, memo)
        for module, made in copies:  # now that hooks and attributes find all that they refer to in the memo
            carry_over(module, made, memo)
        return network

    network = with_what_cannot_be_copied(network_of)
    for module in network.modules():
        forget(module)
        _evaluate_attributes(module, decisions)
        detach(module)
    give_back_strides(network)
    return _without_cells_of_ours(network)


def _without_cells_of_ours(network: nn.Module) -> nn.Module:
    """Put a graph module of torch in the place of each module of ours that held choices, inner ones first."""
    graph_modules = {network: network}
    for module in reversed(list(network.modules())):
        for name, child in module._modules.items():
            if child in graph_modules:
                module._modules[name] = graph_modules[child]
        if isinstance(module, Composed):
            graph_modules[module] = module.as_graph_module()
    return graph_modules[network]


def _copy_chosen(
    module: nn.Module,
    replacement: nn.Module | None,
    decisions: Mapping[str, Any],
    memo: dict[int, Any],
    seen: set[int],
    shared: dict[Any, nn.Parameter],
    copies: Copies,
) -> None:
    """Enter in `memo` what each choice in `module`, and each module that depends on some, becomes, inner ones first.

    In `copies`, each module that depends on some with what it becomes.
    """
    if id(module) in seen or isinstance(module, Sizes):  # of which a frozen module has nothing
        return
    seen.add(id(module))
    if not isinstance(module, Choice):
        for _, child, child_replacement in _children(module):
            _copy_chosen(child, child_replacement, decisions, memo, seen, shared, copies)
        if isinstance(module, Mutable):
            frozen = module.frozen(decisions)
            if not isinstance(frozen, nn.Module) or (frozen is module and module.choices()):
                raise ReplacementError(
                    f"{type(module).__name__}.frozen() returned {_in_words(frozen, module)}; it must return a module "
                    "of the sizes that are decided, in which nothing is left to decide"
                )
            _share_weights(frozen, shared)
            give_strides_like(module, frozen)
            leave_hooks_behind(frozen, module)
            memo[id(module)] = copy.deepcopy(frozen, memo)
            copies.append((module, memo[id(module)]))
        return
    assert module.label is not None, "labels are pinned when the space is made"
    decision, domain = decisions[module.label], module.domain()
    inside = (replaced for parent in all_parents(module) for replaced in replaced_children(parent).values())
    replacements = {id(replaced.choice): replaced.module for replaced in inside}
    branches, original = module.branches(), original_branches(module)
    for position in domain.positions(decision) if branches else ():
        for present, chosen in zip(branches[position], original[position], strict=True):
            if replacement is not None:
                check_registered(module.label, domain.options[position], present, replacement)
            _copy_chosen(chosen, replacements.get(id(chosen)), decisions, memo, seen, shared, copies)
    resolved = module.resolve(decision)
    original_ids = {id(inner) for inner in module.modules()}
    for made in resolved.modules():
        if id(made) not in original_ids:  # by the choice itself, in no form yet
            made.training = (module if replacement is None else replacement).training
    has_weights = any(True for _ in (*resolved.parameters(), *resolved.buffers()))
    # What `resolve` has made anew, such as what picks inputs, is nobody else's and need not be copied.
    frozen = copy.deepcopy(resolved, memo) if branches or has_weights else resolved
    memo[id(module)] = frozen
    if replacement is not None:
        memo[id(replacement)] = frozen


def _in_words(frozen: Any, module: nn.Module) -> str:
    return f"the {type(module).__name__} itself" if frozen is module else repr(frozen)


def _evaluate_attributes(module: nn.Module, decisions: Mapping[str, Any]) -> None:
    """Let the expressions that a module keeps as attributes be what they have been decided to be."""
    for name, value in vars(module).items():
        if isinstance(value, Expression) and all(leaf.label in decisions for leaf in value.leaves()):
            vars(module)[name] = value.evaluate(decisions)


def _place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two views of one weight have in common where they are the same part of it."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


def _share_weights(frozen: nn.Module, shared: dict[Any, nn.Parameter]) -> None:
    """Let equal parts of one weight be one parameter, as where an embedding and a projection are tied."""
    for module in frozen.modules():
        for name, p in module._parameters.items():
            if p is not None and p.layout == torch.strided:
                module._parameters[name] = shared.setdefault(_place_of(p), p)
        for name, buffer in module._buffers.items():
            if buffer is not None:  # `deepcopy` would copy all of the memory of which it is a part
                module._buffers[name] = buffer.clone()


def _children(parent: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Yield each child's name, the child as written, and what stands in its place if that is another."""
    replaced = replaced_children(parent)
    for name, child in original_children(parent):
        yield name, child, replaced[name].module if name in replaced else None


def check_registered(label: str, name: str, candidate: nn.Module, replacement: nn.Module) -> None:
    """Raise unless what stands in a choice's place holds the candidate's own parameters and buffers."""
    registered = {id(tensor) for tensor in [*replacement.parameters(), *replacement.buffers()]}
    state = [*candidate.named_parameters(), *candidate.named_buffers()]
    lost = [path for path, tensor in state if id(tensor) not in registered]
    if lost:
        raise ReplacementError(
            f"the {type(replacement).__name__} in the place of choice {label!r} does not hold candidate {name!r} "
            f"itself ({', '.join(lost[:3])} of it are not there), so what was trained would be lost; "
            "register the candidate itself as a child, not a copy"
        )


@contextmanager
def fixed_architecture(architecture: Mapping[str, Any]) -> Iterator[None]:
    """Let choices that are constructed inside this context be what `architecture` decides.

    A choice is known by its label here. One that the architecture does not mention stays a choice (a nested
    one in a candidate not taken is constructed before its parent).

    Raises:
        ArchitectureError: A choice has no label, a decision is not possible, or, at the end, a label of the
            architecture has not been met.

    >>> with fixed_architecture({"act": "tanh"}):
    ...     network = nn.Sequential(LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act"))
    >>> network
    Sequential(
      (0): Tanh()
    )
    """
    if not isinstance(architecture, Mapping):
        raise ArchitectureError(f"an architecture is a dict label -> decision, not {architecture!r}")
    with constructors_follow(architecture) as met:
        yield
    unmet = [label for label in architecture if label not in met]
    if unmet:
        raise ArchitectureError(
            f"no choice with label {', '.join(map(repr, unmet))} was constructed; "
            f"constructed were: {', '.join(sorted(met)) or 'none'}"
        )
