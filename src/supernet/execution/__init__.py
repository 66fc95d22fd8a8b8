"""How a choice runs inside a supernet: as a mixture of all, as one path, or as one path with gates."""

from supernet.execution.choice_slot import ChoiceSlot
from supernet.execution.mixture import MixedInput, MixedLayer
from supernet.execution.path import PathInput, PathLayer
from supernet.execution.plan import Plan
from supernet.execution.replace import replace_input_choice, replace_layer_choice, replace_other_choices, restore
from supernet.execution.two_paths import GatedInput, GatedLayer, Gates

__all__ = [
    "ChoiceSlot",
    "GatedInput",
    "GatedLayer",
    "Gates",
    "MixedInput",
    "MixedLayer",
    "PathInput",
    "PathLayer",
    "Plan",
    "replace_input_choice",
    "replace_layer_choice",
    "replace_other_choices",
    "restore",
]
