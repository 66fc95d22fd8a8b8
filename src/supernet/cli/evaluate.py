"""`supernet evaluate`: how good the network that a run has found is."""

from __future__ import annotations

import argparse
from typing import Any

from supernet.cli.given import (
    Run,
    add_architecture,
    add_data,
    add_device,
    add_run,
    data_of,
    measured_by,
    parts_of,
    print_found,
    table,
)
from supernet.cli.importing import UsageError
from supernet.search import SupernetEvaluator
from supernet.training.evaluation import evaluate

__all__: list[str] = []


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure the network that a run has found, or another architecture with the supernet's weights",
        description="Measure the network that a run has found, with the weights in its network.safetensors. With "
        "--architecture, measure that architecture with the weights of the supernet's newest checkpoint, BatchNorm's "
        "statistics computed anew on training data.",
    )
    add_run(parser)
    add_architecture(parser)
    add_data(
        parser,
        "a Dataset or DataLoader that is measured, or a function that returns it; with --architecture a pair of them, "
        "the training data first",
    )
    add_device(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    run, (train, valid) = Run(options), parts_of(data_of(options))
    loss, metrics = measured_by(options)
    architecture = run.architecture()
    if options.architecture is None:
        measured = evaluate(run.network(), loss, metrics, valid, batch_size=options.batch_size, device=options.device)
    else:
        if train is None:
            raise UsageError("--data gives (training data, data to measure on) where --architecture is given")
        evaluator = SupernetEvaluator(
            run.supernet(options.device), (train, valid), loss=loss, metrics=metrics, batch_size=options.batch_size
        )
        measured = evaluator(architecture)
    found = {"architecture": architecture, "metrics": measured}
    print_found(options, found, table([[name, f"{value:,.6g}"] for name, value in measured.items()]))
    return 0
