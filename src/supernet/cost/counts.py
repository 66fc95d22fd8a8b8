"""Costs that are counted: parameters, multiply-accumulates, bytes of weights; and those that your functions say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from supernet.checks import check_functions
from supernet.cost.cost import CanonicalCost, PartsCost
from supernet.cost.parts import Parts
from supernet.cost.recording import Part, Shape
from supernet.errors import CostError
from supernet.space import SearchSpace

__all__ = ["ArchitectureCost", "LayerCost", "Macs", "Parameters", "WeightMemory"]


class Parameters(PartsCost):
    """The number of parameters of the frozen network; tied ones count once.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> cost = Parameters(model)
    >>> cost.of({"op": "linear"}), cost.expected({"op": torch.tensor([0.5, 0.5])})
    (20.0, tensor(10.))
    """

    name = "parameters"

    def __init__(self, model: nn.Module | Parts) -> None:
        super().__init__(model)

    def of_part(self, part: Part) -> float:
        """Return the number of its parameters."""
        return sum(number for number, _ in part.parameters)


class WeightMemory(PartsCost):
    """The bytes of the frozen network's weights: its parameters, and the buffers that are saved with them.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        dtype: What floating point weights are stored as, such as `torch.int8` after quantization. Default: as they are.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> WeightMemory(model).of({"op": "linear"}), WeightMemory(model, dtype=torch.int8).of({"op": "linear"})
    (80.0, 20.0)
    """

    name, unit = "weight_memory", "bytes"

    def __init__(self, model: nn.Module | Parts, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(model)
        self._size = None if dtype is None else dtype.itemsize

    def of_part(self, part: Part) -> float:
        """Return the bytes of its parameters and buffers."""
        return sum(number * (self._size or size) for number, size in (*part.parameters, *part.buffers))


class Macs(PartsCost):
    """The multiply-accumulates of the frozen network: of matrix products, convolutions and attention, for an example.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument. MACs are for the whole of it.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> Macs(model, torch.ones(1, 4)).of({"op": "linear"})
    16.0
    """

    name = "macs"

    def __init__(self, model: nn.Module | Parts, example: Any = None) -> None:
        super().__init__(model, example)

    def of_part(self, part: Part) -> float:
        """Return the multiply-accumulates of its calls."""
        return sum(call.macs for call in part.calls)


class LayerCost(PartsCost):
    """A cost that is the sum of what you say that each layer costs.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        example: What the model is called with, as in `Macs`.
        functions: Type of layer -> function `(layer, input_shape) -> number`. The layer is torch's own, of the sizes
            that are decided: `layer.in_channels`, `layer.kernel_size` and so on; the input's shape has the batch. A
            layer whose type is not among these, nor one that it inherits from, costs nothing.
        name: What limits and tables call the cost. Default: "cost".
        unit: Its unit. Default: none.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> energy = LayerCost(model, torch.ones(1, 4), {nn.Linear: lambda layer, shape: 2.0 * layer.out_features})
    >>> energy.of({"op": "linear"}), energy.of({"op": "skip"})
    (8.0, 0.0)
    """

    def __init__(
        self,
        model: nn.Module | Parts,
        example: Any,
        functions: Mapping[type[nn.Module], Callable[[Any, Shape], float]],
        *,
        name: str = "cost",
        unit: str = "",
    ) -> None:
        check_functions(**{kind.__name__: function for kind, function in functions.items()})
        super().__init__(model, example)
        self.functions, self.name, self.unit = dict(functions), name, unit

    def of_part(self, part: Part) -> float:
        """Return what its calls cost."""
        total = 0.0
        for call in part.calls:
            kind = next((kind for kind in type(call.layer).__mro__ if kind in self.functions), None)
            if kind is not None:
                total += self.functions[kind](call.layer, call.inputs[0] if call.inputs else ())
        return total


class ArchitectureCost(CanonicalCost):
    """A cost that a function of an architecture says, such as one that asks a file or a board.

    Args:
        space: The space of the architectures.
        function: Function `architecture -> number`; it is asked once for each architecture.
        name: What limits and tables call the cost. Default: "cost".
        unit: Its unit. Default: none.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}, label="op")))
    >>> ArchitectureCost(space, lambda architecture: len(architecture["op"])).of({"op": "conv"})
    4.0
    """

    def __init__(
        self, space: SearchSpace, function: Callable[[dict[str, Any]], float], *, name: str = "cost", unit: str = ""
    ) -> None:
        check_functions(function=function)
        self.space, self.function, self.name, self.unit = space, function, name, unit
        self._known: dict[str, float] = {}

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return what the function says of an architecture.

        Raises:
            CostError: The function returns no number.
        """
        key = repr(architecture)
        if key not in self._known:
            value: Any = self.function(dict(architecture))
            if hasattr(value, "item"):
                value = value.item()
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CostError(f"the cost {self.name!r} is a number, but its function returned {value!r:.80}")
            self._known[key] = float(value)
        return self._known[key]
