"""Numbers of architectures as sums of what a few choices decide together, which an integer program can be made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import torch

from supernet.cost.joint import completed
from supernet.errors import CostError
from supernet.space import Architecture, SearchSpace

__all__ = ["Term"]

Key: TypeAlias = tuple[Any, ...]

MAX_FORMS = 20_000  # joint decisions of the choices of one term


class Term(NamedTuple):
    """What some choices add to a number of an architecture together.

    Attributes:
        scope: Labels of the choices; none for what every architecture has.
        values: Their decisions, as `key_of` writes them -> what these add. Those that are missing are impossible.
    """

    scope: tuple[str, ...]
    values: Mapping[Key, float]


def key_of(scope: tuple[str, ...], architecture: Mapping[str, Any]) -> Key:
    """Return the decisions of some choices: None for one that is not reached, a tuple for a set."""
    return tuple(tuple(d) if type(d) is list else d for d in map(architecture.get, scope))


def forms(
    space: SearchSpace, scope: tuple[str, ...], what: str, generator: torch.Generator
) -> Iterator[tuple[Key, Architecture]]:
    """Yield all that some choices decide together, each once, with an architecture that decides so.

    Where none was found that keeps the constraints, it is one that breaks them: it may still be that there is one.

    Args:
        space: The space of the choices.
        scope: Their labels.
        what: What depends on them, for a message.
        generator: What decides all other choices.

    Raises:
        CostError: They decide too much together.
    """
    around = {outer for label in scope for outer in space.around(label)}
    labels = [label for label in space if label in around.union(scope)]
    number = math.prod(space[label].size for label in labels)
    if number > MAX_FORMS:
        raise CostError(
            f"{what} depends on {len(labels)} choices together ({', '.join(labels[:4])}, ...), which have {number:,} "
            f"joint decisions; at most {MAX_FORMS:,} can stand in an integer program: use another search"
        )
    seen = set()
    others = space.draw(generator)
    for chosen in product(*(space[label] for label in labels)):
        decided = dict(zip(labels, chosen, strict=True))
        architecture = space.follow({**others, **decided}.__getitem__)
        key = key_of(scope, architecture)
        if key in seen or space.rules_out({label: d for label, d in decided.items() if label in architecture}):
            continue
        seen.add(key)
        yield key, completed(space, decided, generator) or architecture
