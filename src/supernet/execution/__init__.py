"""How a choice runs inside a supernet."""

from supernet.execution.mixture import MixedInput, MixedLayer
from supernet.execution.plan import Plan
from supernet.execution.replace import replace_input_choice, replace_layer_choice, restore

__all__ = ["MixedInput", "MixedLayer", "Plan", "replace_input_choice", "replace_layer_choice", "restore"]
