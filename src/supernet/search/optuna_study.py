"""Searchers whose proposals are Optuna's: a study over the choices of a space."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from supernet.checks import check_counts
from supernet.cost import Limits
from supernet.errors import MissingExtraError, TrainingError
from supernet.nn.domain import Decision, Domain
from supernet.search.front import checked_objectives
from supernet.search.searcher import Constraint, Number, Scored, SpaceSearcher, is_nan
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["OptunaSearcher"]

EVALUATED = "evaluations of"  # attribute of a study
MAX_SETS = 64  # of a choice of sets, that one categorical parameter stands for


class OptunaSearcher(SpaceSearcher):
    """A searcher whose proposals are those of one of Optuna's samplers; needs `supernet[optuna]`.

    The first architectures are drawn by the priors. Then the sampler proposes; a proposal that breaks the constraint
    is told to it as infeasible and by how much, is not asked for, and it proposes again. A choice is a categorical
    parameter of the study, or an integer one where its values are numbers in rising order (their positions, unless they
    are evenly spaced integers); one of sets a number for each option where there are many sets. Each trial has its
    architecture as JSON, and what is limited of it, as attributes; one that is "Fail" was NaN, or is
    "proposed again".

    A subclass says by `sampler` which sampler it is.

    Args:
        space: The space that is searched.
        num_first: Number of architectures that are drawn by the priors before the sampler proposes.
        batch_size: Number of architectures that are asked for at once, as many as are measured at once. Default: 1.
        storage: Where the study is kept: a storage of Optuna, or its URL, such as "sqlite:///search.db". A search with
            the same storage goes on with what is known there; several at once share it; and Optuna's dashboard shows
            it. Default: in memory.
        study_name: Name of the study in the storage; limits are added to it. Default: of the searcher and the space.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        constraint: Says whether an architecture may be asked for, such as `Limits`. Default: all may.

    Raises:
        MissingExtraError: Optuna is not installed.

    >>> from optuna.samplers import RandomSampler
    >>> class Chance(OptunaSearcher):
    ...     def sampler(self, seed):
    ...         return RandomSampler(seed=seed)
    >>> space = SearchSpace(nn.Sequential(LayerChoice({"short": nn.ReLU(), "longer": nn.Tanh()}, label="act")))
    >>> searcher = Chance(space, num_first=1, storage="sqlite:///search.db")
    >>> search(searcher, lambda architectures: [len(a["act"]) for a in architectures], budget=2)[0]
    Scored(architecture={'act': 'longer'}, score=6.0)
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        num_first: int,
        batch_size: int = 1,
        storage: str | optuna.storages.BaseStorage | None = None,
        study_name: str | None = None,
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_counts(num_first=num_first, batch_size=batch_size)
        super().__init__(space, generator=generator, constraint=constraint)
        _import_optuna(type(self).__name__)
        self.num_first, self.batch_size = num_first, batch_size
        name = study_name or f"{type(self).__name__} {space.fingerprint[:12]}"
        if isinstance(constraint, Limits):  # what is infeasible is another's under other limits
            name = ", ".join([name, *(f"{cost} {constraint.described(cost)}" for cost in constraint.bounds)])
        self.study_name = name
        self._parameters = {label: _Parameter(domain) for label, domain in space.items() if domain.size > 1}
        self._trials: dict[str, int] = {}  # of what was asked for and is not told yet: the number of its trial
        self._journal: list[dict[str, Any]] | None = [] if storage is None else None
        self._storage: Any = storage
        self._study: Any = None
        self._objectives: dict[str, str] = {}  # until they are named
        self._evaluated: str | None = None  # what scores are of, where that is known
        if storage is not None:
            try:
                self._open()
            except Exception as error:  # Optuna's, SQLAlchemy's and the database's own
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                shown = re.sub("//[^/]*@", "//...@", repr(storage))  # without a password
                raise TrainingError(
                    f"the storage {shown:.80} cannot be opened: {why}; give a URL such as 'sqlite:///search.db', "
                    "or a storage of Optuna"
                ) from error

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return a new sampler, which draws by a seed; all that it learns from is in the study."""

    def reached(self, decide: Any) -> Architecture:
        """Return the architecture that a function `label -> decision` of the sampler's describes."""
        return self.space.follow(decide)

    def name_objectives(self, objectives: Mapping[str, str]) -> None:
        """Let the study show what the numbers of a score are, as they were measured; `search_front` calls it.

        What `tell` takes stays as it is: higher is better, so what is to be least with its sign changed.

        Args:
            objectives: Name -> "max" or "min", in the order of a score's numbers.

        Raises:
            TrainingError: They are no such dict, or the study in the storage is of others.
        """
        self._objectives = checked_objectives(objectives)
        if self._study is not None:
            self._check_study(len(self._objectives))

    def name_evaluations(self, identity: Callable[[], str]) -> None:
        """Let a study that is kept be of evaluations of one kind, such as of one supernet; `search_front` calls it.

        Args:
            identity: Returns what evaluations are of, such as a digest of weights and data. Is called where there is a
                storage.

        Raises:
            TrainingError: The study in the storage is of other evaluations.
        """
        if self._journal is None:
            self._evaluated = identity()
            if self._study is not None:
                self._check_evaluations()

    # --- asking and telling ------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Architecture]:
        """Return architectures drawn by the priors first, then the sampler's proposals.

        Raises:
            SpaceError: No architecture that keeps the constraint was found.
        """
        check_counts(count=count)
        self._look()
        lacking = self.num_first - len(self._known)
        is_first = lacking > 0 or self._study is None
        asked: dict[str, Architecture] = {}
        for _ in range(min(count, max(lacking, self.batch_size) if is_first else self.batch_size)):
            for architecture in self._draw_new() if is_first else self._proposed():
                asked |= {json.dumps(architecture): architecture}
                self._known |= asked
        return self._asked(asked.values())

    def _proposed(self) -> list[Architecture]:
        """Return a proposal, or a neighbour of it, that is new and keeps the constraint; none where there is none."""
        trial, architecture, name = self._ask_study()
        if not self._is_new(architecture, name):
            # It is not asked again: a proposal takes 10 ms and more, and on NAS-Bench-201 neighbours were better.
            self._tell_study(trial, "proposed again" if self._keeps_constraint(architecture, name) else "infeasible")
            if not (found := self._neighbour(architecture) or self._draw_new()):
                return []
            self._study.enqueue_trial(self._parameters_of(found[0]))
            trial, architecture, name = self._ask_study()
            if not self._is_new(architecture, name):  # another process was faster to take this trial of the storage
                return found
        self._trials[name] = trial.number
        return [architecture]

    def tell(self, architectures: Sequence[Architecture], scores: Sequence[Any]) -> None:
        """Take in how good architectures are: see `SpaceSearcher.tell`."""
        before = set(self._scored)
        super().tell(architectures, scores)
        for architecture in map(self.space.canonical, architectures):
            name = json.dumps(architecture)
            score = self._scored[name].score
            if self._study is None:
                self._open(objectives=len(score) if isinstance(score, tuple) else 1)
            if name in self._trials:
                self._tell_study(self._trials.pop(name), score)
            elif name not in before:
                self._add_to_study(architecture, name, score)

    def _add_to_study(self, architecture: Architecture, name: str, score: Number) -> None:
        """Add what the sampler has not proposed."""
        while True:
            self._study.enqueue_trial(self._parameters_of(architecture))
            trial, _, taken = self._ask_study()
            if taken == name:
                self._tell_study(trial, score)
                return
            # What another process has put in the storage's queue, which may have died, or may take what we put there.
            self._tell_study(trial, "proposed again")

    def _ask_study(self) -> tuple[Any, Architecture, str]:
        """Return a trial that is new, its architecture, and the name of that."""
        # A sampler of its own for each: so all that the next proposals depend on is in the study and the generator.
        seed = int(torch.randint(2**31, (), generator=self.generator))
        with _quiet():
            self._study.sampler = self.sampler(seed)
            trial = self._study.ask()
            decided = self.reached(lambda label: self._suggested(trial, label))
        name = json.dumps(decided)
        trial.set_user_attr("architecture", name)
        allowed = self.space.allows(decided)
        costs = self.constraint.costs_of(decided) if allowed and isinstance(self.constraint, Limits) else {}
        for cost, value in costs.items():
            trial.set_user_attr(cost, value)
        for cost, violation in self._violations(decided, name, costs).items():
            trial.set_constraint(cost, violation)
        return trial, decided, name

    def _tell_study(self, trial: Any, score: Number | str) -> None:
        """Tell the study a score, or that a trial is "infeasible", or is none that counts, being "proposed again"."""
        from optuna.trial import TrialState

        with _quiet():
            if score == "infeasible":
                self._study.tell(trial, state=TrialState.PRUNED)
            elif isinstance(score, str):
                trial.set_user_attr("why", score)
                self._study.tell(trial, state=TrialState.FAIL)
            elif is_nan(score):
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, self._signed(score if isinstance(score, tuple) else (score,)))

    def _signed(self, numbers: Sequence[float]) -> tuple[float, ...]:
        """Return the numbers of a score as the study has them, or the other way round."""
        from optuna.study import StudyDirection

        ways = zip(numbers, self._study.directions, strict=True)
        return tuple(-number if way == StudyDirection.MINIMIZE else number for number, way in ways)

    def _suggested(self, trial: Any, label: str) -> Decision:
        parameter = self._parameters.get(label)
        return next(iter(self.space[label])) if parameter is None else parameter.suggested(trial)

    def _parameters_of(self, architecture: Architecture) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for label, decision in architecture.items():
            if label in self._parameters:
                found |= self._parameters[label].of(decision)
        return found

    def _violations(self, architecture: Architecture, name: str, costs: Mapping[str, float]) -> dict[str, float]:
        """Return by how much each limit is broken; 0 where it is kept."""
        if not self.space.allows(architecture):
            return {"space": 1.0}
        if isinstance(self.constraint, Limits):
            beyond = self.constraint.beyond(costs)
            return {cost: min(beyond.get(cost, 0.0), 1e9) for cost in self.constraint.bounds}
        return {} if self.constraint is None else {"constraint": float(not self._keeps_constraint(architecture, name))}

    # --- the study ---------------------------------------------------------------------------------------------

    def _open(self, objectives: int | None = None) -> None:
        """Make the study, or take the one that is there; without a number of objectives only that."""
        import optuna

        with _quiet(creating=self._journal is not None):
            storage = self._storage if self._journal is None else _in_memory(self._journal)
            if objectives is None:
                is_there = self.study_name in optuna.get_all_study_names(storage)
                self._study = optuna.load_study(study_name=self.study_name, storage=storage) if is_there else None
            else:
                ways: list[Any] = [f"{way}imize" for way in self._objectives.values()] or ["maximize"] * objectives
                self._study = optuna.create_study(
                    study_name=self.study_name, storage=storage, directions=ways, load_if_exists=True
                )
        if self._study is not None and (objectives or self._objectives):
            self._check_study(objectives or len(self._objectives))

    def _check_study(self, objectives: int) -> None:
        """Raise `TrainingError` if the study is of other objectives; say in a new one what it has for people."""
        study = self._study
        if objectives != len(study.directions):
            raise TrainingError(
                f"the study {self.study_name!r} is of {len(study.directions)} objectives, and scores of "
                f"{objectives} are told; give another study_name"
            )
        with _quiet():
            if not study.get_trials(deepcopy=False):
                for parameter in self._parameters.values():
                    if parameter.by_position:
                        study.set_user_attr(parameter.name, ", ".join(parameter.names))
                if self._objectives:
                    study.set_metric_names(list(self._objectives))
            names = study.metric_names
        ways = ["max" if way.name == "MAXIMIZE" else "min" for way in study.directions]
        theirs = {} if names is None else dict(zip(names, ways, strict=True))
        if self._objectives and list(theirs.items()) != list(self._objectives.items()):  # in this order
            raise TrainingError(
                f"the study {self.study_name!r} in the storage is of {theirs or 'objectives without names'}, and this "
                f"search of {self._objectives}; give another study_name"
            )
        self._check_evaluations()

    def _check_evaluations(self) -> None:
        """Raise `TrainingError` if the study's scores are of other evaluations; note in a new one what they are of."""
        if self._evaluated is None:
            return
        with _quiet():
            if not self._study.get_trials(deepcopy=False):
                self._study.set_user_attr(EVALUATED, self._evaluated)
            theirs = self._study.user_attrs.get(EVALUATED, self._evaluated)  # there was none in former versions
        if theirs != self._evaluated:
            raise TrainingError(
                f"the study {self.study_name!r} in the storage is of evaluations of other weights or data "
                f"({theirs[:12]}, and these are of {self._evaluated[:12]}); give another study_name"
            )

    def _look(self) -> None:
        """Take in what a storage that is shared knows: of an earlier search, or of another that runs now."""
        if self._journal is not None:
            return
        if self._study is None:
            self._open()
        if self._study is None:
            return
        from optuna.trial import TrialState

        # What has failed was NaN, and would be again.
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL]):
            name = trial.user_attrs.get("architecture")
            if name is not None and name not in self._scored and "why" not in trial.user_attrs:
                architecture = self.space.canonical(json.loads(name))
                score = self._signed(trial.values or [math.nan] * len(self._study.directions))
                self._known[name] = architecture
                self._scored[name] = Scored(architecture, score if len(score) > 1 else score[0])

    def state_dict(self) -> dict[str, Any]:
        """Return from where the search goes on exactly; a storage that was given holds the study itself."""
        return {**super().state_dict(), "trials": dict(self._trials), "journal": copy.deepcopy(self._journal)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self._trials = dict(state["trials"])
        if self._journal is not None:
            self._journal = copy.deepcopy(state["journal"]) or []
            self._study = None
            if self._journal:
                self._open()


class _Parameter:
    """What stands for a choice in a study."""

    def __init__(self, domain: Domain) -> None:
        self.domain, self.label = domain, domain.label
        outcomes = domain.outcomes
        are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in outcomes)
        self.is_many = domain.is_set and domain.size > MAX_SETS
        self.is_ordered = not domain.is_set and len(outcomes) > 2 and are_numbers and list(outcomes) == sorted(outcomes)
        self.decisions = [] if self.is_many else list(domain)
        self.names = [str(decision) for decision in self.decisions]
        if len(set(self.names)) < len(self.names):  # such as 1 and "1"
            self.names = [str(position) for position in range(len(self.names))]
        # An integer from a first to a last by a step; by position where values are no integers, or not evenly spaced.
        steps = {b - a for a, b in pairwise(outcomes)} if self.is_ordered else set()
        self.by_position = self.is_ordered and not (len(steps) == 1 and all(isinstance(one, int) for one in outcomes))
        self.first, self.step = (0, 1) if self.by_position or not self.is_ordered else (outcomes[0], *steps)
        self.name = f"{self.label} (position)" if self.by_position else self.label

    def suggested(self, trial: Any) -> Decision:
        if self.is_many:
            return self.domain.decision(
                self.domain.best([trial.suggest_float(name, -1, 1) for name in self._options()])
            )
        if self.is_ordered:
            last = self.first + self.step * (len(self.decisions) - 1)
            number = trial.suggest_int(self.name, self.first, last, step=self.step)
            return self.decisions[(number - self.first) // self.step]
        return self.decisions[self.names.index(trial.suggest_categorical(self.label, self.names))]

    def of(self, decision: Decision) -> dict[str, Any]:
        """Return the values of parameters by which this decision is suggested."""
        if self.is_many:
            chosen = self.domain.positions(decision)
            return {name: 1.0 if i in chosen else -1.0 for i, name in enumerate(self._options())}
        position = self.decisions.index(decision)
        return {self.name: self.first + self.step * position if self.is_ordered else self.names[position]}

    def _options(self) -> Iterable[str]:
        return (f"{self.label}[{i}]" for i in range(len(self.domain.options)))


def _in_memory(journal: list[dict[str, Any]]) -> Any:
    """Return a storage that notes all in a list, of which a state can be made."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import BaseJournalBackend

    class InMemory(BaseJournalBackend):
        def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
            return journal[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            journal.extend(logs)

    return JournalStorage(InMemory())


def _import_optuna(who: str) -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"{who} needs Optuna: pip install 'supernet[optuna]'") from error


@contextmanager
def _quiet(creating: bool = False) -> Iterator[None]:
    """Let Optuna not warn of what it calls experimental, nor tell of a study that only we know of."""
    from optuna.exceptions import ExperimentalWarning

    logger = logging.getLogger("optuna.storages.journal")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if not creating:
            yield
            return
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)
