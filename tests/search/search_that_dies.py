"""A search with a storage, by TPE or NSGA-II, that is killed at one of its evaluations; the test of studies runs it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

from torch import nn

import supernet.nn as elastic
from supernet import LayerChoice, ValueChoice
from supernet.search import NsgaSearcher, TpeSearcher, search_front

KINDS = {"TPE": partial(TpeSearcher, num_first=4), "NSGA-II": partial(NsgaSearcher, population=4)}
OBJECTIVES = {"accuracy": "max", "parameters": "min"}
LIMITS = {"parameters": (60, 400)}


def new_model():
    """Widths that are evenly spaced, widths that are not, and kinds of layers."""
    sizes = [4, ValueChoice([8, 16, 24, 32], label="even"), ValueChoice([4, 8, 32], label="uneven"), 2]
    layers = [elastic.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers, LayerChoice({"relu": nn.ReLU(), "none": nn.Identity()}, label="act"))


def accuracy(architecture):
    if architecture["even"] == 16:
        return math.nan
    return architecture["even"] / 64 + architecture["uneven"] / 128 + (architecture["act"] == "relu") / 4


def storage_in(directory):
    """Return a storage in a file, which takes a tenth of the time that a database takes."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(directory / "study.log")))


def searched(kind, directory, num_evaluations, dies_at=math.inf, storage=None, **options):
    """Search, and write the name of each architecture that is evaluated in a file."""

    def evaluate(architectures):
        measured = []
        for architecture in architectures:
            with (directory / "begun").open("a") as file:
                file.write(json.dumps(architecture) + "\n")
            if len((directory / "begun").read_text().splitlines()) >= dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            measured.append({"accuracy": accuracy(architecture)})
        return measured

    searcher = partial(KINDS[kind], storage=storage or storage_in(directory), study_name="mlp")
    options = {"objectives": OBJECTIVES, "limits": LIMITS, **options}
    return search_front(
        evaluate, num_evaluations=num_evaluations, model=new_model(), searcher=searcher, progress=False, **options
    )


if __name__ == "__main__":
    searched(sys.argv[1], Path(sys.argv[2]), 14, dies_at=int(sys.argv[3]))
