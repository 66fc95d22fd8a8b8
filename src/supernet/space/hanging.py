"""What users hang on modules that depend on values: carried over to the plain module, or refused by name.

Hooks, attributes of the module and attributes of its parameters go along. What changes what the module computes, or
would be trained beside it, has no place in a module of torch's own.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from supernet.errors import ReplacementError
from supernet.nn import Mutable, Sizes
from supernet.nn.mutable import is_of_ours, names_of

__all__: list[str] = []

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OF_WEIGHTS = {  # hooks that compute a weight anew before each pass, and what takes them off
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("prune", "torch.nn.utils.prune.remove"),
}
# What subclasses may define and `frozen` does not lose: it is of no use once the module is made.
_HARMLESS = {"extra_repr", "plain", "reset_parameters", "_reset_parameters"}


def check_nothing_is_lost(model: nn.Module) -> None:
    """Raise unless what hangs on the model's modules that depend on values can be carried over, or is their own.

    Raises:
        ReplacementError: Names the module, what hangs on it, and what to do.
    """
    for path, module in model.named_modules():
        at = f"{type(module).__name__} at {path!r}" if path else f"the model, a {type(module).__name__},"
        if isinstance(module, Mutable):
            if _has_own_frozen(module):
                continue
            for what, mend in _lost(module):
                raise ReplacementError(f"{at} has {what}, which the plain layer that freeze makes would lack; {mend}")
        elif any(isinstance(child, Sizes) for child in module._modules.values()):
            raise ReplacementError(
                f"{at} took the place of an elastic layer, whose choices it would ignore (as what "
                "SyncBatchNorm.convert_sync_batchnorm makes); convert the frozen network instead"
            )


def _has_own_frozen(module: Mutable) -> bool:
    """Say whether a user says what this is under an architecture, and so what becomes of all that hangs on it."""
    return not is_of_ours(type(module).frozen) or type(module).frozen is Mutable.frozen  # which says that it lacks it


def _lost(module: Mutable) -> Iterator[tuple[str, str]]:
    """Yield what hangs on a module of ours that cannot be carried over, each with what to do about it."""
    cls = type(module)
    ours = next(each for each in cls.__mro__ if is_of_ours(each))
    define = f"define frozen() in {cls.__name__}"
    for base in cls.__mro__[: cls.__mro__.index(ours)]:
        for name in () if base.__module__.partition(".")[0] == "torch" else vars(base):
            is_special = name.startswith("__") and name != "__call__"
            if not is_special and name not in _HARMLESS and hasattr(ours, name):
                yield f"a {name} of its own", define
    for hook in module._forward_pre_hooks.values():
        for kind, (what, remover) in _OF_WEIGHTS.items():
            if isinstance(hook, kind):
                yield f"{what}, by which its weight is computed", f"take it off by {remover}"
    if "parametrizations" in module._modules:
        yield "parametrizations", "take them off by torch.nn.utils.parametrize.remove_parametrizations"
    made: frozenset[str] | None = module.__dict__.get("_supernet_made")
    if made is None:  # it was not made by a constructor of ours
        return
    beside = "hold it in the module around, or in a subclass that defines frozen() beside it"
    registries: dict[str, Mapping[str, Any]] = {
        "parameter": module._parameters,
        "buffer": module._buffers,
        "child": module._modules,
    }
    for what_kind, registry in registries.items():
        for name in registry.keys() - made:
            yield f"a {what_kind} {name!r} that was added to it", beside
    for name in module.__dict__.keys() - made:
        if callable(getattr(cls, name, None)):
            yield f"a {name} that was set on it", f"use a subclass of {cls.__name__} that defines {name}() and frozen()"
    for name in made - names_of(module):
        yield f"no {name} any more, with which it was made", "put it back"


def leave_hooks_behind(frozen: nn.Module, module: nn.Module) -> None:
    """Let a module that is about to be copied have no hooks of the one that it came from: see `carry_over`."""
    for name in _HOOKS:
        if name in frozen.__dict__ and frozen.__dict__[name] is module.__dict__.get(name):
            frozen.__dict__[name] = None if name == "_is_full_backward_hook" else OrderedDict()


def carry_over(module: nn.Module, network: nn.Module, memo: dict[int, Any]) -> None:
    """Give what stands in the place of a module in a frozen network what hangs on that.

    Args:
        module: A module that depends on values.
        network: What stands in its place, a copy.
        memo: The memo by which the whole model has been copied, whose copies hooks and attributes may refer to.
    """
    for name in _HOOKS:
        if module.__dict__.get(name) and not network.__dict__.get(name):
            network.__dict__[name] = copy.deepcopy(module.__dict__[name], memo)
    made = module.__dict__.get("_supernet_made")
    for name in () if made is None else module.__dict__.keys() - made - network.__dict__.keys():
        if not name.startswith("_supernet"):
            network.__dict__[name] = copy.deepcopy(module.__dict__[name], memo)
    for name, weight in module._parameters.items():
        of_network = network._parameters.get(name)
        if weight is not None and of_network is not None:
            of_network.__dict__.update(copy.deepcopy(weight.__dict__, memo))
