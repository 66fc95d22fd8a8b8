"""Choices between layers, put over the layers of a model that somebody else wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Choice
from supernet.nn.existing.naming import matching
from supernet.nn.existing.undo import remember_chosen
from supernet.nn.layer_choice import LayerChoice

__all__ = ["choose"]


def choose(
    model: nn.Module,
    where: str | type[nn.Module],
    candidates: Mapping[str, Callable[[], nn.Module] | nn.Module],
    *,
    original: str = "original",
    label: str | None = None,
) -> nn.Module:
    """Put a `LayerChoice` over layers of a model, in place, of which the layer itself is the first candidate.

    The layer keeps its weights. Elastic layers are made before: see `elastic`. `restore(model, original=True)` takes
    it back.

    Args:
        model: The model.
        where: Path, pattern of paths (`*` stands for anything) or class of the layers.
        candidates: Name -> what else may stand there: a class or function that makes it, with the layer as its argument
            where it takes one; or a module, of which each place has a copy.
        original: The name of the layer itself as a candidate. A candidate given under that name is dropped, so that the
            kind that stands there already need not be left out.
        label: Label of the choices, which makes them one decision. Default: the path of each.

    Returns:
        The same model.

    Raises:
        ChoiceError: Nothing matches, a layer that matches is a choice already or holds another that matches, or a
            candidate is neither module nor makes one. After any of these the model is as it was.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> choose(model, nn.ReLU, {"tanh": nn.Tanh, "skip": nn.Identity})
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): LayerChoice(
        (original): ReLU()
        (tanh): Tanh()
        (skip): Identity()
      )
    )
    """
    modules = dict(model.named_modules())
    paths = matching(model, where)
    if "" in paths:
        raise ChoiceError("the model itself cannot be a candidate of a choice inside it; wrap it in nn.Sequential")
    made: dict[nn.Module, LayerChoice] = {}
    for path in paths:
        layer = modules[path]
        outer = next((other for other in paths if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise ChoiceError(f"{where!r} selects {path!r}, and {outer!r} around it; name only one of them")
        parents = [modules[path[:i]] for i, letter in enumerate(path) if letter == "."]
        if isinstance(layer, Choice) or any(isinstance(parent, Choice) for parent in parents[-1:]):
            raise ChoiceError(f"{path!r} is a choice, or a candidate of one, already; add candidates to that choice")
        others = {name: _made(make, layer, name) for name, make in candidates.items() if name != original}
        made[layer] = LayerChoice({original: layer, **others}, label=label)
    for layer, choice in made.items():
        remember_chosen(choice, original)
        choice.training = layer.training
    for parent in list(modules.values()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return model


def _made(make: Any, layer: nn.Module, name: str) -> nn.Module:
    """Return a candidate in the form, on the device and of the dtype of the layer that it stands beside."""
    if isinstance(make, nn.Module):
        candidate: Any = copy.deepcopy(make)
    elif callable(make):
        try:
            candidate = make()
        except TypeError:
            candidate = make(layer)
    else:
        candidate = make
    if not isinstance(candidate, nn.Module):
        raise ChoiceError(f"candidate {name!r} is neither a module nor makes one: {make!r}")
    like = next(layer.parameters(), None)
    if like is not None:
        candidate.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)
    return candidate.train(layer.training)
