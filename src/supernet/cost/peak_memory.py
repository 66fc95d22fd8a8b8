"""The most memory that a network's activations take at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.cost.cost import CanonicalCost
from supernet.cost.joint import Joint, Means, checked_probabilities
from supernet.cost.liveness import BodyParts
from supernet.cost.parts import Parts
from supernet.errors import CostError
from supernet.execution.structure import tensors_of

__all__ = ["PeakMemory"]

MAX_JOINT = 5_000  # architectures, each of which is put together for a mean


class PeakMemory(CanonicalCost):
    """The most bytes that the activations of the frozen network take at once, for an example; not its weights.

    Operations run one after another, in the order in which the model calls them. A tensor is alive from the operation
    that makes it to the last that reads it, the input and the output among them; views, and what is changed in place,
    are one memory. That is what a runtime needs that plans its memory, as those of small boards do. By-products that
    nothing reads, as the indices of a pooling, are not counted, nor is what an operation needs inside; attention counts
    with its scores. PyTorch itself holds more: whatever a variable still holds.

    `of` is exact. `expected` is exact too where all choices together have at most 5,000 decisions, and refused where
    they have more: a peak is no sum, so its mean does not follow from the parts'. Keep such a limit in a trainer that
    samples, or in the search.

    Args:
        model: A module with choices, as written or replaced, a `Supernet`, or the `Parts` of one that costs share.
        example: What the model is called with: a tuple of arguments, a dict of keyword arguments, or one argument. Its
            batch and dtype are those that count. Default: that of the `Parts`.

    >>> model = nn.Sequential(LayerChoice({"wide": nn.Linear(4, 64), "narrow": nn.Linear(4, 8)}, label="op"), nn.ReLU())
    >>> PeakMemory(model, torch.ones(1, 4)).of({"op": "narrow"})  # 8 numbers and their ReLU, 4 bytes each
    64.0
    """

    name, unit = "peak_memory", "bytes"

    def __init__(self, model: nn.Module | Parts, example: Any = None) -> None:
        if isinstance(model, Parts):
            model, example = model.model, model.example
        if example is None:
            raise CostError(f"the cost {self.name!r} is of a network that runs; give example=, what it is called with")
        self._parts = BodyParts(model, example)
        self.space = self._parts.space
        self._given = [tensor.numel() * tensor.element_size() for tensor in tensors_of(example)]
        self._known: dict[str, float] = {}
        self._means: Means | None = None

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return the most bytes that are alive at once."""
        key = repr(architecture)
        if key not in self._known:
            self._known[key] = float(self._parts.peak(dict(architecture), self._given))
        return self._known[key]

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean where each choice is decided on its own: see `Cost.expected`.

        Raises:
            CostError: A label lacks probabilities, or the choices have more than 5,000 decisions together.
        """
        given = checked_probabilities(self.space, probabilities)
        if self._means is None:
            number = math.prod(domain.size for domain in self.space.values())
            if number > MAX_JOINT:
                raise CostError(
                    "the peak of memory is no sum of parts: its mean is taken over all joint decisions, of which there "
                    f"are {number:,}, and at most {MAX_JOINT:,} are looked at; limit it in a search, or in a trainer "
                    "that samples"
                )
            generator = torch.Generator().manual_seed(0)
            joint = Joint(self.space, tuple(self.space), self.of_canonical, "the peak of memory", generator)
            self._means = Means(self.space, [joint])
        return self._means.sum(given)
