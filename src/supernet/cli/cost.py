"""`supernet cost`: what the network that a run has found costs, and whether it keeps limits."""

from __future__ import annotations

import argparse
from typing import Any

from supernet.cli.given import Run, add_architecture, add_costs, add_run, limits_of, print_found, table

__all__: list[str] = []


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cost",
        help="print what the network that a run has found costs, and whether it keeps limits",
        description="Print what the network that a run has found costs, without building it: parameters, bytes of "
        "weights and, with --example, what a pass of it takes. Exits with 1 if it breaks a limit.",
    )
    add_run(parser)
    add_architecture(parser)
    add_costs(parser)
    parser.add_argument(
        "--limits",
        type=limits_of,
        metavar="NAME=MOST,...",
        help="limits that it is to keep: parameters=60000,macs=60%% or NAME=LEAST:MOST (default: those of the run)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    run = Run(options)
    architecture, all_costs = run.architecture(), run.costs(options.limits or ())
    limits = run.limits(run.own_limits(all_costs) if options.limits is None else options.limits, all_costs)
    costs, broken = limits.costs_of(architecture), limits.excess(architecture)
    found = {
        "architecture": architecture,
        "costs": costs,
        "limits": {name: list(bounds) for name, bounds in limits.bounds.items()},
        "keeps_limits": not broken,
    }
    rows = [["cost", "", "limit"]]
    for name, value in costs.items():
        unit = f" {limits.costs[name].unit}" if limits.costs[name].unit else ""
        limit = limits.described(name) if name in limits.bounds else ""
        rows.append([name, f"{value:,.6g}{unit}", f"{limit}, BROKEN" if name in broken else limit])
    print_found(options, found, table(rows))
    return 1 if broken else 0
