"""`supernet export`: the network that a run has found, as a file that other programs run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from supernet.cli.given import (
    Run,
    add_architecture,
    add_costs,
    add_data,
    add_run,
    data_of,
    limits_of,
    measured_by,
    parts_of,
    print_found,
    table,
)
from supernet.cli.importing import UsageError
from supernet.deploy import export_network
from supernet.deploy.export import FORMATS
from supernet.training.evaluation import evaluate, freeze

__all__: list[str] = []


def add_to(commands: Any) -> None:
    """Add the command."""
    suffixes = ", ".join(f"{kind.suffix or 'none, a directory'} ({name})" for name, kind in FORMATS.items())
    parser = commands.add_parser(
        "export",
        help="write the network that a run has found as a file that other programs run",
        description="Write the network that a run has found, or another architecture with the supernet's weights, as a "
        "file that other programs run. It is run back and compared before it takes its place. A card beside it, "
        "FILE.json, says architecture, costs, limits, metrics and digests.",
    )
    add_run(parser)
    add_architecture(parser)
    add_costs(parser)
    add_data(
        parser,
        "data to measure the network on, for the card; or (training data, data to measure on), the former for "
        "BatchNorm's statistics where --architecture is given",
        required=False,
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=f"the file, by its suffix: {suffixes}")
    parser.add_argument(
        "--limits",
        type=limits_of,
        metavar="NAME=MOST,...",
        help="limits that it must keep, for the card: parameters=60000,macs=60%% or NAME=LEAST:MOST (default: those of "
        "the run)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    formats = {kind.suffix: name for name, kind in FORMATS.items()}
    if options.to.suffix not in formats:
        raise UsageError(
            f"--to ends in one of {', '.join(filter(None, formats))}, or is a directory, and {options.to} does not"
        )
    if options.example is None:
        raise UsageError("--example is needed: what the network is called with, such as 1,3,32,32")
    run, data = Run(options), None if options.data is None else data_of(options)
    train, valid = parts_of(data)
    architecture, example = run.architecture(), run.example()
    network = run.network() if options.architecture is None else _from_supernet(run, train, example)
    loss, metrics = measured_by(options)
    all_costs = run.costs(options.limits or ())
    limits = run.limits(run.own_limits(all_costs) if options.limits is None else options.limits, all_costs)
    measured = None if valid is None else evaluate(network, loss, metrics, valid, batch_size=options.batch_size)
    card = export_network(
        network,
        example,
        options.to,
        formats[options.to.suffix],
        architecture=architecture,
        limits=limits,
        metrics=measured,
    )
    numbers = {**card["costs"], **card["metrics"]}
    rows = [["file", str(options.to)], *([name, f"{value:,.6g}"] for name, value in numbers.items())]
    print_found(options, {"file": str(options.to), "card": card}, table(rows))
    return 0


def _from_supernet(run: Run, train: Any, example: Any) -> nn.Module:
    """Return the network of another architecture, with the supernet's weights and statistics of its own."""
    network = freeze(run.supernet(), run.architecture(), recalibrate=train, verify=example)
    if train is None and any(getattr(module, "running_mean", None) is not None for module in network.modules()):
        raise UsageError(
            "--data gives (training data, data to measure on) here: the supernet's BatchNorm has statistics of all "
            "networks, so they are computed anew"
        )
    return network
