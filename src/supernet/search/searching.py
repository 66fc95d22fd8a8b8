"""Searching for a front: several objectives, under one set of limits after another."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from supernet.checks import check_counts
from supernet.cost import Cost, Limits
from supernet.cost.limits import KNOWN, OF_A_PASS, Limit, checked_costs, known_costs
from supernet.errors import CostError, NonFiniteError, TrainingError
from supernet.search.evaluator import Evaluator
from supernet.search.evolution import EvolutionSearcher
from supernet.search.front import Entry, Front, checked_objectives
from supernet.search.kept_evaluations import KeptEvaluations, checked_many, checked_metrics
from supernet.search.searcher import AskTell, Scored, search
from supernet.search.workers import Workers
from supernet.space import Architecture, SearchSpace
from supernet.training.progress import counting

__all__ = ["search_front"]

Evaluate: TypeAlias = Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]
Budget: TypeAlias = Limits | Mapping[str, Limit]


def search_front(
    evaluate: Evaluator | Evaluate,
    objectives: Mapping[str, str],
    num_evaluations: int,
    *,
    limits: Budget | Sequence[Budget] | None = None,
    costs: Mapping[str, Cost] | None = None,
    example: Any = None,
    model: nn.Module | SearchSpace | None = None,
    searcher: Callable[..., AskTell] = EvolutionSearcher,
    generator: torch.Generator | None = None,
    directory: str | os.PathLike[str] | None = None,
    identity: str | None = None,
    progress: bool = True,
) -> Front:
    """Search for the architectures that no other beats in all objectives, and return all that was measured.

    Under several limits they are searched for one after another, and what was measured under the ones before is known
    to the searches after.

    Args:
        evaluate: An evaluator, as `trainer.evaluator` is; or a function that returns a dict name -> number of each of
            some architectures.
        objectives: Name of a metric or a cost -> "max" or "min". The first is what `Front.best` goes by.
        num_evaluations: Number of architectures that are measured at most, under each limits.
        limits: Limits of costs, a dict as `supernet.cost.Limits` takes it or such an object; or a list of these, for
            several budgets. What breaks them is not measured. Default: none.
        costs: Further costs by name, for objectives, limits and reports.
        example: What the model is called with, where a cost is of what runs: see `Limits`. Default: the first sample
            that an evaluator measures, as a batch of one.
        model: What is searched: the model with choices, or its space where all costs are given. Default: the
            evaluator's supernet.
        searcher: Makes a searcher: is called as `searcher(space, generator=generator, constraint=constraint)`, so
            `functools.partial` gives it other options. Default: `EvolutionSearcher`.
        generator: Source of the random numbers. Default: a new one with the seed 0.
        directory: Directory whose file "evaluations.jsonl" keeps what is measured. What it has of the same weights and
            data is not measured again, so a search that was interrupted goes on, and one under other limits measures
            only what is new; each finds what it would find without. Default: nothing is kept.
        identity: What the evaluations of a function are of, such as a digest of weights and data; with `directory`,
            where an evaluator knows that itself.
        progress: Whether to show a bar where there is a terminal. Default: it is shown.

    Raises:
        TrainingError: An argument cannot be, or an evaluation lacks an objective.
        FileFormatError: The file of evaluations is broken.
        CostError: A limit or cost cannot be, or nothing keeps the limits.
        NonFiniteError: Of all that was measured an objective is NaN.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> def evaluate(architectures):
    ...     return [{"accuracy": 0.9 if one["op"] == "linear" else 0.6} for one in architectures]
    >>> print(search_front(evaluate, {"accuracy": "max", "parameters": "min"}, 10, model=model))
    accuracy  parameters  architecture
         0.6           0  op=skip
         0.9          20  op=linear
    """
    check_counts(num_evaluations=num_evaluations)
    objectives = checked_objectives(objectives)
    if not callable(searcher) or (hasattr(searcher, "tell") and not isinstance(searcher, type)):
        raise TrainingError(
            f"searcher makes a searcher, such as EvolutionSearcher or partial(EvolutionSearcher, population=20), and "
            f"is not {searcher!r:.80}"
        )
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TrainingError(
            f"generator is a torch.Generator, such as torch.Generator().manual_seed(5), and is not {generator!r:.80}"
        )
    if isinstance(evaluate, nn.Module) or not callable(evaluate):
        raise TrainingError(
            f"evaluate is an evaluator, such as trainer.evaluator, or a function of architectures, and is not of type "
            f"{type(evaluate).__name__}"
        )
    if model is None:
        if not isinstance(evaluate, Evaluator):
            raise TrainingError("evaluate is a function, which knows no model; give model=, the model with choices")
        model = evaluate.supernet.model
    space = model if isinstance(model, SearchSpace) else SearchSpace(model)
    budgets: list[Budget | None] = []
    for budget in limits if isinstance(limits, list | tuple) else [limits]:
        if not (budget is None or isinstance(budget, Limits | Mapping)):
            raise TrainingError(f"limits are a dict such as {{'parameters': 60_000}}, or Limits, not {budget!r:.80}")
        budgets.append(budget)
    if not budgets:
        raise TrainingError("limits are a dict, Limits, or a list of these, and the list is empty; give None for none")
    # Made once for all budgets: what costs have recorded of the model they remember.
    all_costs = _costs(model, space, objectives, budgets, costs or {}, example, evaluate)
    constraints = [_limits(space, budget, all_costs) for budget in budgets]
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    measure: Any = evaluate.evaluate_many if isinstance(evaluate, Evaluator) else evaluate
    if directory is not None:
        measure = KeptEvaluations(evaluate, Path(directory), space, _identity(evaluate, identity))
    # An evaluator does as many at once as it has processes; a function does with all as it likes.
    at_once = evaluate.processes.count if isinstance(evaluate, Evaluator) else num_evaluations
    front = Front(space, objectives, budgets=[limits.bounds for limits in constraints if limits is not None])
    known: dict[str, Entry] = {}

    def scores(architectures: Sequence[Architecture], advance: Callable[[int], None]) -> list[Any]:
        measured: list[dict[str, float]] = []
        if isinstance(measure, Workers | KeptEvaluations):  # which say themselves how far they are
            measured = _measured(partial(measure, progress=advance), architectures)
        else:
            for start in range(0, len(architectures), at_once):
                some = architectures[start : start + at_once]
                measured += _measured(measure, some)
                advance(len(some))
        for architecture, metrics in zip(architectures, measured, strict=True):
            canonical = space.canonical(architecture)
            if lacking := [name for name in objectives if name not in metrics and name not in all_costs]:
                raise TrainingError(
                    f"the objective {lacking[0]!r} is neither measured nor a cost; measured are {', '.join(metrics)}, "
                    f"costs are {', '.join(all_costs) or 'none'}"
                )
            entry = Entry(canonical, metrics, {name: cost.of(canonical) for name, cost in all_costs.items()})
            known.setdefault(_name(canonical), entry)  # of what is measured twice, as by random data, the first counts
        return scores_of(known[_name(space.canonical(architecture))] for architecture in architectures)

    def scores_of(entries: Iterable[Entry]) -> list[Any]:
        tuples = map(front.scores, entries)
        # Of one objective a number, for searchers that know but one.
        return [score if len(objectives) > 1 else score[0] for score in tuples]

    for number, constraint in enumerate(constraints, 1):
        searching = _made(searcher, space, generator=generator, constraint=constraint)
        if callable(name_objectives := getattr(searching, "name_objectives", None)):
            name_objectives(objectives)
        is_known = identity is not None or isinstance(evaluate, Evaluator)
        if is_known and callable(name_evaluations := getattr(searching, "name_evaluations", None)):
            name_evaluations(partial(_identity, evaluate, identity))
        # A new searcher, for its constraint is another, and it begins from what the budgets before have measured.
        allowed = [entry for entry in known.values() if constraint is None or constraint(entry.architecture)]
        if allowed:
            searching.tell([entry.architecture for entry in allowed], scores_of(allowed))
        with counting(f"search {number}/{len(constraints)}", num_evaluations, shown=progress) as advance:
            found = search(searching, partial(scores, advance=advance), num_evaluations)
        # A searcher may know of an earlier search, as one with a storage of Optuna's does.
        before = [one for one in found if _name(one.architecture) not in known]
        if directory is not None:  # whose file has more than the objectives
            scores([one.architecture for one in before], lambda count: None)
        else:
            known |= {_name(one.architecture): _entry_of(one, objectives, all_costs) for one in before}
    front.entries = list(known.values())
    if not front.nondominated:
        raise NonFiniteError(
            f"an objective of each of {len(known)} architectures is NaN; look at what the network of one gives, say of "
            f"{front.entries[0].architecture}"
        )
    return front


def _made(searcher: Callable[..., AskTell], *args: Any, **kwargs: Any) -> AskTell:
    try:
        inspect.signature(searcher).bind(*args, **kwargs)
    except TypeError as error:
        raise TrainingError(
            f"searcher is called as searcher(space, generator=generator, constraint=constraint), which "
            f"{getattr(searcher, '__name__', searcher)!s:.80} does not take: {error}"
        ) from error
    except ValueError:  # nobody knows what it takes
        pass
    return searcher(*args, **kwargs)


def _entry_of(scored: Scored, objectives: Mapping[str, str], costs: Mapping[str, Cost]) -> Entry:
    """Return an entry of what a searcher was told of an architecture."""
    architecture, score = scored
    numbers = zip(objectives.items(), score if isinstance(score, tuple) else (score,), strict=True)
    metrics = {name: number if way == "max" else -number for (name, way), number in numbers if name not in costs}
    return Entry(architecture, metrics, {name: cost.of(architecture) for name, cost in costs.items()})


def _name(architecture: Architecture) -> str:
    return json.dumps(architecture)


def _costs(
    model: nn.Module | SearchSpace,
    space: SearchSpace,
    objectives: Mapping[str, str],
    budgets: Sequence[Budget | None],
    given: Mapping[str, Cost],
    example: Any,
    evaluate: Evaluator | Evaluate,
) -> dict[str, Cost]:
    """Return all costs that are known of, given, or asked for by a name that is known."""
    given = checked_costs(given, space)
    for budget in budgets:
        if isinstance(budget, Limits):
            given = {**budget.costs, **given}
    of_limits = [name for budget in budgets if not isinstance(budget, Limits) for name in budget or {}]
    of_objectives = [name for name in objectives if name in KNOWN]
    names = [name for name in dict.fromkeys([*of_objectives, *of_limits]) if name not in given]
    if example is None and isinstance(evaluate, Evaluator) and not set(names).isdisjoint(OF_A_PASS):
        example = evaluate.example()
    return {**known_costs(model, names, example), **given}


def _limits(space: SearchSpace, budget: Budget | None, costs: Mapping[str, Cost]) -> Limits | None:
    if budget is None:
        return None
    if isinstance(budget, Limits):
        if budget.space != space:
            raise CostError(f"{budget!r:.80} are of another space than the model's; make them of this model")
        return budget
    return Limits(space, budget, costs=costs)


def _identity(evaluate: Evaluator | Evaluate, given: str | None) -> str:
    if isinstance(evaluate, Evaluator):
        return evaluate.digest() if given is None else f"{evaluate.digest()} {given}"
    if given is None:
        raise TrainingError(
            "evaluations of a function can be kept only if it is known what they are of; give identity=, such as "
            "a digest of weights and data, which is another where these are others"
        )
    return given


def _measured(measure: Evaluate, architectures: Sequence[Architecture]) -> list[dict[str, float]]:
    """Return what was measured of each, if these are numbers by name."""
    return [checked_metrics(metrics) for metrics in checked_many(measure(architectures), architectures)]
