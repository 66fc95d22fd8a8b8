"""Scores of architectures that are sums: of what each option adds, and of what pairs add together."""

# N architectures, P unknowns

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from supernet.cost.terms import Term, key_of
from supernet.errors import ArchitectureError, TrainingError
from supernet.nn.domain import Domain
from supernet.ranking import kendall_tau
from supernet.space import Architecture, SearchSpace
from supernet.space.space import check_space
from supernet.space.tree import key_of_decision

if TYPE_CHECKING:
    from supernet.relaxations import Relaxation

__all__ = ["AdditiveScore", "FittedScore", "fit_scores"]

OfChoice: TypeAlias = Mapping[Any, float] | Sequence[float]
Pairs: TypeAlias = Mapping[tuple[str, str], Mapping[tuple[Any, Any], float]]

MAX_DECISIONS = 1_000  # of one choice
FOLDS = 5


class AdditiveScore:
    """A score that is the sum of what the decisions of an architecture add, of the choices that it reaches.

    It is what `maximize` finds the best architectures of; called with an architecture, it returns its score.

    Args:
        space: The space of the architectures.
        scores: Label -> (candidate's name, or value -> its score), for each option of each choice that it names; of a
            choice of a set those of its chosen options are added up. Or a list with a number for each decision, in the
            order of the choice's domain. A choice that is not named adds nothing; what has a score of minus infinity is
            never taken.
        pairs: Two labels -> (two decisions -> their score), added where both are decided so. Two decisions that are not
            named add nothing. Default: no pairs.
        constant: What every architecture has. Default: 0.

    Attributes:
        terms: What the score is the sum of.

    Raises:
        ArchitectureError: The space has no such choice or option, or an option has no score.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}) for _ in "ab")))
    >>> score = AdditiveScore(space, {"0": {"conv": 2.0, "skip": 1.0}}, {("0", "1"): {("skip", "skip"): 0.5}})
    >>> score({"0": "conv", "1": "skip"}), score({"0": "skip", "1": "skip"})
    (2.0, 1.5)
    """

    def __init__(
        self,
        space: SearchSpace,
        scores: Mapping[str, OfChoice],
        pairs: Pairs | None = None,
        *,
        constant: float = 0.0,
    ) -> None:
        check_space(space)
        self.space = space
        self.terms = [Term((), {(): _number(constant, "the constant")})]
        self.terms += [self._of_choice(label, of_choice) for label, of_choice in scores.items()]
        self.terms += [self._of_pair(labels, of_pair) for labels, of_pair in (pairs or {}).items()]

    @classmethod
    def of(cls, relaxation: Relaxation) -> AdditiveScore:
        """Return the logarithm of the probability that a trained distribution gives to architectures.

        Args:
            relaxation: That of a differentiable trainer, which decides each choice on its own: `trainer.relaxation`.

        Raises:
            TrainingError: It has another probability of an architecture than the product of its decisions'.

        >>> space = SearchSpace(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="act")))
        >>> relaxation = supernet.relaxations.Softmax(space)
        >>> score = AdditiveScore.of(relaxation)
        >>> math.isclose(score({"act": "1"}), relaxation.log_prob({"act": "1"}).item(), rel_tol=1e-6)
        True
        """
        from supernet.relaxations import Relaxation
        from supernet.relaxations.logits import log_prob_of

        if not isinstance(relaxation, Relaxation) or type(relaxation).log_prob is not Relaxation.log_prob:
            raise TrainingError(
                f"the probability of an architecture by a {type(relaxation).__name__} is not known as the product of "
                "its decisions'; give the relaxation of a trainer that decides each choice on its own"
            )
        space, scores = relaxation.space, {}
        with torch.no_grad():
            for label, logits_K in relaxation.scores().items():
                domain = _checked_domain(space, label)
                scores[label] = [log_prob_of(domain, logits_K.double(), decision).item() for decision in domain]
        return cls(space, scores)

    def __call__(self, architecture: Mapping[str, Any]) -> float:
        """Return the score of an architecture.

        Raises:
            ArchitectureError: It is none of the space.
        """
        path = self.space.canonical(architecture)
        # `fsum` gives the same in whatever order the terms stand.
        return math.fsum(term.values.get(key_of(term.scope, path), 0.0) for term in self.terms)

    def _of_choice(self, label: str, scores: OfChoice) -> Term:
        domain = _checked_domain(self.space, label)
        if not isinstance(scores, Mapping):
            if len(scores) != domain.size:
                raise ArchitectureError(
                    f"choice {label!r} has {domain.size} decisions, but {len(scores)} scores are given; give one each"
                )
            of_decisions = dict(zip(map(key_of_decision, domain), scores, strict=True))
        else:
            by_position = {_position(domain, name): score for name, score in scores.items()}
            if len(by_position) != len(domain.options):
                raise ArchitectureError(
                    f"the score of choice {label!r} is given for {', '.join(map(repr, scores))}; give a number for "
                    f"each of {', '.join(map(repr, domain.options if domain.is_set else domain.outcomes))}"
                )
            of_decisions = {key_of_decision(one): sum(by_position[i] for i in domain.positions(one)) for one in domain}
        values = {(key,): _number(score, f"the score of {key!r} in {label!r}") for key, score in of_decisions.items()}
        return Term((label,), {(None,): 0.0, **values})

    def _of_pair(self, labels: tuple[str, str], scores: Mapping[tuple[Any, Any], float]) -> Term:
        if not isinstance(labels, tuple) or len(labels) != 2 or labels[0] == labels[1]:
            raise ArchitectureError(f"a pair is two labels, such as ('first', 'second'), not {labels!r}")
        one, two = (_checked_domain(self.space, label) for label in labels)
        given = {
            (key_of_decision(one.normalized(first)), key_of_decision(two.normalized(second))): _number(
                score, f"the score of {first}, {second}"
            )
            for (first, second), score in scores.items()
        }
        every = itertools.product((None, *map(key_of_decision, one)), (None, *map(key_of_decision, two)))
        return Term(labels, {key: given.get(key, 0.0) for key in every})


def _checked_domain(space: SearchSpace, label: str) -> Domain:
    """Return the domain of a choice whose decisions are few enough to be listed."""
    if label not in space:
        raise ArchitectureError(f"the space has no choice {label!r}; it has: {', '.join(space)}")
    if space[label].size > MAX_DECISIONS:
        raise ArchitectureError(
            f"choice {label!r} has {space[label].size:,} decisions; at most {MAX_DECISIONS:,} are listed for a sum of "
            "scores: give it fewer options, or bounds"
        )
    return space[label]


def _position(domain: Domain, option: Any) -> int:
    """Return the position of an option, by its name, its value or, of a set, that position."""
    if isinstance(option, str) and option in domain.options:
        return domain.options.index(option)
    return domain.position_in_set(option) if domain.is_set else domain.positions(option)[0]


def _number(score: Any, what: str) -> float:
    number = score if isinstance(score, int | float) else getattr(score, "item", lambda: math.nan)()
    if isinstance(score, bool) or not isinstance(number, int | float) or not number < math.inf:
        raise TrainingError(f"{what} is a number, or minus infinity, not {score!r:.80}")
    return float(number)


class FittedScore(AdditiveScore):
    """An additive score that was fitted to architectures whose scores are known; see `fit_scores`.

    Attributes:
        error: Root mean square error, each architecture predicted from four fifths of all, which it was not among.
        deviation: Standard deviation of the scores: what the error would be if nothing were known but their mean.
        tau: Kendall's rank correlation of the scores with those predictions.
    """

    error: float
    deviation: float
    tau: float


def fit_scores(
    space: SearchSpace,
    architectures: Iterable[Mapping[str, Any]],
    scores: Iterable[float],
    *,
    pairs: Iterable[tuple[str, str]] = (),
) -> FittedScore:
    """Return the additive score that is nearest to known scores by least squares, and how far it is to be trusted.

    Of several that are as near it is the smallest: a decision that no architecture has adds nothing to the mean.

    Args:
        space: The space of the architectures.
        architectures: Architectures whose scores are known, such as those that a search has evaluated.
        scores: The score of each. Those that are NaN or infinite are left out, with their architectures.
        pairs: Pairs of labels whose decisions may add something together. Default: none.

    Raises:
        ArchitectureError: One is no architecture of the space, or there is no such choice.
        TrainingError: There are not as many scores as architectures, or fewer than 10 that are numbers.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice({"1": nn.ReLU(), "2": nn.Tanh()}, label=a) for a in "abcd")))
    >>> known = list(space.enumerate())
    >>> fitted = fit_scores(space, known, [sum(map(int, one.values())) for one in known])
    >>> round(fitted({"a": "2", "b": "1", "c": "2", "d": "2"}), 6), round(fitted.error, 6), round(fitted.deviation, 6)
    (7.0, 0.0, 1.0)
    """
    check_space(space)
    paths, given = [space.canonical(one) for one in architectures], [float(score) for score in scores]
    if len(paths) != len(given):
        raise TrainingError(f"{len(paths)} architectures have {len(given)} scores; give one score for each")
    known = [(path, score) for path, score in zip(paths, given, strict=True) if math.isfinite(score)]
    if len(known) < 2 * FOLDS:
        raise TrainingError(
            f"scores are fitted to at least {2 * FOLDS} architectures whose scores are numbers, not to {len(known)}"
        )
    scopes = [*((label,) for label in space), *map(tuple, pairs)]
    for label in {label for scope in scopes for label in scope}:
        _checked_domain(space, label)
    rows = [[feature for scope in scopes for feature in _features(space, scope, path)] for path, _ in known]
    columns = {feature: i for i, feature in enumerate(dict.fromkeys(itertools.chain.from_iterable(rows)))}
    design_NP = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        design_NP[i, [columns[feature] for feature in row]] = 1.0
    y_N = np.array([score for _, score in known])

    # What it was fitted to says little of how far it is right: with as many unknowns as scores it fits anything.
    predicted_N, fold_N = np.empty_like(y_N), np.random.default_rng(0).permutation(len(y_N)) % FOLDS
    for fold in range(FOLDS):
        others_N = fold_N != fold
        constant, weights_P = _least_squares(design_NP[others_N], y_N[others_N])
        predicted_N[~others_N] = constant + design_NP[~others_N] @ weights_P

    constant, weights_P = _least_squares(design_NP, y_N)
    added = dict(zip(columns, weights_P.tolist(), strict=True))
    of_choices = {
        label: {option: added.get(((label,), (i,)), 0.0) for i, option in enumerate(domain.options)}
        for label, domain in space.items()
    }
    of_pairs: dict[Any, dict[Any, float]] = {scope: {} for scope in scopes if len(scope) > 1}
    for (scope, decisions), weight in added.items():
        if len(scope) > 1:
            of_pairs[scope][decisions] = weight
    fitted = FittedScore(space, of_choices, of_pairs, constant=constant)
    fitted.error = float(np.sqrt(np.mean((predicted_N - y_N) ** 2)))
    fitted.deviation = float(np.std(y_N))
    fitted.tau = kendall_tau(predicted_N.tolist(), y_N.tolist())
    return fitted


def _features(space: SearchSpace, scope: tuple[str, ...], path: Architecture) -> Iterator[tuple[Any, Any]]:
    """Yield what an architecture has of a choice, each option on its own, or of a pair, both decisions together."""
    if any(label not in path for label in scope):
        return
    if len(scope) > 1:
        yield scope, key_of(scope, path)
    else:
        for position in space[scope[0]].positions(path[scope[0]]):
            yield scope, (position,)


def _least_squares(design_NP: np.ndarray, y_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Return constant and weights (P,) of least error; of several the smallest."""
    # Centred, for the smallest solution would else make the constant small too, not only what options add.
    mean_P, mean = design_NP.mean(0), y_N.mean()
    weights_P = np.linalg.lstsq(design_NP - mean_P, y_N - mean, rcond=None)[0]
    return float(mean - mean_P @ weights_P), weights_P
