"""`supernet search`: search the supernet that a run has trained, under limits, for a front of networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from supernet.cli.given import (
    Run,
    add_costs,
    add_data,
    add_device,
    add_run,
    count,
    data_of,
    limits_of,
    measured_by,
    parts_of,
    print_found,
)
from supernet.cli.importing import UsageError
from supernet.search import (
    EvolutionSearcher,
    ExhaustiveSearcher,
    NsgaSearcher,
    ProcessWorkers,
    RandomSearcher,
    RegularizedEvolutionSearcher,
    SupernetEvaluator,
    TpeSearcher,
    search_front,
)
from supernet.search.searcher import AskTell

__all__: list[str] = []

FRONT = "front.json"
SEARCHERS: dict[str, Callable[..., AskTell]] = {
    "evolution": EvolutionSearcher,
    "exhaustive": ExhaustiveSearcher,
    "nsga2": NsgaSearcher,
    "random": RandomSearcher,
    "regularized-evolution": RegularizedEvolutionSearcher,
    "tpe": TpeSearcher,
}


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "search",
        help="search the supernet that a run has trained, under limits",
        description="Search the supernet that a run has trained, with the weights of its newest checkpoint, for the "
        "architectures that no other beats in all objectives. Each is measured with BatchNorm's statistics of its own. "
        f"What was found is written to {FRONT} in the run directory, which supernet front shows; what was measured is "
        "kept there too, so that another search measures only what is new.",
    )
    add_run(parser)
    add_data(parser, "a function that returns (training data, validation data), each a Dataset or DataLoader")
    add_costs(parser)
    parser.add_argument(
        "--objective",
        dest="objectives",
        action="append",
        required=True,
        metavar="NAME=max|min",
        help="a metric or a cost, and which way is better; may be given several times, the first is what the best has",
    )
    parser.add_argument(
        "--limits",
        type=limits_of,
        action="append",
        metavar="NAME=MOST,...",
        help="limits of costs: parameters=60000,macs=60%% or NAME=LEAST:MOST; given again, another budget (default: "
        "those of the run)",
    )
    parser.add_argument(
        "--evaluations", type=count, default=1000, metavar="N", help="measured at most, for each budget (default: 1000)"
    )
    parser.add_argument("--searcher", choices=sorted(SEARCHERS), default="evolution", help="(default: evolution)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_device(parser)
    parser.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes that measure, each with model and data of its own (default: 1, this one)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    objectives = {}
    for text in options.objectives:
        name, _, way = text.partition("=")
        if way not in ("max", "min"):
            raise UsageError(f"--objective is NAME=max or NAME=min, not {text!r}")
        if name in objectives:
            raise UsageError(f"--objective {name} is given twice")
        objectives[name] = way
    run, data = Run(options), data_of(options)
    budgets = options.limits or []
    # Objectives among the names may be metrics; `costs` takes those that are costs.
    costs = run.costs([*objectives, *(name for limits in budgets for name in limits)], parts_of(data)[1])
    # The supernet has been trained within the limits of its run, and knows nothing of what is beyond.
    budgets = budgets or [run.own_limits(costs)]
    constraints = [run.limits(limits, costs) for limits in budgets]
    evaluator = _evaluator(options, run, data)
    identity = f"{options.loss} {options.metrics}"
    with ExitStack() as stack:
        measure: Any = evaluator
        if options.workers > 1:
            measure = stack.enter_context(ProcessWorkers(partial(_in_worker, options), options.workers))
            # As `search_front` says of an evaluator: whoever measures, what is kept is the same.
            identity = f"{evaluator.digest()} {identity}"
        front = search_front(
            measure,
            objectives,
            options.evaluations,
            model=run.model,
            limits=constraints,
            costs=costs,
            searcher=SEARCHERS[options.searcher],
            generator=torch.Generator().manual_seed(options.seed),
            directory=run.directory,
            identity=identity,
        )
    front.save(run.directory / FRONT)
    print_found(options, front.to_json(), str(front))
    return 0


def _evaluator(options: argparse.Namespace, run: Run, data: Any) -> SupernetEvaluator:
    loss, metrics = measured_by(options)
    return SupernetEvaluator(
        run.supernet(options.device), data, loss=loss, metrics=metrics, batch_size=options.batch_size
    )


def _in_worker(options: argparse.Namespace, worker: int) -> SupernetEvaluator:
    return _evaluator(options, Run(options), data_of(options))
