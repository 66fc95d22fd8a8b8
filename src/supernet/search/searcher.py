"""Searchers: they are asked for architectures, told how good these are, and learn from that."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from supernet.checks import check_counts, check_functions
from supernet.errors import ArchitectureError, NonFiniteError, SpaceError, TrainingError
from supernet.search.dominance import order_of_several
from supernet.space import Architecture, SearchSpace
from supernet.space.space import check_space

__all__ = ["AskTell", "Constraint", "Scored", "Searcher", "SpaceSearcher", "draw_allowed", "ranked", "search"]

Constraint: TypeAlias = Callable[[Architecture], bool]
Number: TypeAlias = float | tuple[float, ...]  # a score: of one objective, or one of each of several
Score: TypeAlias = Callable[[Sequence[Architecture]], Sequence[Any]]

MAX_DRAWS = 10_000  # for one architecture that is wanted
MUTATIONS = 50  # before none is found in the neighbourhood of another


class Scored(NamedTuple):
    """An architecture and its score: a number, or of several objectives a tuple with one for each."""

    architecture: Architecture
    score: Any


class AskTell(Protocol):
    """What `search` drives. It evaluates nothing itself, so whoever asks may do that wherever and however they like."""

    def ask(self, count: int) -> list[Architecture]:
        """Return at most `count` architectures whose scores it wants, each only once; none where it knows no more."""
        ...

    def tell(self, architectures: Sequence[Architecture], scores: Sequence[Any]) -> None:
        """Take in how good architectures are; higher is better, and NaN is no score.

        Where there are several objectives, the score of an architecture is a tuple of a number for each.
        """
        ...


class Searcher(AskTell, Protocol):
    """What also knows which architectures were best, and can be saved and gone on with."""

    def ranked(self) -> list[Scored]:
        """Return the architectures whose scores are known, best first: see `supernet.search.searcher.ranked`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return from where the searcher goes on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


def search(searcher: AskTell, score: Score, budget: int) -> list[Scored]:
    """Score what a searcher asks for, tell it, and return all that has been scored, best first.

    Args:
        searcher: Says which architectures are scored: has `ask(count)` and `tell(architectures, scores)`. One that
            has `ranked()` says too what is returned.
        score: Returns the score of each of some architectures; higher is better. Of several objectives it is a tuple.
        budget: Number of architectures that are scored at most.

    Raises:
        TrainingError: The searcher lacks a method, or asks for what is no list of at most so many architectures; or
            `score` does not return one number for each.
        ArchitectureError: The searcher has a `space`, and asks for what is no architecture of it.
        SpaceError: No architecture that keeps the searcher's constraint was found.
        NonFiniteError: Every score is NaN.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"short": nn.ReLU(), "longer": nn.Tanh()}, label="act")))
    >>> search(RandomSearcher(space), lambda architectures: [len(a["act"]) for a in architectures], budget=2)
    [Scored(architecture={'act': 'longer'}, score=6.0), Scored(architecture={'act': 'short'}, score=5.0)]
    """
    check_counts(budget=budget)
    if isinstance(searcher, type):
        raise TrainingError(
            f"searcher is the class {searcher.__name__}; give one that is made, {searcher.__name__}(...)"
        )
    if lacking := [name for name in ("ask", "tell") if not has_method(searcher, name)]:
        raise TrainingError(
            f"searcher has ask(count) and tell(architectures, scores), and {type(searcher).__name__} lacks "
            f"{' and '.join(lacking)}"
        )
    if not callable(score):
        raise TrainingError(f"score is a function that returns the score of each of some architectures, not {score!r}")
    left, told = budget, list[Scored]()
    while left and (asked := _asked_of(searcher, left)):
        scores = _numbers(asked, score(asked))
        searcher.tell(asked, scores)
        told += map(Scored, asked, scores)
        left -= len(asked)
    return searcher.ranked() if has_method(searcher, "ranked") else ranked(told)  # type: ignore[attr-defined]


def has_method(searcher: Any, name: str) -> bool:
    """Say whether a searcher defines a method; those of the protocol, which it may inherit, do nothing."""
    method = getattr(searcher, name, None)
    return callable(method) and getattr(method, "__func__", None) is not getattr(Searcher, name)


def _asked_of(searcher: AskTell, count: int) -> Sequence[Architecture]:
    """Return what a searcher asks for, if these can be evaluated."""
    asked, name = searcher.ask(count), f"{type(searcher).__name__}.ask({count})"
    if not isinstance(asked, list | tuple) or not all(isinstance(one, Mapping) for one in asked):
        raise TrainingError(
            f"{name} returned {asked!r:.80}; let it return a list of architectures, an empty one where it knows no more"
        )
    if len(asked) > count:
        raise TrainingError(f"{name} returned {len(asked)} architectures; let it return {count} at most")
    if isinstance(space := getattr(searcher, "space", None), SearchSpace):
        try:
            for architecture in asked:
                space.validate(architecture)
        except ArchitectureError as error:
            raise ArchitectureError(f"{name} returned what is no architecture of its space: {error}") from error
    return asked


class SpaceSearcher:
    """What our searchers share: they remember what they have asked for and been told, and ask for nothing twice.

    Args:
        space: The space that is searched.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        constraint: Says whether an architecture may be asked for. It is called once for each that is drawn, so it
            must always say the same. One that can draw what it allows, by `sample(generator)`, as
            `supernet.cost.Limits` can, is asked for that. Default: all may.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_space(space)
        check_functions(constraint=constraint)
        self.space, self.constraint = space, constraint
        self._source = source_of(space, constraint)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._known: dict[str, Architecture] = {}  # asked for, or told
        self._scored: dict[str, Scored] = {}
        self._is_allowed: dict[str, bool] = {}

    def tell(self, architectures: Sequence[Architecture], scores: Sequence[Any]) -> None:
        """Take in how good architectures are; those that were not asked for, such as of an earlier search, too.

        Args:
            architectures: Architectures of the space.
            scores: The score of each; higher is better. One whose score is NaN is never among the best. Of several
                objectives it is a tuple of a number for each.

        Raises:
            ArchitectureError: One is not of the space.
            TrainingError: There are more or fewer scores than architectures, or one is no number.
                After either nothing has been taken in.
        """
        numbers = _numbers(architectures, scores)
        _check_objectives([*(one.score for one in islice(self._scored.values(), 1)), *numbers])
        for one in [Scored(self.space.canonical(a), s) for a, s in zip(architectures, numbers, strict=True)]:
            name = json.dumps(one.architecture)
            self._known[name], self._scored[name] = one.architecture, one

    def ranked(self) -> list[Scored]:
        """Return what has been told, best first; of equal scores the one told first. NaN is left out.

        Of several objectives those come first that no other beats in all, and of these those that are far from others.

        Raises:
            NonFiniteError: Every score is NaN.
        """
        return ranked(self._scored.values())

    @property
    def best(self) -> Scored:
        """The best of what has been told."""
        if not self._scored:
            raise TrainingError(f"{type(self).__name__} has not been told a score yet; ask, score and tell before")
        return self.ranked()[0]

    def state_dict(self) -> dict[str, Any]:
        """Return from where the search goes on exactly; what is not told yet will not be asked for again."""
        return {
            "generator": self.generator.get_state(),
            "known": list(self._known.values()),
            "scored": [[one.architecture, _as_list(one.score)] for one in self._scored.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ArchitectureError: It is the state of a search of another space.
        """
        known = [self.space.canonical(architecture) for architecture in state["known"]]
        scored = [Scored(self.space.canonical(architecture), _number(score)) for architecture, score in state["scored"]]
        self._known = {json.dumps(architecture): architecture for architecture in known}
        self._scored = {json.dumps(one.architecture): one for one in scored}
        self.generator.set_state(state["generator"])

    def _is_new(self, architecture: Architecture, name: str) -> bool:
        return name not in self._known and self._keeps_constraint(architecture, name)

    def _keeps_constraint(self, architecture: Architecture, name: str) -> bool:
        if self.constraint is None and not self.space.constraints:
            return True
        if name not in self._is_allowed:  # a constraint may build the network
            allows = self.space.allows(architecture) and (self.constraint is None or self.constraint(architecture))
            self._is_allowed[name] = bool(allows)
        return self._is_allowed[name]

    def _draw_new(self) -> list[Architecture]:
        """Return one architecture that is new, drawn by the priors; none where many draws give none.

        Raises:
            SpaceError: None of these keeps the constraint, and neither did any before.
        """
        # What draws only what it allows takes longer for each, and has given those that are easily drawn.
        for _ in range(MAX_DRAWS if self._source is self.space else MAX_DRAWS // 10):
            architecture = self._drawn()
            if self._is_new(architecture, json.dumps(architecture)):
                return [architecture]
        if not self._known:
            raise _none_allowed()
        return []

    def _drawn(self) -> Architecture:
        return self._source.sample(self.generator)

    def _neighbour(self, architecture: Architecture) -> list[Architecture]:
        """Return one architecture that is new, a few changes away; none where many changes give none."""
        for _ in range(MUTATIONS):
            changed = self.space.mutate(architecture, self.generator)
            name = json.dumps(changed)
            if self._is_new(changed, name):
                return [changed]
            if self._keeps_constraint(changed, name):  # beyond what is known, but never out of what is allowed
                architecture = changed
        return []

    def _asked(self, architectures: Iterable[Architecture]) -> list[Architecture]:
        """Return the architectures, which are asked for now."""
        new = {json.dumps(architecture): architecture for architecture in architectures}
        self._known |= new
        return [dict(architecture) for architecture in new.values()]


class Source(Protocol):
    """What draws architectures."""

    def sample(self, generator: torch.Generator) -> Architecture:
        """Return an architecture."""
        ...


def source_of(space: Source, constraint: Any) -> Source:
    """Return what architectures are drawn from: the constraint, if it draws what it allows, for that may be rare."""
    return constraint if hasattr(constraint, "sample") else space


def draw_allowed(space: Source, constraint: Constraint | None, generator: torch.Generator) -> Architecture:
    """Return an architecture that keeps the constraint, drawn by the priors or, if it can, by the constraint itself.

    Raises:
        SpaceError: None of many that were drawn keeps it.
    """
    source = source_of(space, constraint)
    for _ in range(MAX_DRAWS):
        architecture = source.sample(generator)
        if constraint is None or constraint(architecture):
            return architecture
    raise _none_allowed()


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Return those whose score is a number, best first; of equal ones the first given.

    Of several objectives those come first that none beats in all, then those that only these beat, and so on
    (non-dominated sorting); among these, those that stand farther from their neighbours (crowding distance, of NSGA-II:
    doi 10.1109/4235.996017).

    Raises:
        NonFiniteError: Every score is NaN.

    >>> ranked([Scored({"act": "relu"}, 0.1), Scored({"act": "tanh"}, 0.9)])[0]
    Scored(architecture={'act': 'tanh'}, score=0.9)
    """
    scored = list(scored)
    numbers = [one for one in scored if not is_nan(one.score)]
    if scored and not numbers:
        raise NonFiniteError(
            f"the score of each of {len(scored)} architectures is NaN, so none of them is the best; look at what the "
            f"network of one gives on the validation part, say of {scored[0].architecture}"
        )
    if numbers and isinstance(numbers[0].score, tuple):
        return [numbers[i] for i in order_of_several([one.score for one in numbers])]
    return sorted(numbers, key=lambda one: -one.score)  # stable: the first stays first


def is_nan(score: Number) -> bool:
    """Say whether a score, or one of its numbers, is none."""
    return any(map(math.isnan, score)) if isinstance(score, tuple) else math.isnan(score)


def _none_allowed() -> SpaceError:
    return SpaceError(
        f"none of {MAX_DRAWS:,} architectures drawn keeps the constraint; loosen it, or give the choices priors that "
        "favour what it allows"
    )


def _numbers(architectures: Sequence[Architecture], scores: Any) -> list[Number]:
    """Return the score of each architecture, if there is one."""
    try:
        count = len(scores)
    except TypeError as error:
        raise TrainingError(
            f"the scores of {len(architectures)} architectures are a list with a number for each, not {scores!r:.80}"
        ) from error
    if len(architectures) != count:
        raise TrainingError(f"{len(architectures)} architectures are told with {count} scores; give one score for each")
    return [_number(score) for score in scores]


def _number(score: Any) -> Number:
    if isinstance(score, tuple | list) and score:
        return tuple(_one_number(one) for one in score)
    return _one_number(score)


def _one_number(score: Any) -> float:
    try:
        return float(score.__float__())  # not float(score), which reads texts too
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # an array's, a tensor's
        raise TrainingError(f"a score is a number, higher is better, not {score!r:.80}") from error


def _check_objectives(scores: Sequence[Number]) -> None:
    """Raise `TrainingError` unless all scores are of as many objectives."""
    counts = {len(score) if isinstance(score, tuple) else 1 for score in scores}
    if len(counts) > 1:
        raise TrainingError(
            f"scores are of as many objectives all, but some have {min(counts)} numbers and some {max(counts)}"
        )


def _as_list(score: Number) -> float | list[float]:
    return list(score) if isinstance(score, tuple) else score
