"""The model as its user wrote it, whatever stands in the place of its choices by now.

A parent module remembers which of its children have been put there for a choice. The memory is kept on the
parent, since the child may be any module at all, a candidate itself included; and as an ordinary attribute,
so that it goes along with `copy.deepcopy`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple, TypeAlias

from torch import nn
from torch.optim.swa_utils import AveragedModel

from supernet.errors import SpaceError
from supernet.nn import Choice, Value
from supernet.nn.value import shown

__all__: list[str] = []

_MEMORY = "_supernet_replaced"


class Replaced(NamedTuple):
    """A choice, and the module that stands in its place."""

    choice: Choice
    module: nn.Module


def remember(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the choice that is `parent`'s child `name`."""
    choice = parent._modules[name]
    assert isinstance(choice, Choice)
    parent.__dict__.setdefault(_MEMORY, {})[name] = Replaced(choice, module)
    parent._modules[name] = module
    module.training = choice.training  # not by `train`, which would put the candidates into one form


def put_back(parent: nn.Module, name: str) -> None:
    """Put the choice back that was replaced as `parent`'s child `name`."""
    choice, module = replaced_children(parent)[name]
    parent._modules[name] = choice
    choice.training = module.training
    del parent.__dict__[_MEMORY][name]
    if not parent.__dict__[_MEMORY]:
        forget(parent)


def forget(parent: nn.Module) -> None:
    """Forget that children of `parent` were put there for choices."""
    parent.__dict__.pop(_MEMORY, None)


def replaced_children(parent: nn.Module) -> dict[str, Replaced]:
    """Return name -> (choice, module) of the children that still stand in a choice's place."""
    memory: dict[str, Replaced] = parent.__dict__.get(_MEMORY, {})
    # A user may have put another module there since.
    return {name: replaced for name, replaced in memory.items() if parent._modules.get(name) is replaced.module}


def original_children(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, child) as the user wrote them."""
    replaced = replaced_children(parent)
    for name, child in parent._modules.items():
        if child is not None:
            yield name, replaced[name].choice if name in replaced else child


def original_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) as the user wrote them, outer before inner, each module once.

    Paths are the same where the model, or a part of it, is wrapped by `torch.compile`, DDP and the like.
    """
    seen: set[int] = set()
    stack = [("", root)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = [(_path_of(module, path, name), child) for name, child in original_children(module)]
        stack.extend(reversed(children))


# What wraps a model to run it otherwise: its own name for the model is no part of a path in the model.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # as `module`
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module")


def _path_of(parent: nn.Module, path: str, name: str) -> str:
    if name in _WRAPPED or (name == "module" and isinstance(parent, _WRAPPERS)):
        return path
    return f"{path}.{name}" if path else name


def all_parents(root: nn.Module) -> list[nn.Module]:
    """Return every module that holds children: those as written, and those inside what replaced a choice."""
    found: dict[int, nn.Module] = {}
    stack = [root]
    while stack:
        module = stack.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        stack.extend(child for child in module._modules.values() if child is not None)
        stack.extend(replaced.choice for replaced in replaced_children(module).values())
    return list(found.values())


def model_itself(root: nn.Module) -> nn.Module:
    """Return the model that a `Supernet` runs, which follows plans as no frozen network does; of all else the same."""
    return root.model if getattr(type(root), "runs_plans", False) else root  # type: ignore[return-value]


def is_replaced(root: nn.Module) -> bool:
    """Say whether any choice of this model has been replaced."""
    return any(replaced_children(parent) for parent in all_parents(root))


def pinned_choices(root: nn.Module) -> list[Choice]:
    """Return the choices of a model, outer before inner, and label each that has no label of its own by its path.

    That is the path in this model, whatever other model that it is part of has been looked at before.

    Raises:
        SpaceError: A label means two things (see the message).
    """
    modules = list(original_modules(root))
    places = [(path, module) for path, module in modules if isinstance(module, Choice)]
    first: dict[str, tuple[str, Choice]] = {}
    for path, choice in places:
        label = choice._label or path
        if not label:
            raise SpaceError(
                f"the model itself is {choice.description()} and so has no path to be known by; "
                "give it a label, or wrap it in nn.Sequential"
            )
        other_path, other = first.setdefault(label, (path, choice))
        if other is not choice:
            _check_one_decision(label, (other_path, other), (path, choice))
    for path, module in modules:
        _check_values_of(path, module, first)
    for path, choice in places:  # after all checks, so that a model that is refused stays as it was
        choice._path = path
    return [choice for _, choice in places]


_Place: TypeAlias = tuple[str, Choice]


def _check_values_of(path: str, module: nn.Module, labels: Container[str]) -> None:
    """Raise if a module holds a value that nothing would decide: one of torch's own, or one without its choice."""
    kind, place = type(module), f"at {path!r}" if path else "of which the model is one"
    holds_modules = ("torch.nn.modules.container", "torch.nn.modules.module")
    is_of_torch = kind.__module__.startswith("torch.nn.modules.") and kind.__module__ not in holds_modules
    for name, attribute in (*vars(module).items(), *original_children(module)):
        for value in attribute if isinstance(attribute, tuple | list) else (attribute,):
            if not isinstance(value, Value):
                continue
            if is_of_torch:
                raise SpaceError(
                    f"{kind.__name__}, {place}, holds {shown(value)} as {name}, but a layer of torch takes no value "
                    "that is decided later; use that of supernet.nn where there is one, a LayerChoice between "
                    f"{kind.__name__}s, or a Mutable of your own"
                )
            for leaf in () if isinstance(value, nn.Module) else value.leaves():
                if leaf.label not in labels:
                    raise SpaceError(
                        f"{kind.__name__}, {place}, holds {value} as {name}, but choice {leaf.label!r} stands "
                        f"nowhere in the model, so nothing would decide it; keep the choice itself in the module too"
                    )


def _check_one_decision(label: str, one: _Place, two: _Place) -> None:
    """Raise unless two choices of one label can be one decision."""
    places = f"the choices at {one[0]!r} and {two[0]!r}"
    if one[1]._label is None or two[1]._label is None:
        raise SpaceError(
            f"{label!r} names two choices: {places}, of which at least one is known by that path only; "
            "give each a label of its own, or one label to both if they are one decision"
        )
    shapes = [_what_is_decided(choice) for _, choice in (one, two)]
    if shapes[0] != shapes[1]:
        raise SpaceError(
            f"{places} share the label {label!r}, so they are one decision, but they differ: {shapes[0]} and "
            f"{shapes[1]}; make them the same, or give them labels of their own"
        )


def _what_is_decided(choice: Choice) -> str:
    domain = choice.domain()
    what = str(domain) if domain.is_set else f"{domain.noun}s {', '.join(map(str, domain.outcomes))}"
    return what if domain.prior is None else f"{what} with prior {domain.prior}"


def original_branches(choice: Choice) -> list[list[nn.Module]]:
    """Return the modules that run where each option of a choice is chosen, as its user wrote them."""
    inside = (replaced for parent in all_parents(choice) for replaced in replaced_children(parent).values())
    originals = {id(replaced.module): replaced.choice for replaced in inside}
    return [[originals.get(id(module), module) for module in branch] for branch in choice.branches()]
