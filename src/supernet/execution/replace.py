"""Putting modules that run in the place of choices, and the choices back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from supernet.errors import AlreadyReplacedError, ReplacementError, TrainingError
from supernet.nn import Choice, InputChoice, LayerChoice, ValueChoice
from supernet.space.freeze import check_registered
from supernet.space.original import (
    all_parents,
    is_replaced,
    pinned_choices,
    put_back,
    remember,
    replaced_children,
)
from supernet.space.strides import give_back_strides

__all__ = [
    "replace_input_choice",
    "replace_layer_choice",
    "replace_other_choices",
    "replace_value_choice",
    "restore",
]

logger = logging.getLogger(__name__)

AnyChoice = TypeVar("AnyChoice", bound=Choice)
Modules = list[tuple[str, nn.Module]]


def replace_layer_choice(
    root: nn.Module, init_fn: Callable[[LayerChoice], nn.Module], modules: Modules | None = None
) -> Modules:
    """Put `init_fn(choice)` in the place of each `LayerChoice` inside `root`.

    A choice inside a candidate is replaced before the choice around it, so the candidates that `init_fn` sees
    can run. What was replaced is remembered: `freeze` and `restore` find it, after `copy.deepcopy` too.

    Args:
        root: The model.
        init_fn: A function of the choice that makes the module that runs. It must register the candidates themselves.
        modules: List to append to. Default: a new one.

    Returns:
        `modules`, with (label, new module) of each choice appended, outer before inner.

    Raises:
        AlreadyReplacedError: These choices have been replaced already.
        ReplacementError: `init_fn` returns no module. What it raises itself is passed on.
        SpaceError: One label means two different choices.
            After any of these the model is as it was.

    >>> model = nn.Sequential(LayerChoice({"scale": nn.Linear(2, 2), "skip": nn.Identity()}, label="first"))
    >>> replace_layer_choice(model, lambda choice: nn.Sequential(*choice))  # all candidates, one after another
    [('first', Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): Identity()
    ))]
    """
    return _replace(root, LayerChoice, init_fn, modules)


def replace_input_choice(
    root: nn.Module, init_fn: Callable[[InputChoice], nn.Module], modules: Modules | None = None
) -> Modules:
    """Put `init_fn(choice)` in the place of each `InputChoice` inside `root`.

    As `replace_layer_choice` in all else; the new module is called as the choice was, with a list of tensors
    or, where the choice has `choose_from`, a dict of them.

    >>> model = nn.Sequential(InputChoice(2, label="pick"))
    >>> replaced = replace_input_choice(model, lambda choice: choice.resolve([1]))
    >>> model([torch.tensor(1.0), torch.tensor(2.0)])
    tensor(2.)
    """
    return _replace(root, InputChoice, init_fn, modules)


def replace_value_choice(
    root: nn.Module, init_fn: Callable[[ValueChoice], nn.Module], modules: Modules | None = None
) -> Modules:
    """Put `init_fn(choice)` in the place of each `ValueChoice` inside `root`.

    As `replace_layer_choice` in all else. The new module is asked `alternatives()` by the layers that depend on the
    choice, and gives a list of `Alternative`: one that is decided, or several with their weights. Where the model
    calls the choice itself, it is called without arguments.

    >>> width = ValueChoice([2, 4], label="width")
    >>> model = nn.Sequential(supernet.nn.Linear(3, width))
    >>> class Widest(nn.Module):
    ...     def alternatives(self):
    ...         return [Alternative(4)]
    >>> replaced = replace_value_choice(model, lambda choice: Widest())
    >>> model(torch.ones(1, 3)).shape
    torch.Size([1, 4])
    """
    return _replace(root, ValueChoice, init_fn, modules)


def replace_other_choices(
    root: nn.Module, init_fn: Callable[[Choice], nn.Module], modules: Modules | None = None
) -> Modules:
    """Put `init_fn(choice)` in the place of each choice inside `root` that is of none of these kinds.

    As `replace_layer_choice` in all else, but that there may be none. Of a choice that holds others these are replaced
    before.
    """
    return _replace(root, Choice, init_fn, modules, but=(LayerChoice, InputChoice, ValueChoice))


def restore(model: nn.Module, original: bool = False) -> nn.Module:
    """Put the choices as written back, with the weights that their candidates have by now, laid out as they were.

    Args:
        model: The model.
        original: Whether to take back too what `elastic` and `choose` did, so that the model is as it came.

    Returns:
        The same model. One whose choices have not been replaced is left as it is.

    >>> model = nn.Sequential(LayerChoice({"scale": nn.Linear(2, 2), "skip": nn.Identity()}, label="first"))
    >>> replaced = replace_layer_choice(model, lambda choice: nn.Sequential(*choice))
    >>> type(restore(model)[0]).__name__
    'LayerChoice'
    """
    for parent in all_parents(model):
        for name, (choice, module) in replaced_children(parent).items():
            _warn_of_copies(choice, module)
            put_back(parent, name)
    give_back_strides(model)
    if original:
        from supernet.nn.existing.undo import take_back  # late, for most users make no layers elastic

        take_back(model.modules())
    return model


def _replace(
    root: nn.Module,
    kind: type[AnyChoice],
    init_fn: Callable[[AnyChoice], nn.Module],
    modules: Modules | None,
    but: tuple[type[Choice], ...] = (),
) -> Modules:
    """Replace the choices of a kind, but for those of some kinds of it."""
    if isinstance(root, Choice):
        raise ReplacementError(f"the model itself is {root.description()}; wrap it in nn.Sequential, or what holds it")
    choices = [choice for choice in pinned_choices(root) if isinstance(choice, kind) and not isinstance(choice, but)]
    places: dict[Choice, list[tuple[nn.Module, str]]] = {choice: [] for choice in choices}
    for parent in all_parents(root):
        for name, child in parent._modules.items():
            if isinstance(child, kind) and child in places:
                places[child].append((parent, name))
    waiting = [choice for choice in choices if places[choice]]
    if choices and not waiting:
        raise AlreadyReplacedError(
            f"each {kind.__name__} of this model has been replaced already; restore(model) puts them back"
        )
    made: dict[Choice, nn.Module] = {}
    done: list[tuple[nn.Module, str]] = []
    try:
        for choice in reversed(waiting):  # inner before outer
            module = init_fn(choice)
            if not isinstance(module, nn.Module):
                raise ReplacementError(
                    f"init_fn returned {module!r} for choice {choice.label!r}; it must return an nn.Module"
                )
            made[choice] = module
            for parent, name in places[choice]:
                remember(parent, name, module)
                done.append((parent, name))
    except BaseException:
        for parent, name in reversed(done):
            put_back(parent, name)
        raise
    modules = [] if modules is None else modules
    modules.extend((str(choice.label), made[choice]) for choice in waiting)
    return modules


def check_not_replaced(model: nn.Module) -> None:
    """Raise `AlreadyReplacedError` if any choice of the model has been replaced."""
    if is_replaced(model):
        raise AlreadyReplacedError(
            "the choices of this model have been replaced already, by a trainer or by replace_*; "
            "restore(model) puts them back, then another trainer may take it"
        )


def check_initialized(model: nn.Module) -> None:
    """Raise `TrainingError` if a parameter or buffer of the model waits for a first batch to have a shape."""
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and is_lazy(tensor):
                kind, at = type(module).__name__, f"{path}.{name}" if path else name
                raise TrainingError(
                    f"{at} has no shape yet, for {kind} takes it from its first batch; give the layer its sizes "
                    f"({kind.removeprefix('Lazy')}), or run one batch through it, in each candidate, before"
                )


def _warn_of_copies(choice: Choice, replacement: nn.Module) -> None:
    try:
        for name, branch in zip(choice.domain().options, choice.branches(), strict=False):  # none: no modules
            for module in branch:
                check_registered(str(choice.label), name, module, replacement)
    except ReplacementError as error:
        logger.warning("restore: %s", error)
