"""What a searcher promises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from supernet.errors import ArchitectureError, NonFiniteError, TrainingError
from supernet.files.encoding import check_can_be_saved
from supernet.nn import InputChoice, LayerChoice
from supernet.search import Scored, Searcher
from supernet.search.searcher import has_method
from supernet.space import Architecture, SearchSpace
from supernet.testing.comparing import differences, flat, in_words, promised, random_numbers

__all__ = ["check_searcher"]

METHODS = ("ask", "tell", "ranked", "state_dict", "load_state_dict")
ROUNDS, COUNT = 4, 6


def check_searcher(make: Callable[[SearchSpace], Searcher], space: SearchSpace | None = None) -> None:
    """Check that a searcher holds what `search` and trainers rely on.

    - It has `ask`, `tell`, `ranked`, `state_dict` and `load_state_dict`. (The first two are all that `search` needs.)
    - What it asks for are at most as many architectures as it is asked for, of the space, in the form that the space
      writes, and none of them twice.
    - Two that are made alike and told the same ask for the same, and draw nothing from global random numbers.
    - Its `state_dict`, which a checkpoint can hold, loaded in the middle of a search into one made alike, lets that ask
      for the same from then on.
    - An architecture whose score is NaN is never ranked, and where all are NaN there is an error, not a best.
    - What is ranked is what was told, best first.

    Args:
        make: Returns a new searcher of a space, each time with the same seed. One that searches for a while: it asks
            for architectures in five rounds of six, unless it knows no more.
        space: The space that it searches. Default: one of 3,072 architectures, with a choice inside a candidate.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> from supernet.search import RandomSearcher
    >>> check_searcher(RandomSearcher)
    """
    space = default_space() if space is None else space
    before = random_numbers()
    first, second = _made(make, space), _made(make, space)
    seen: dict[str, Architecture] = {}
    for _ in range(ROUNDS):
        asked = _asked(first, space, seen)
        _check_same(asked, second.ask(COUNT), "two searchers that are made alike and told the same ask for the same")
        for searcher in (first, second):
            searcher.tell(asked, _scores(asked))
    _check_state(make(space), first, second, space, seen)
    drawn = differences(before, random_numbers())
    promised("a searcher draws from a generator of its own", not drawn, f"{in_words(drawn)} has moved")
    _check_ranking(make(space), space)
    _check_nan(make(space))


def _made(make: Callable[[SearchSpace], Searcher], space: SearchSpace) -> Searcher:
    searcher = make(space)
    promised("make(space) returns a searcher", not isinstance(searcher, type), f"it returned {searcher!r}")
    lacking = [name for name in METHODS if not has_method(searcher, name)]
    seen = f"{type(searcher).__name__} lacks {in_words(lacking)}"
    promised(f"a searcher has the methods {in_words(METHODS)}", not lacking, seen)
    return searcher


def default_space() -> SearchSpace:
    """Return a small space with choices of each kind, one of them inside a candidate."""
    deep = nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh(), nn.Sigmoid()], label="inner"), nn.Identity())
    layers = [LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh(), nn.Sigmoid()], label=f"layer{i}") for i in range(3)]
    outer = LayerChoice({"deep": deep, "flat": nn.Identity()}, label="outer")
    return SearchSpace(nn.Sequential(*layers, outer, InputChoice(3, 2, label="two"), InputChoice(2, None, label="any")))


def _asked(searcher: Searcher, space: SearchSpace, seen: dict[str, Architecture]) -> list[Architecture]:
    """Ask for architectures, and check them."""
    asked = searcher.ask(COUNT)
    are_architectures = isinstance(asked, list | tuple) and all(isinstance(one, Mapping) for one in asked)
    promised(f"ask({COUNT}) returns a list of architectures", are_architectures, f"it returned {asked!r:.80}")
    promised(f"ask({COUNT}) returns at most {COUNT} architectures", len(asked) <= COUNT, f"it returned {len(asked)}")
    for architecture in asked:
        try:
            canonical = space.canonical(architecture)
        except ArchitectureError as error:
            raise AssertionError(f"what is asked for are architectures of the space; but {error}") from error
        # As text, in which the order of labels counts, and True is not 1.
        name = json.dumps(canonical)
        promised(
            "what is asked for is in the form that the space writes",
            json.dumps(architecture) == name,
            f"{architecture} was asked for, which is written {canonical}",
        )
        promised("no architecture is asked for twice", name not in seen, f"{architecture} was")
        seen[name] = canonical
    return asked


def _scores(architectures: list[Architecture]) -> list[float]:
    """Return scores that depend on all decisions, and of some architectures are NaN."""
    scores = []
    for architecture in architectures:
        text = json.dumps(architecture)
        value = sum(ord(letter) * (position % 7 + 1) for position, letter in enumerate(text)) % 101
        scores.append(math.nan if value % 10 == 0 else value / 10)
    return scores


def _check_same(a: Any, b: Any, promise: str) -> None:
    promised(promise, a == b, lambda: f"one gave {a}, the other {b}")


def _check_state(
    new: Searcher, first: Searcher, second: Searcher, space: SearchSpace, seen: dict[str, Architecture]
) -> None:
    """Check that one that takes the state of the first goes on as the second does."""
    state = first.state_dict()
    try:
        check_can_be_saved(state, "state")
    except TrainingError as error:
        raise AssertionError(f"a checkpoint can hold what state_dict() returns; but {error}") from error
    saved = flat(state)
    new.load_state_dict(state)
    promise = "a searcher that has loaded the state of another goes on as that one"
    _check_same(new.ranked(), first.ranked(), promise)
    for _ in range(2):
        asked = _asked(new, space, seen)
        _check_same(asked, second.ask(COUNT), promise)
        for searcher in (new, second):
            searcher.tell(asked, _scores(asked))
    _check_same(new.ranked(), second.ranked(), promise)
    moved = differences(saved, flat(state))
    promised("a state that was returned stays as it is", not moved, f"going on has changed {in_words(moved)} of it")


def _check_ranking(searcher: Searcher, space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    told = {json.dumps(a): a for a in (space.sample(generator) for _ in range(20))}
    scores = [float(score) for score in range(len(told))]
    searcher.tell(list(told.values()), scores)
    expected = [(a, s) for a, s in reversed(list(zip(told.values(), scores, strict=True)))]
    found = _ranked(searcher)
    promised("what is ranked is what was told, best first", found == expected, lambda: f"it ranked {found[:3]} first")


def _ranked(searcher: Searcher) -> list[Scored]:
    """Return what is ranked, and check its form."""
    found = searcher.ranked()
    pairs = isinstance(found, list | tuple) and all(isinstance(one, tuple) and len(one) == 2 for one in found)
    promised("ranked() returns a list of Scored", pairs, f"it returned {found!r:.80}")
    return [Scored(*one) for one in found]


def _check_nan(searcher: Searcher) -> None:
    asked = searcher.ask(COUNT)
    searcher.tell(asked, [math.nan] * len(asked))
    promise = "where the score of each architecture is NaN, ranked() raises NonFiniteError"
    try:
        best = searcher.ranked()
    except NonFiniteError:
        pass
    else:
        raise AssertionError(f"{promise}; but it returned {best[:3]}")
    more = searcher.ask(COUNT)
    searcher.tell(more, [0.0] + [math.nan] * (len(more) - 1))
    ranked = [one.architecture for one in _ranked(searcher)]
    promised("an architecture whose score is NaN is never ranked", ranked == more[:1], lambda: f"{ranked} were")
