"""Numbers of a module that choices decide: one each on a path, several with weights in a mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from supernet.errors import ChoiceError, MixtureError
from supernet.nn.choice import Alternative
from supernet.nn.domain import is_int
from supernet.nn.value import MAX_JOINT, ValueChoice, evaluated, leaves_of, shown, values_of

__all__ = ["Sizes", "Span"]


class Joint(NamedTuple):
    """One of what several choices do together.

    Attributes:
        sizes: Name -> value.
        weight: Product of the choices' weights (); None where each is decided.
        is_detached: Whether only its output is wanted.
    """

    sizes: dict[str, Any]
    weight: Tensor | None
    is_detached: bool


class Span(NamedTuple):
    """A dimension of a weight, of which a size takes a part.

    Attributes:
        name: Name of the size.
        length: Length of the dimension, the largest size.
        is_centred: Whether the middle is taken (kernels). Default: the first.
    """

    name: str
    length: int
    is_centred: bool = False

    def part(self, weight: Tensor, dim: int, size: int) -> Tensor:
        """Return the part of a weight's dimension that a size takes: a view."""
        return weight.narrow(dim, (self.length - size) // 2 if self.is_centred else 0, size)

    def mask(self, size: int, largest: int) -> Tensor:
        """Return (largest,): 1 where of the part that the largest size takes a size takes it too, else 0."""
        mask = torch.zeros(largest)
        self._replace(length=largest).part(mask, 0, size).fill_(1)
        return mask


class Sizes(nn.Module):
    """Numbers by name, some of which are decided by choices: a child of a module that depends on them.

    The choices are its children, so that spaces find them, and a supernet puts what follows its plan in their places.

    Args:
        numbers: Name -> number, `ValueChoice` or `Expression`.

    >>> sizes = Sizes(in_features=4, out_features=2 * ValueChoice([8, 16], label="width"))
    >>> sizes.largest("out_features"), sizes.under({"width": 8})
    (32, {'in_features': 4, 'out_features': 16})
    """

    def __init__(self, **numbers: Any) -> None:
        super().__init__()
        self._numbers = numbers
        self._labels: list[str] = []
        for position, leaf in enumerate(leaves_of(numbers.values())):
            self._labels.append(str(leaf.label))
            self._modules[str(position)] = leaf  # its label may have dots, which no child's name has
        self._under: dict[tuple[Any, ...], dict[str, Any]] = {}
        # Numbers that have choices in common are decided together; those that do not are independent of each other.
        leaves = {name: leaves_of([value]) for name, value in numbers.items()}
        self._components = _components(leaves, self._labels)
        self._labels_of = {name: frozenset(str(leaf.label) for leaf in of_number) for name, of_number in leaves.items()}

    def __getitem__(self, name: str) -> Any:
        return self._numbers[name]

    @property
    def is_decided(self) -> bool:
        """Whether no choice decides any of these."""
        return not self._labels

    def decides(self, name: str) -> bool:
        """Say whether this has a number of a name, or one for each dimension of it."""
        return any(name == each.partition("[")[0] for each in self._numbers)

    def values_of(self, name: str) -> list[Any]:
        """Return what a number of a name may be, in any of its dimensions."""
        numbers = [number for each, number in self._numbers.items() if name == each.partition("[")[0]]
        return [value for number in numbers for value in values_of(number)]

    def leaves(self) -> list[ValueChoice]:
        """Return the choices that decide these, as they were given."""
        return list(leaves_of(self._numbers.values()))

    def largest(self, name: str) -> Any:
        """Return the largest value that a number may have.

        Raises:
            ChoiceError: Some value is no whole number above 0; names it.
        """
        values = values_of(self._numbers[name])
        for value in values:
            if not is_int(value) or value < 1:
                raise ChoiceError(
                    f"{name} is a whole number above 0, but {self._numbers[name]} may be {value!r}; choose other "
                    "values, or round by // or ValueChoice.to_int"
                )
        return max(values)

    def under(self, decisions: Mapping[str, Any]) -> dict[str, Any]:
        """Return all numbers under an architecture, label -> decision."""
        return {name: evaluated(value, decisions) for name, value in self._numbers.items()}

    def now(self) -> dict[str, Any] | None:
        """Return all numbers as the supernet's plan decides them; None where it mixes several."""
        decisions = []
        for module in self._modules.values():
            alternatives: list[Alternative] = module.alternatives()  # type: ignore[union-attr, operator]
            if alternatives[0].weight is not None:
                return None
            decisions.append(alternatives[0].decision)
        if is_compiling():  # where a number looked up is one that is compiled for
            return self.under(dict(zip(self._labels, decisions, strict=True)))
        key = tuple(decisions)  # 1 and 1.0 and True are one key, and one number
        if key not in self._under:
            self._under[key] = self.under(dict(zip(self._labels, key, strict=True)))
        return self._under[key]

    def joint(self) -> list[Joint]:
        """Return all that the choices do together now, each with its weight."""
        return list(self._joint(list(self._modules)))

    def _joint(self, names: Sequence[str]) -> Iterator[Joint]:
        """Yield what some of the choices do together; the numbers that depend on them alone are right."""
        every: list[list[Alternative]]
        every = [self._modules[name].alternatives() for name in names]  # type: ignore[union-attr, operator]
        labels = [self._labels[int(name)] for name in names]
        if math.prod(map(len, every)) > MAX_JOINT:
            raise MixtureError(
                f"choices {', '.join(map(repr, labels))} are mixed together with more than {MAX_JOINT:,} joint values; "
                "give them fewer, or use a trainer that samples"
            )
        for each in product(*every):
            decisions = {label: one.decision for label, one in zip(labels, each, strict=True)}
            weights = [one.weight for one in each if one.weight is not None]
            weight = math.prod(weights[1:], start=weights[0]) if weights else None
            sizes = {
                name: evaluated(value, decisions)
                for name, value in self._numbers.items()
                if self._labels_of[name] <= decisions.keys()
            }
            yield Joint(sizes, weight, any(one.is_detached for one in each))

    # --- weights that several sizes share ----------------------------------------------------------------------

    def has_detached(self) -> bool:
        """Say whether of some sizes only the outputs are wanted now, as in gates."""
        return any(one.is_detached for slot in self._modules.values() for one in slot.alternatives())  # type: ignore[union-attr, operator]

    def entangled(self, weight: Tensor, *spans: Span | None, detached: bool | None = None) -> Tensor:
        """Return `sum_j w_j pad(weight[parts of j])` over all joint sizes j: a mixture's weight (arXiv 2312.10440).

        For a layer that is linear in its weight that is the mixture of what each size gives, padded with zeros: one
        pass in place of one for each. It is as large as the largest size that runs: where only some do, what none of
        them takes is left out.

        Args:
            weight: The weight that all sizes share.
            spans: What a size takes, of each of its first dimensions, None for all of it; the others are taken whole.
            detached: Whether the sum is over the sizes that are detached, which give the weight no gradient, or over
                the others. Default: over both.
        """
        if detached is None:
            active = self.entangled(weight, *spans, detached=False)
            return active + self.entangled(weight, *spans, detached=True) if self.has_detached() else active
        mask = mask_of_active = weight.new_ones([1] * weight.dim())
        for children in self._components:
            joint = list(self._joint(children))
            chosen = {
                dim: span
                for dim, span in enumerate(spans)
                if span is not None and span.name in joint[0].sizes and self.is_chosen(span.name)
            }
            letters = "abcdefg"[: len(chosen)]
            equation = ",".join(["j", *(f"j{letter}" for letter in letters)]) + f"->{letters}"
            places, shape = [], [1] * weight.dim()
            for dim, span in chosen.items():
                largest = max((one.sizes[span.name] for one in joint), key=int)
                weight, shape[dim] = span.part(weight, dim, largest), int(largest)
                places.append(torch.stack([span.mask(one.sizes[span.name], largest) for one in joint]).to(weight))
            one = weight.new_ones(())
            weights_J = torch.stack([one if each.weight is None else each.weight.to(weight) for each in joint])
            active_J = weight.new_tensor([not each.is_detached for each in joint])
            with _autocast_off(weight.device.type):  # which would round the mixture's weights
                mask_of_active = mask_of_active * torch.einsum(equation, weights_J * active_J, *places).reshape(shape)
                if detached:
                    mask = mask * torch.einsum(equation, weights_J, *places).reshape(shape)
        return weight.detach() * (mask - mask_of_active) if detached else weight * mask_of_active

    def is_chosen(self, name: str) -> bool:
        """Say whether choices decide a number."""
        return bool(self._labels_of[name])

    def extra_repr(self) -> str:
        """Show the numbers."""
        return ", ".join(f"{name}={shown(value)}" for name, value in self._numbers.items())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_under": {}}


def _autocast_off(device_type: str) -> AbstractContextManager[Any]:
    is_available = torch.amp.is_autocast_available(device_type)  # on the device "meta" it is not
    return torch.autocast(device_type, enabled=False) if is_available else nullcontext()


def _components(leaves: Mapping[str, Sequence[ValueChoice]], labels: Sequence[str]) -> list[list[str]]:
    """Return the choices, by their positions as texts, in sets that no number depends on two of."""
    components: list[set[str]] = []
    for of_number in leaves.values():
        met = {str(labels.index(str(leaf.label))) for leaf in of_number}
        apart = [component for component in components if not component & met]
        components = [*apart, met.union(*(component for component in components if component & met))]
    return [sorted(component, key=int) for component in components if component]
