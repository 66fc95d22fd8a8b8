"""How data flows between the choices of a model: a graph of its choices, inputs and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from supernet.nn import Choice
from supernet.space.original import (
    all_parents,
    original_branches,
    original_children,
    original_modules,
    replaced_children,
)
from supernet.space.space import Architecture

__all__: list[str] = []


@dataclass
class Step:
    """A node of the outline.

    Attributes:
        text: What it is, for a person: label and decision in a line each, then the choices inside, indented by depth.
        kind: "end" (input or output), or the chosen candidate's name, or "inputs".
        sources: Indices of the steps that it takes data from.
        dropped: Indices of the steps that it was offered data from, and did not choose.
    """

    text: str
    kind: str
    sources: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)


class _ChoicesAreLeaves(fx.Tracer):
    def __init__(self, choices: Mapping[int, Choice]) -> None:
        super().__init__()
        self._choices = choices

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._choices or super().is_leaf_module(m, module_qualified_name)


def outline(model: nn.Module, architecture: Architecture) -> list[Step]:
    """Return the steps from the inputs to the output, in order of execution.

    A model whose forward cannot be traced (its control flow depends on data) is outlined by its choices alone.

    Args:
        model: A model with choices, as written or with its choices replaced.
        architecture: An architecture in the space's form, label -> decision.
    """
    choices: dict[int, Choice] = {}
    for parent in all_parents(model):
        choices |= {id(child): child for _, child in original_children(parent) if isinstance(child, Choice)}
        choices |= {id(replaced.module): replaced.choice for replaced in replaced_children(parent).values()}
    try:
        graph = _ChoicesAreLeaves(choices).trace(model)
    except Exception:  # a tracer runs the user's code on stand-ins, and any error may come out of that
        return [_decided(choice, architecture) for choice in _outermost(model, architecture)]

    modules = dict(model.named_modules(remove_duplicate=False))
    steps: list[Step] = []
    origins: dict[fx.Node, set[int]] = {}
    for node in graph.nodes:
        into: set[int] = set().union(*(origins[source] for source in node.all_input_nodes))
        choice = choices.get(id(modules.get(node.target))) if node.op == "call_module" else None
        if node.op in ("placeholder", "output"):
            step = Step("input" if node.op == "placeholder" else "output", "end", into)
        elif choice is not None and (offered := _offered(choice, node.args)):
            step = _decided(choice, architecture)
            chosen = choice.domain().positions(architecture[str(choice.label)])
            for position, source in enumerate(offered):
                (step.sources if position in chosen else step.dropped).update(origins.get(source, set()))
            step.dropped -= step.sources
        elif choice is not None:
            step = _decided(choice, architecture)
            step.sources = into
        else:
            origins[node] = into
            continue
        steps.append(step)
        origins[node] = {len(steps) - 1}
    return steps


def _offered(choice: Choice, arguments: tuple[Any, ...]) -> list[Any]:
    """Return the inputs that a choice takes some of, in the order of its options; none where it decides otherwise."""
    domain, inputs = choice.domain(), arguments[0] if arguments else None
    if not domain.is_set or choice.branches():
        return []
    if isinstance(inputs, dict):
        return [inputs.get(name) for name in domain.options]
    return list(inputs) if isinstance(inputs, list | tuple) else []


def _decided(choice: Choice, architecture: Architecture) -> Step:
    label = str(choice.label)
    kind = "inputs" if choice.domain().is_set else str(architecture[label])
    return Step("\n".join([label, _in_words(choice, architecture), *_inside(choice, architecture, 0)]), kind)


def _inside(choice: Choice, architecture: Architecture, depth: int) -> Iterator[str]:
    """Yield a line for each choice inside what is chosen, and those inside it, to any depth."""
    branches = original_branches(choice)
    for position in choice.domain().positions(architecture[str(choice.label)]) if branches else ():
        for inner in (inner for module in branches[position] for inner in _outermost(module, architecture)):
            yield f"{'  ' * depth}{inner.label}: {_in_words(inner, architecture)}"
            yield from _inside(inner, architecture, depth + 1)


def _in_words(choice: Choice, architecture: Architecture) -> str:
    decision, domain = architecture[str(choice.label)], choice.domain()
    if not domain.is_set:
        return str(decision)
    return " + ".join(domain.options[i] for i in domain.positions(decision)) or "nothing"


def _outermost(model: nn.Module, architecture: Architecture) -> list[Choice]:
    """Return the choices inside `model` that the architecture reaches."""
    found = [m for _, m in original_modules(model) if isinstance(m, Choice) and str(m.label) in architecture]
    inside = {id(m) for choice in found if choice is not model for _, m in original_modules(choice) if m is not choice}
    return [choice for choice in found if id(choice) not in inside]
