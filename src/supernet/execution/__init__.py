"""How a choice runs inside a supernet: alone, in a mixture, or with gates, as a plan selects."""

import warnings
from typing import Any

from supernet.execution.choice_slot import ChoiceSlot
from supernet.execution.input_slot import InputSlot
from supernet.execution.plan import Plan
from supernet.execution.replace import (
    replace_input_choice,
    replace_layer_choice,
    replace_other_choices,
    replace_value_choice,
    restore,
)
from supernet.execution.selection import Selection
from supernet.execution.slot import LayerSlot, Slot
from supernet.execution.supernet import Supernet
from supernet.execution.value_slot import ValueSlot

__all__ = [
    "ChoiceSlot",
    "InputSlot",
    "LayerSlot",
    "Plan",
    "Selection",
    "Slot",
    "Supernet",
    "ValueSlot",
    "replace_input_choice",
    "replace_layer_choice",
    "replace_other_choices",
    "replace_value_choice",
    "restore",
]

_FORMER = {
    **dict.fromkeys(("PathLayer", "MixedLayer", "GatedLayer"), LayerSlot),
    **dict.fromkeys(("PathInput", "MixedInput", "GatedInput"), InputSlot),
}


def _gates(decisions: tuple[Any, ...], weights: Any) -> Selection:
    return Selection(tuple(decisions), weights, detached=len(decisions) - 1)


def __getattr__(name: str) -> Any:
    """Give what has another name now."""
    if name in _FORMER:
        new = _FORMER[name]
        warnings.warn(f"{name} is called {new.__name__} now, and runs any plan", DeprecationWarning, stacklevel=2)
        return new
    if name == "Gates":
        warnings.warn("Gates is Selection(active, weights, detached) now", DeprecationWarning, stacklevel=2)
        return _gates
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
