"""Seeds made of several numbers, and iterators whose random numbers are their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from supernet.execution.state import RandomState, derive_seed, preserve_random_numbers, reseed

__all__: list[str] = []


class SeededIterator(Iterator[Any]):
    """Gives what an iterable gives, which draws random numbers of its own; all others go on as if it drew none.

    Args:
        given: An iterable that draws from Python's, NumPy's and torch's global numbers, and from the generators.
        seed: Seed of all that it draws.
        generators: Generators that it draws from; their own seeds count too.
        numbers: State to go on by instead of the seed, from the `numbers()` of another one.
    """

    def __init__(
        self,
        given: Iterable[Any],
        seed: int,
        generators: Sequence[torch.Generator] = (),
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        self._generators = generators
        with preserve_generators(generators):
            reseed(seed)
            for generator in generators:
                generator.manual_seed(derive_seed(seed, generator.initial_seed()))
            self._iterator = iter(given)  # which may draw already, also where it goes on by `numbers`
            self._note()
        if numbers is not None:
            self._global = RandomState.from_tree(dict(numbers["global"]), torch.device("cpu"))
            self._states = list(numbers["generators"])

    def __next__(self) -> Any:
        with preserve_generators(self._generators):
            self._global.put_back()
            for generator, state in zip(self._generators, self._states, strict=True):
                generator.set_state(state)
            try:
                return next(self._iterator)
            finally:
                self._note()

    def numbers(self) -> dict[str, Any]:
        """Return the random numbers' state after what was given last."""
        return {"global": self._global.to_tree(), "generators": list(self._states)}

    def _note(self) -> None:
        self._global, self._states = RandomState(), [generator.get_state() for generator in self._generators]


@contextmanager
def preserve_generators(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put all random numbers, and those of the generators, back after this context, as if nothing had been drawn."""
    states = [generator.get_state() for generator in generators]
    try:
        with preserve_random_numbers():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
