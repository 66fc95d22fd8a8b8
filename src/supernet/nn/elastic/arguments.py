"""Arguments of elastic layers: one number or one for each dimension, and numbers that must go into each other."""

from __future__ import annotations

from typing import Any

from supernet.errors import ChoiceError
from supernet.nn.sizes import Sizes
from supernet.nn.value import Value, shown, values_of

__all__: list[str] = []


def of_each_dim(name: str, value: Any, num_dims: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the numbers of an argument by name, and the name of each dimension's.

    Args:
        name: Name of the argument.
        value: A number, `ValueChoice` or expression, or one for each dimension; an expression may give all of them.
        num_dims: Number of dimensions.

    Raises:
        ChoiceError: There are not as many as dimensions.

    >>> of_each_dim("kernel_size", (3, 5), 2)
    ({'kernel_size[0]': 3, 'kernel_size[1]': 5}, ('kernel_size[0]', 'kernel_size[1]'))
    """
    if isinstance(value, Value) and any(isinstance(each, tuple | list) for each in value.values()):
        value = [Value.lookup(value, dim) for dim in range(num_dims)]  # type: ignore[arg-type]  # a table by then
    if not isinstance(value, tuple | list):
        return {name: value}, (name,) * num_dims
    if len(value) != num_dims:
        raise ChoiceError(f"{name} is one number, or one for each of {num_dims} dimensions, not {value}")
    names = tuple(f"{name}[{dim}]" for dim in range(num_dims))
    return dict(zip(names, value, strict=True)), names


def quotients(sizes: Sizes, whole: str, parts: str) -> set[int]:
    """Return all that one of the sizes may be, divided by another.

    Raises:
        ChoiceError: The second does not divide the first for all values; says for which.
    """
    pairs = values_of(Value.compute(lambda n, k: (n, k), sizes[whole], sizes[parts]))
    for n, k in pairs:
        if n % k:
            raise ChoiceError(
                f"{parts}={shown(sizes[parts])} must divide {whole}={shown(sizes[whole])}, but {k} does not divide "
                f"{n}; choose values that do, or let one follow from the other: the same choice for both"
            )
    return {n // k for n, k in pairs}
