"""Found networks beside random ones under the same limits, and beside random search in equal wall time."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import torch
from rich.table import Table
from torch import nn
from torch.utils.data import ConcatDataset, Dataset

from supernet.checks import check_counts, check_functions
from supernet.compare.statistics import Difference, half_interval, welch
from supernet.cost import Cost, Limits, Parameters
from supernet.cost.limits import Limit
from supernet.data.loaders import derive_seed
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution.state import preserve_random_numbers
from supernet.ranking import kendall_tau
from supernet.reports.comparisons import plot_comparison
from supernet.search import Entry
from supernet.space import Architecture, freeze
from supernet.space.files import write_atomically

__all__ = ["FOUND", "RANDOM", "RANDOM_SEARCH", "Comparison", "Contestant", "Row", "Searched", "compare_under_limits"]

FOUND, RANDOM, RANDOM_SEARCH = METHODS = "found", "random", "random search at equal time"

Budget = Mapping[str, Limit]


class Searched(Protocol):
    """What a search gives, such as a `Front`.

    With a method `estimate(architectures)` too, which returns a number for each, how good it takes them to be is drawn,
    and its ranks are compared with those of training alone.
    """

    def best(self, limits: Limits) -> Entry | Mapping[str, Any]:
        """Return the best architecture that keeps limits, or a front's entry that has it."""
        ...


@dataclass(frozen=True)
class Contestant:
    """A network that was trained from new weights.

    Args:
        architecture: Label -> decision.
        seed: Seed of the search, the draw and the training.
        score: What was measured of it on the test data.
        costs: Name -> what it costs.
        estimate: What the search took it to be worth; None where it says nothing.
        network: The trained network, where it was found; of others none is kept.
    """

    architecture: Architecture
    seed: int
    score: float
    costs: dict[str, float]
    estimate: float | None = None
    network: nn.Module | None = None


@dataclass
class Row:
    """What one method gave under one budget.

    Args:
        budget: The limits, as they were given.
        method: "found", "random", or "random search at equal time".
        contestants: What was trained.
        seconds: Wall time of the search for each seed: of training a supernet, too.
        num_tried: Number of architectures that random search trained, for each seed.
    """

    budget: dict[str, Any]
    method: str
    contestants: list[Contestant] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    num_tried: list[int] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """The score of each seed; of several networks of a seed it is their mean."""
        seeds = dict.fromkeys(one.seed for one in self.contestants)
        return [mean(one.score for one in self.contestants if one.seed == seed) for seed in seeds]

    def cost(self, name: str) -> float:
        """Return the mean of a cost over what was trained."""
        return mean(one.costs[name] for one in self.contestants)


class Comparison:
    """What was compared: a table, a picture, and rows for a file.

    Args:
        rows: The rows, those of a budget one after another, and what was found first.
        score: What the scores are called.

    Attributes:
        rows: The rows.
    """

    def __init__(self, rows: Sequence[Row], score: str = "test_accuracy") -> None:
        self.rows, self.score = list(rows), score

    def row(self, budget: Budget, method: str) -> Row:
        """Return the row of a budget and a method.

        Raises:
            TrainingError: There is none.
        """
        for row in self.rows:
            if (row.budget, row.method) == (dict(budget), method):
                return row
        known = "; ".join(f"{row.budget} {row.method!r}" for row in self.rows)
        raise TrainingError(f"nothing was compared of {dict(budget)} and {method!r}; there are: {known}")

    def difference(self, budget: Budget, method: str) -> Difference:
        """Return by how much the found networks of a budget are better than another method's.

        The interval of 95 % and the p-value are Welch's, of the scores of the seeds, which are independent: each seed
        has its own search, draws and trainings.
        """
        return welch(self.row(budget, FOUND).scores, self.row(budget, method).scores)

    def rank_correlations(self) -> list[float]:
        """Return, for each seed, Kendall's tau between the search's estimates and the scores of random networks.

        Those of all budgets count together; what a search has chosen by its estimates is left out. A seed without
        estimates has none.
        """
        sample = [one for row in self.rows if row.method == RANDOM for one in row.contestants]
        of_seeds = (
            [one for one in sample if one.seed == seed and one.estimate is not None]
            for seed in dict.fromkeys(one.seed for one in sample)
        )
        return [kendall_tau([float(one.estimate or 0) for one in s], [one.score for one in s]) for s in of_seeds if s]

    # --- for people and files ----------------------------------------------------------------------------------

    def table(self) -> Table:
        """Return a table for `rich`: means with half of Student's interval of 95 %, and the differences of the found.

        >>> row = Row({"parameters": 9}, "found", [Contestant({}, 0, 90.0, {"parameters": 8})], [2.0])
        >>> comparison = Comparison([row])
        >>> comparison.table().row_count, comparison.to_json()[0]["test_accuracy"]
        (1, [90.0])
        """
        num_seeds = max((len(row.scores) for row in self.rows), default=0)
        table = Table(
            title=f"{_in_words(self.score)} after training from new weights, {num_seeds} seeds, 95 % intervals"
        )
        for heading in ("limit", "method", "parameters", _in_words(self.score), "found is better by", "p", "search, s"):
            table.add_column(heading, justify="left" if heading in ("limit", "method") else "right")
        for row, following in zip(self.rows, [*self.rows[1:], None], strict=True):
            cells = ["-", "-"]
            if row.method != FOUND:
                gap = self.difference(row.budget, row.method)
                cells = [f"{gap.mean:+.1f} {_plus_minus((gap.high - gap.low) / 2)}", _number(gap.p_value, ".3f")]
            tried = f" ({mean(row.num_tried):.0f} trained)" if row.num_tried else ""
            table.add_row(
                _of_budget(row.budget),
                row.method + tried,
                f"{row.cost('parameters'):,.0f}",
                f"{mean(row.scores):.1f} {_plus_minus(half_interval(row.scores))}",
                *cells,
                f"{mean(row.seconds):.1f}" if row.seconds else "-",
                end_section=following is not None and following.budget != row.budget,
            )
        for column in table.columns:
            if column.justify == "right":  # where the terminal is narrow, words are wrapped, and no number is cut
                column.min_width = max((len(str(cell)) for cell in column.cells), default=0)
        return table

    def to_json(self) -> list[dict[str, Any]]:
        """Return a dict for each row: budget, method, means of costs, the score of each seed, seconds of the search.

        A budget of one limit is its number. Seconds are the mean over the seeds, and 0 where nothing was searched.
        """
        return [
            {
                "budget": next(iter(row.budget.values())) if len(row.budget) == 1 else row.budget,
                "method": row.method,
                **{name: row.cost(name) for name in row.contestants[0].costs},
                self.score: row.scores,
                "seconds": mean(row.seconds) if row.seconds else 0.0,
            }
            for row in self.rows
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a JSON list.

        Args:
            path: Path of the file.
        """
        write_atomically(Path(path), json.dumps(self.to_json(), indent=2) + "\n")

    def plot(self, path: str | os.PathLike[str]) -> list[Path]:
        """Plot the score of each network over the first cost that is limited, and what the search took it for.

        Args:
            path: Path of the pictures, without a suffix.

        Returns:
            The PNG's and the SVG's path.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        cost = next(iter(self.rows[0].budget))
        points: dict[str, list[tuple[float, float, float | None]]] = {method: [] for method in METHODS}
        for row in self.rows:
            points[row.method] += [(one.costs[cost], one.score, one.estimate) for one in row.contestants]
        marks = [row.budget[cost] for row in self.rows if isinstance(row.budget.get(cost), int | float)]
        return plot_comparison(points, Path(path), x=cost, y=_in_words(self.score), marks=marks)


def compare_under_limits(
    new_model: Callable[[], nn.Module],
    budgets: Sequence[Budget],
    search: Callable[[int], Searched],
    train: Callable[[nn.Module, Dataset[Any], int], object],
    measure: Callable[[nn.Module, Dataset[Any]], float],
    data: Sequence[Dataset[Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_random: int = 4,
    example: Any = None,
    costs: Mapping[str, Cost] | None = None,
    score: str = "test_accuracy",
    processes: int = 1,
    on_progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare what a search finds under limits with chance and with random search.

    Under each budget, and for each seed, the found network, `num_random` random ones that keep the same limits, and
    what random search finds are trained by one recipe from new weights, on training and validation data together, and
    then measured on the test data, which nothing has seen before. Random search trains random architectures that keep
    the limits on the training data, by that recipe, until it has taken as much wall time as the search took, that of
    the supernet's training included; the one that measures best on the validation data is what it finds. An
    architecture that it has begun when the time is up is finished, and at least one is tried.

    Args:
        new_model: Makes the model with choices, with new weights.
        budgets: The limits, each a dict as `supernet.cost.Limits` takes it.
        search: Function `seed -> what was searched`, which has `best(limits)` as a `Front` has: it is called once for a
            seed, and that is asked for each budget. It may look at training and validation data alone.
        train: The recipe, a function `(network, dataset, seed)` that trains a network in place.
        measure: A function `(network, dataset) -> number`; higher is better.
        data: Three datasets: to train on, to choose by, to test on.
        seeds: The seeds, each of a search, of draws and of trainings of its own. Default: 0, 1 and 2.
        num_random: Number of random networks under each budget, for each seed. Default: 4.
        example: What the model is called with, where a limit needs it: see `Limits`.
        costs: Further costs by name, for limits and the report.
        score: What the measured number is called. Default: "test_accuracy".
        processes: Number of processes that share the seeds and budgets, each with as many threads as this one; with
            more than one, all that is given must be picklable. As many run at once from beginning to end, so that equal
            time is equal work. Default: 1, which is this one.
        on_progress: Is called with a line of text after each step. Default: nothing is told.

    Raises:
        TrainingError: An argument cannot be, or a search has no `best`.
        CostError: A limit cannot be, nothing keeps it, or what was found breaks it.
        NonFiniteError: A measured number is NaN.

    >>> def new_model():
    ...     width = ValueChoice([2, 4, 8, 16], label="width")
    ...     return nn.Sequential(supernet.nn.Linear(1, width), supernet.nn.Linear(width, 1))
    >>> def search_by_width(seed):  # to be replaced by a search of a supernet
    ...     def evaluate(architectures):
    ...         return [{"width": one["width"]} for one in architectures]
    ...     return search_front(evaluate, {"width": "max"}, 4, limits=budgets, model=new_model())
    >>> def train(network, dataset, seed):
    ...     pass  # to be replaced by a training
    >>> def measure(network, dataset):
    ...     return network[0].out_features + len(dataset)
    >>> data = [TensorDataset(torch.zeros(n, 1)) for n in (3, 2, 1)]
    >>> budgets = [{"parameters": 30}]  # a network has 3 * width + 1
    >>> comparison = compare_under_limits(new_model, budgets, search_by_width, train, measure, data, num_random=8)
    >>> comparison.row({"parameters": 30}, "found").scores
    [9.0, 9.0, 9.0]
    >>> comparison.difference({"parameters": 30}, "random").mean > 0
    True
    """
    check_counts(num_random=num_random, processes=processes)
    check_functions(new_model=new_model, search=search, train=train, measure=measure)
    if len(data) != 3:
        raise TrainingError(f"data is (to train on, to choose by, to test on), not {len(data)} datasets")
    if not budgets or not seeds:
        raise TrainingError("there is nothing to compare; give a budget and a seed at least")
    tell = on_progress or (lambda text: None)
    course = _Course(new_model, budgets, search, train, measure, data, num_random, example, costs or {})
    compared: dict[tuple[int, int], list[Row]] = {}  # number of the budget and of the seed -> a row of each method
    for i, k, result in _run(course, seeds, processes):
        if k is None:
            tell(f"seed {seeds[i]}: searched in {mean(plan.seconds for plan in result):.1f} s under each budget")
            continue
        compared[k, i] = result
        scores = ", ".join(f"{row.method} {row.scores[-1]:.1f}" for row in result)
        tell(f"seed {seeds[i]}, {_of_budget(budgets[k])}: {scores}")
    rows = [Row(dict(budget), method) for budget in budgets for method in METHODS]
    for k, i in sorted(compared):
        # In the order of budgets and seeds, whichever process was done first.
        for row, new in zip(rows[k * len(METHODS) :], compared[k, i], strict=False):
            row.contestants += new.contestants
            row.seconds += new.seconds
            row.num_tried += new.num_tried
    return Comparison(rows, score)


def _run(course: _Course, seeds: Sequence[int], processes: int) -> Iterator[tuple[int, int | None, Any]]:
    """Yield the number of a seed with None and its plans, and with the number of a budget and the rows of these."""
    if processes == 1:
        for i, seed in enumerate(seeds):
            plans = course.search(seed)
            yield i, None, plans
            for k, plan in enumerate(plans):
                yield i, k, course.compare(plan)
        return
    threads = torch.get_num_threads()
    # Spawned, for a fork of a process that has computed by several threads may hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin_process, (threads,))
    try:
        waiting: dict[Future[Any], tuple[int, int | None]]
        waiting = {pool.submit(course.search, seed): (i, None) for i, seed in enumerate(seeds)}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                i, of_budget = waiting.pop(future)
                result = future.result()
                yield i, of_budget, result
                if of_budget is None:
                    waiting |= {pool.submit(course.compare, plan): (i, k) for k, plan in enumerate(result)}
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process(threads: int) -> None:
    """Use as many threads, and end at once when the process that compares is no more, whatever is being trained."""
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None, "a process that was spawned has one"

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@dataclass
class _Plan:
    """What is compared for one seed under one budget: what was found, in what time, and who is drawn against it."""

    seed: int
    budget: Budget
    found: Architecture
    seconds: float
    rivals: list[Architecture]
    estimates: Sequence[Any]  # of what was found, and of the rivals


@dataclass
class _Course:
    """What all methods go through alike."""

    new_model: Callable[[], nn.Module]
    budgets: Sequence[Budget]
    searching: Callable[[int], Searched]
    train: Callable[[nn.Module, Dataset[Any], int], object]
    measure: Callable[[nn.Module, Dataset[Any]], float]
    data: Sequence[Dataset[Any]]
    num_random: int
    example: Any
    costs: Mapping[str, Cost]

    def search(self, seed: int) -> list[_Plan]:
        """Return what is compared under each budget."""
        with preserve_random_numbers():
            limits_of = self._limits()
            began = time.perf_counter()
            searched = self.searching(seed)
            if not callable(getattr(searched, "best", None)):
                raise TrainingError(
                    f"search returns what has best(limits), such as a Front, not {type(searched).__name__}"
                )
            seconds = time.perf_counter() - began
            return [self._plan(seed, searched, seconds, budget, limits_of(budget)) for budget in self.budgets]

    def _limits(self) -> Callable[[Budget], Limits]:
        # One of its own, for what is searched is changed by its trainer.
        model = self.new_model()
        costs = {"parameters": Parameters(model), **self.costs}
        return lambda budget: Limits(model, budget, example=self.example, costs=costs)

    def _plan(self, seed: int, searched: Searched, seconds: float, budget: Budget, limits: Limits) -> _Plan:
        began = time.perf_counter()
        best = searched.best(limits)
        # What is asked for a budget is part of the search, and random search gets its time too.
        seconds += time.perf_counter() - began
        found = dict(best.architecture if isinstance(best, Entry) else best)
        limits.check(found)  # before anything is trained: what breaks them is no rival of those that keep them
        # Numbers of their own, so that chance's networks are not the first ones of random search.
        rivals = list(islice(_drawn(limits, torch.Generator().manual_seed(derive_seed(seed, 1))), self.num_random))
        estimate = getattr(searched, "estimate", None)
        estimates = [None] * (1 + len(rivals)) if estimate is None else estimate([found, *rivals])
        return _Plan(seed, budget, found, seconds, rivals, estimates)

    def compare(self, plan: _Plan) -> list[Row]:
        """Return the rows of one seed and budget: train what was found and drawn, and what random search finds."""
        with preserve_random_numbers():
            limits = self._limits()(plan.budget)
            found, at_random, by_random_search = rows = [Row(dict(plan.budget), method) for method in METHODS]
            found.seconds.append(plan.seconds)
            chosen = self._random_search(plan.seed, limits, plan.seconds, by_random_search)
            estimate_of_found, *estimates_of_rivals = plan.estimates
            for row, architectures, estimates in (
                (found, [plan.found], [estimate_of_found]),
                (at_random, plan.rivals, estimates_of_rivals),
                (by_random_search, [chosen], [None]),
            ):
                for architecture, estimate in zip(architectures, estimates, strict=True):
                    row.contestants.append(self._contestant(plan.seed, limits, architecture, estimate, row is found))
            return rows

    def _random_search(self, seed: int, limits: Limits, seconds: float, row: Row) -> Architecture:
        """Return the best of the random architectures that are trained until as much time has passed."""
        train_set, valid_set, _ = self.data
        began, best, chosen, tried = time.perf_counter(), -math.inf, None, 0
        for architecture in _drawn(limits, torch.Generator().manual_seed(derive_seed(seed, 2))):
            score, _ = self._score(architecture, seed, train_set, valid_set)
            tried += 1
            # The first one counts whatever it has, be that minus infinity.
            if chosen is None or score > best:
                best, chosen = score, architecture
            # Asked after a training, not before: what has begun is finished, in favour of random search.
            if time.perf_counter() - began >= seconds:
                break
        assert chosen is not None
        row.seconds.append(time.perf_counter() - began)
        row.num_tried.append(tried)
        return chosen

    def _contestant(
        self, seed: int, limits: Limits, architecture: Architecture, estimate: Any, kept: bool
    ) -> Contestant:
        train_set, valid_set, test_set = self.data
        # All choices have been made, so what they were made by is free to be trained on.
        score, network = self._score(architecture, seed, ConcatDataset([train_set, valid_set]), test_set)
        return Contestant(architecture, seed, score, limits.costs_of(architecture), estimate, network if kept else None)

    def _score(
        self, architecture: Architecture, seed: int, train_set: Dataset[Any], on: Dataset[Any]
    ) -> tuple[float, nn.Module]:
        torch.manual_seed(seed)
        network = freeze(self.new_model(), architecture)
        self.train(network, train_set, seed)
        score = float(self.measure(network, on))
        if math.isnan(score):
            raise NonFiniteError(f"what was measured of the trained network is NaN, of {architecture}")
        return score, network


def _drawn(limits: Limits, generator: torch.Generator) -> Iterator[Architecture]:
    """Yield architectures that keep limits, drawn at random, each once; ends where many draws give none that is new."""
    seen, misses = set[str](), 0
    while misses < 100:
        architecture = limits.sample(generator)
        name = json.dumps(architecture)
        misses = misses + 1 if name in seen else 0
        if name not in seen:
            seen.add(name)
            yield architecture


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def _of_budget(budget: Budget) -> str:
    return ", ".join(f"{limit:,}" if isinstance(limit, int) else str(limit) for limit in budget.values())


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _plus_minus(value: float) -> str:
    return "" if math.isnan(value) else f"± {value:.1f}"
