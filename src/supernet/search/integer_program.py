"""The best architectures by a sum of scores, found and proven by an integer program.

Each decision of each choice is a variable, 1 where it is taken. A choice takes one decision where it is reached, and
none elsewhere; whether it is reached is a sum of the decisions that lead to it. What a few choices add together is a
variable for each of their joint decisions, whose sums are the variables of the single ones: so all that is a sum of
terms is linear, a cost with its limits as well as the score. What is not, such as constraints that are functions, is
asked of each solution, which is excluded if it is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, TypeAlias

import numpy as np

from supernet.checks import check_counts
from supernet.cost import Cost, Limits
from supernet.cost.terms import Term, key_of
from supernet.errors import CostError, MissingExtraError, SpaceError, TrainingError
from supernet.search.additive import MAX_DECISIONS, AdditiveScore
from supernet.search.searcher import Scored
from supernet.space import Architecture, SearchSpace
from supernet.space.constraints import Requirement
from supernet.space.counting import Node

__all__ = ["maximize"]

Sum: TypeAlias = dict[int, float]  # column -> its coefficient

ONE = 0  # the column that is always 1
SCALE = 1e3  # of the largest coefficient of a row: the solver's tolerances are absolute, about 1e-6
INFEASIBLE = 2  # what scipy calls it
MAX_REFUSED = 200  # solutions in a row
MAX_JOINT = 2_000  # decisions of a constraint's choices that become variables


def maximize(score: AdditiveScore, limits: Limits | None = None, *, count: int = 1) -> list[Scored]:
    """Return the architectures of the largest score under limits, best first: there are provably no better ones.

    It is an integer program, solved by `scipy.optimize.milp`. (Scores that differ by less than a billionth of the
    largest are taken for equal.) Its architectures keep the limits exactly, and the constraints of the space.

    Args:
        score: A sum of scores of options and pairs, see `AdditiveScore`.
        limits: Limits of costs that are sums of what a few choices decide: `Parameters`, `Macs`, `WeightMemory`,
            `LayerCost`, `TableCost`, or your own with `terms()`. Default: none.
        count: Number of architectures, the best ones. There are fewer where fewer keep the limits. Default: 1.

    Raises:
        CostError: A cost is not known as such a sum, or no architecture keeps the limits: names the one that breaks
            them least.
        SpaceError: The limits are of another space; the constraints leave nothing, or refuse all that was tried.
        MissingExtraError: SciPy is not installed.

    >>> layers = [LayerChoice({"conv": nn.Linear(4, 4), "skip": nn.Identity()}, label=f"layer{i}") for i in range(3)]
    >>> model = nn.Sequential(*layers)
    >>> space = SearchSpace(model)
    >>> score = AdditiveScore(space, {f"layer{i}": {"conv": 1.0 + i, "skip": 0.5} for i in range(3)})
    >>> maximize(score, supernet.cost.Limits(model, {"parameters": 40}))
    [Scored(architecture={'layer0': 'skip', 'layer1': 'conv', 'layer2': 'conv'}, score=5.5)]
    """
    check_counts(count=count)
    space = score.space
    if limits is not None and limits.space != space:
        raise SpaceError("the limits are of another space than the score; make both of one model")
    bounds, costs = ({}, {}) if limits is None else (limits.bounds, limits.costs)
    terms = {name: costs[name].terms() for name in bounds}
    program = _Program(space)
    for name, of_cost in terms.items():
        program.bound(program.sum_of(of_cost), *bounds[name])
    found = []
    for architecture in islice(_solutions(program, program.sum_of(score.terms), limits), count):
        for name, of_cost in terms.items():
            _check_sum(costs[name], of_cost, architecture)
        found.append(Scored(architecture, score(architecture)))
    if not found:
        raise _nothing_found(space, limits, terms)
    return sorted(found, key=lambda one: -one.score)


def _solutions(program: _Program, objective: Sum, limits: Limits | None) -> Iterator[Architecture]:
    """Yield architectures that keep constraints and limits, by their objective, the largest first."""
    num_refused = 0
    while (architecture := program.solve(objective)) is not None:
        broken = program.space.broken_by(architecture)
        if broken is None and (limits is None or limits(architecture)):
            yield architecture
            num_refused = 0
        else:  # by what is no part of the program, or by less than its tolerance
            num_refused += 1
            if num_refused == MAX_REFUSED:
                what = "a limit by less than can be told" if broken is None else broken.text
                raise SpaceError(
                    f"each of {MAX_REFUSED} architectures in turn, the best by this score, breaks {what}, which cannot "
                    "stand in an integer program; write it as an expression of few choices, or use another search"
                )
        labels = architecture if broken is None or broken.labels is None else broken.labels
        program.exclude({label: architecture[label] for label in labels})


def _check_sum(cost: Cost, terms: Sequence[Term], architecture: Architecture) -> None:
    """Raise `CostError` unless an architecture costs what the terms of the cost add up to."""
    total = math.fsum(term.values[key_of(term.scope, architecture)] for term in terms)
    if not math.isclose(total, cost.of(architecture), rel_tol=1e-6, abs_tol=1e-9):
        raise CostError(
            f"the cost {cost.name!r} of {architecture} is {cost.of(architecture):,.6g}, but its terms add up to "
            f"{total:,.6g}; let {type(cost).__name__}.terms() say what it is the sum of, or use another search"
        )


def _nothing_found(space: SearchSpace, limits: Limits | None, terms: Mapping[str, Sequence[Term]]) -> Exception:
    """Return the error that names the architecture that breaks the limits least."""
    program, beyond = _Program(space), Sum()
    for name, of_cost in terms.items():
        low, high = limits.bounds[name]  # type: ignore[union-attr]
        cost = program.sum_of(of_cost)
        for bound, sign in ((high, -1.0), (low, 1.0)):
            if math.isfinite(bound):
                excess = program.column(math.inf)
                size = sign * max(abs(bound), 1e-12)
                program.bound({**cost, excess: size}, *((low, math.inf) if sign > 0 else (-math.inf, high)))
                beyond[excess] = -1.0
    nearest = next(_solutions(program, beyond, None), None)
    if nearest is None:
        return SpaceError("no architecture keeps the constraints of the space")
    if limits is None or limits(nearest):
        return SpaceError("each architecture that is allowed has a score of minus infinity; let some be taken")
    shown = ", ".join(f"{name} {limits.costs[name].of(nearest):,.6g} ({limits.described(name)})" for name in terms)
    return CostError(
        f"no architecture keeps the limits, as an integer program proves; the nearest has {shown}, as {nearest}; raise "
        "a limit, or make the space larger"
    )


class _Program:
    """The architectures of a space as the solutions of an integer program.

    Args:
        space: The space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._upper, self._lower, self._is_integer = [1.0], [1.0], [1]
        self._rows: list[tuple[Sum, float, float]] = []
        self._joint: dict[tuple[str, ...], dict[Any, int]] = {}
        self._places: dict[str, list[Node]] = {label: [] for label in space}
        self._parents: dict[Node, dict[Node, list[int]]] = {}  # node -> node -> its branches that hold the former
        self._walk(space.nodes)
        self._decisions = {label: self._new_decisions(label) for label in space}
        self._known: dict[Node, Sum] = {}
        self._met = {label: self._any([self._reached(node) for node in self._places[label]]) for label in space}
        for label, columns in self._decisions.items():
            self.bound(_added(dict.fromkeys(columns.values(), 1.0), self._met[label], -1.0), 0.0, 0.0)
        for requirement in space.requirements():
            self._require(requirement)

    def column(self, most: float = 1.0, *, is_integer: bool = False) -> int:
        """Return a new variable from 0 to a number."""
        self._lower.append(0.0)
        self._upper.append(most)
        self._is_integer.append(int(is_integer))
        return len(self._upper) - 1

    def bound(self, of: Sum, low: float, high: float) -> None:
        """Let a sum be within bounds."""
        scale = SCALE / max((abs(coefficient) for coefficient in of.values() if coefficient), default=SCALE)
        self._rows.append(({column: scale * c for column, c in of.items()}, scale * low, scale * high))

    def exclude(self, decisions: Mapping[str, Any]) -> None:
        """Let some decisions not be taken together."""
        columns = [self._decisions[label][key_of((label,), decisions)[0]] for label in decisions]
        self.bound({ONE: 1.0 - len(columns), **dict.fromkeys(columns, 1.0)}, -math.inf, 0.0)

    # --- which choices are reached -----------------------------------------------------------------------------

    def _walk(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node in self._parents:
                continue
            self._parents[node] = {}
            self._places[node.label].append(node)
            for branch, inside in enumerate(node.branches):
                self._walk(inside)
                for inner in inside:
                    self._parents[inner].setdefault(node, []).append(branch)

    def _new_decisions(self, label: str) -> dict[Any, int]:
        """Return the decisions of a choice, in the order of its domain, each with its variable."""
        domain = self.space[label]
        if domain.size > MAX_DECISIONS:
            raise SpaceError(
                f"choice {label!r} has {domain.size:,} decisions; at most {MAX_DECISIONS:,} can stand in an integer "
                "program: give it fewer options, or bounds, or use another search"
            )
        return {key_of((label,), {label: decision})[0]: self.column(is_integer=True) for decision in domain}

    def _reached(self, node: Node) -> Sum:
        """Return what is 1 where the choice at one place is reached."""
        if node in self.space.nodes:
            return {ONE: 1.0}
        if node not in self._known:
            self._known[node] = self._any(
                [
                    _sum(self._taken(parent, branch) for branch in branches)
                    for parent, branches in self._parents[node].items()
                ]
            )
        return self._known[node]

    def _taken(self, node: Node, branch: int) -> Sum:
        """Return what is 1 where the choice at one place is reached and decided so."""
        decided: Sum = {list(self._decisions[node.label].values())[branch]: 1.0}
        if len(self._places[node.label]) == 1 or node in self.space.nodes:
            return decided
        reached, both = self._reached(node), self.column()
        self.bound(_added({both: 1.0}, decided, -1.0), -math.inf, 0.0)
        self.bound(_added({both: 1.0}, reached, -1.0), -math.inf, 0.0)
        self.bound(_added(_added({both: 1.0, ONE: 1.0}, decided, -1.0), reached, -1.0), 0.0, math.inf)
        return {both: 1.0}

    def _any(self, sums: Sequence[Sum]) -> Sum:
        """Return what is 1 where one of some sums is."""
        always: Sum = {ONE: 1.0}
        if always in sums:
            return always
        if len(sums) == 1:
            return sums[0]
        either = self.column()
        for one in sums:
            self.bound(_added({either: 1.0}, one, -1.0), 0.0, math.inf)
        self.bound(_added({either: 1.0}, _sum(sums), -1.0), -math.inf, 0.0)
        return {either: 1.0}

    # --- what choices decide together --------------------------------------------------------------------------

    def _require(self, requirement: Requirement) -> None:
        """Let what breaks a requirement have no variable; what has too many is asked of the solutions instead."""
        scope = requirement.labels
        keys = [[*self._decisions[label], *([] if self._is_always_met(label) else [None])] for label in scope]
        if math.prod(map(len, keys)) <= MAX_JOINT:
            reached = (
                (key, {a: d for a, d in zip(scope, key, strict=True) if d is not None}) for key in product(*keys)
            )
            self.sum_of([Term(scope, {key: 0.0 for key, decided in reached if requirement.allows(decided)})])

    def _is_always_met(self, label: str) -> bool:
        return self._met[label] == {ONE: 1.0}

    def sum_of(self, terms: Iterable[Term]) -> Sum:
        """Return the sum of some terms; what they do not name, or give minus infinity, is never taken."""
        total: Sum = {}
        for scope, values in terms:
            for key, of_key in self._variables(scope, values).items():
                value = values.get(key, -math.inf)
                if value == -math.inf:
                    self.bound(of_key, -math.inf, 0.0)
                else:
                    for column, coefficient in of_key.items():
                        total[column] = total.get(column, 0.0) + value * coefficient
        return total

    def _variables(self, scope: tuple[str, ...], keys: Iterable[Any]) -> dict[Any, Sum]:
        """Return decisions of some choices -> what is 1 where these are taken."""
        if not scope:
            return {(): {ONE: 1.0}}
        if len(scope) == 1:
            (label,) = scope
            of_decisions: dict[Any, Sum] = {(key,): {column: 1.0} for key, column in self._decisions[label].items()}
            return of_decisions | ({} if self._is_always_met(label) else {(None,): self._not_met(label)})
        if scope not in self._joint:
            self._joint[scope] = columns = {key: self.column() for key in keys}
            self.bound({ONE: -1.0, **dict.fromkeys(columns.values(), 1.0)}, 0.0, 0.0)
            for place, label in enumerate(scope):
                for decision, column in self._decisions[label].items():
                    joint = dict.fromkeys((c for key, c in columns.items() if key[place] == decision), 1.0)
                    self.bound({column: -1.0, **joint}, 0.0, 0.0)
        return {key: {column: 1.0} for key, column in self._joint[scope].items()}

    def _not_met(self, label: str) -> Sum:
        return _added({ONE: 1.0}, self._met[label], -1.0)

    # --- solving -----------------------------------------------------------------------------------------------

    def solve(self, objective: Sum) -> Architecture | None:
        """Return the architecture of the largest objective; None where none is left.

        Raises:
            TrainingError: The solver does not say so.
            MissingExtraError: SciPy is not installed.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import coo_array
        except ImportError as error:
            raise MissingExtraError(
                "integer programs are solved by scipy, which is not installed; pip install 'supernet[milp]'"
            ) from error
        entries = [(row, column, c) for row, (of, _, _) in enumerate(self._rows) for column, c in of.items()]
        rows, columns, coefficients = zip(*entries, strict=True) if entries else ((), (), ())
        shape = len(self._rows), len(self._upper)
        matrix = coo_array((coefficients, (rows, columns)), shape=shape).tocsr()
        gain = np.zeros(len(self._upper))
        gain[list(objective)] = list(objective.values())
        gain[ONE] = 0.0
        solved = milp(
            -gain * (SCALE / max(np.abs(gain).max(), 1e-300)),
            constraints=LinearConstraint(
                matrix, [low for _, low, _ in self._rows], [high for _, _, high in self._rows]
            ),
            bounds=Bounds(self._lower, self._upper),
            integrality=self._is_integer,
            options={"mip_rel_gap": 0.0},
        )
        if solved.status == INFEASIBLE:
            return None
        if solved.x is None or not solved.success:
            raise TrainingError(f"the solver of the integer program found no answer: {solved.message}")
        return self.space.follow(lambda label: self._decided(label, solved.x))

    def _decided(self, label: str, x: np.ndarray) -> Any:
        position = int(np.argmax(x[list(self._decisions[label].values())]))
        return next(islice(self.space[label], position, None))


def _added(one: Sum, other: Sum, factor: float = 1.0) -> Sum:
    """Return a sum with so many times another one."""
    total = dict(one)
    for column, coefficient in other.items():
        total[column] = total.get(column, 0.0) + factor * coefficient
    return total


def _sum(sums: Iterable[Sum]) -> Sum:
    return functools.reduce(_added, sums, Sum())
