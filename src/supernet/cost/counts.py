"""Costs that are counted: parameters, multiply-accumulates, bytes of weights; and those that you say for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.checks import check_functions
from supernet.cost.cost import Cost, PartsCost
from supernet.cost.joint import Joint, checked_probabilities, summed
from supernet.cost.parts import Parts
from supernet.cost.recording import Part, Shape
from supernet.cost.table import Table, checked_table, cost_of
from supernet.cost.terms import Term
from supernet.errors import CostError
from supernet.space import SearchSpace

__all__ = ["ArchitectureCost", "LayerCost", "Macs", "Parameters", "TableCost", "WeightMemory"]


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


class ArchitectureCost(Cost):
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

    def of(self, architecture: Mapping[str, Any]) -> float:
        """Return what the function says of an architecture.

        Raises:
            ArchitectureError: It is none of the space.
            CostError: The function returns no number.
        """
        canonical = self.space.canonical(architecture)
        key = repr(canonical)
        if key not in self._known:
            value: Any = self.function(dict(canonical))
            if hasattr(value, "item"):
                value = value.item()
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CostError(f"the cost {self.name!r} is a number, but its function returned {value!r:.80}")
            self._known[key] = float(value)
        return self._known[key]


class TableCost(Cost):
    """A cost that is the sum of what a table says of the options that are decided for and reached.

    Args:
        space: The space of the architectures.
        table: Label -> (candidate's name, or value -> its cost), for each option of each choice that it names. Choices
            of sets have none.
        constant: What every network costs beside. Default: 0.
        name: What limits and tables call the cost. Default: "cost".
        unit: Its unit. Default: none.

    Raises:
        CostError: The table names other choices or options than the space has.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}, label="op")))
    >>> TableCost(space, {"op": {"conv": 2.5, "skip": 0.5}}, unit="ms").of({"op": "conv"})
    2.5
    """

    def __init__(
        self, space: SearchSpace, table: Table, *, constant: float = 0.0, name: str = "cost", unit: str = ""
    ) -> None:
        self.space, self.table, self.constant = space, checked_table(table, space, CostError), constant
        self.name, self.unit = name, unit
        self._joints: list[Joint] | None = None

    def of(self, architecture: Mapping[str, Any]) -> float:
        """Return the sum of the table's entries.

        Raises:
            ArchitectureError: It is none of the space.
        """
        return self.constant + cost_of(self.table, self.space, architecture)

    def terms(self) -> list[Term]:
        """Return what the cost is the sum of: see `Cost.terms`."""
        return [
            Term((), {(): self.constant}),
            *(
                Term(
                    (label,),
                    {
                        (None,): 0.0,
                        **{
                            (d,): costs[name]
                            for name, d in zip(self.space[label].options, self.space[label].outcomes, strict=True)
                        },
                    },
                )
                for label, costs in self.table.items()
            ),
        ]

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cost where each choice is decided on its own: see `Cost.expected`.

        Raises:
            CostError: A label lacks probabilities, or a choice stands inside too many others.
        """
        given = checked_probabilities(self.space, probabilities)
        if self._joints is None:
            generator = torch.Generator().manual_seed(0)
            self._joints = []
            for label, costs in self.table.items():
                scope = (*self.space.around(label), label)
                cost = partial(cost_of, {label: costs}, self.space)
                self._joints.append(Joint(self.space, scope, cost, f"the {self.name} of {label!r}", generator))
        return summed([joint.mean(given) for joint in self._joints], given) + self.constant
