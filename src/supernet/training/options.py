"""Which options of a trainer must be the same, and where: a table that has each of them."""

from __future__ import annotations

from enum import Flag, auto

__all__: list[str] = []


class Same(Flag):
    """Where an option must be the same."""

    NOWHERE = 0
    RESUMED = auto()  # where a search goes on: what has been trained depends on it
    PROCESSES = auto()  # in all processes of a run
    RUNS = auto()  # in runs that do the same, of which means over seeds are taken
    EVERYWHERE = RESUMED | PROCESSES | RUNS


SAME = {
    "loss": Same.EVERYWHERE,
    "metrics": Same.PROCESSES | Same.RUNS,
    "optimizer": Same.EVERYWHERE,
    "num_epochs": Same.PROCESSES | Same.RUNS,
    "dataset": Same.RUNS,  # what is in it is compared otherwise
    "valid_dataset": Same.RUNS,
    "forward_fn": Same.EVERYWHERE,
    "loss_fn": Same.EVERYWHERE,
    "batch_size": Same.EVERYWHERE,
    "workers": Same.NOWHERE,
    "scheduler": Same.EVERYWHERE,
    "scheduler_interval": Same.EVERYWHERE,
    "grad_clip": Same.EVERYWHERE,
    "accumulate": Same.EVERYWHERE,
    "log_frequency": Same.PROCESSES,
    "device": Same.RUNS,  # its kind is compared between processes
    "devices": Same.PROCESSES | Same.RUNS,
    "num_nodes": Same.PROCESSES | Same.RUNS,
    "strategy": Same.PROCESSES | Same.RUNS,
    "process_timeout": Same.PROCESSES,
    "precision": Same.EVERYWHERE,
    "seed": Same.RESUMED | Same.PROCESSES,
    "run_dir": Same.NOWHERE,  # what processes see there is compared
    "checkpointing": Same.PROCESSES,
    "callbacks": Same.NOWHERE,
    "stop_when": Same.PROCESSES | Same.RUNS,
    "on_nonfinite": Same.EVERYWHERE,
    "progress": Same.NOWHERE,
}

FREE = frozenset(name for name, where in SAME.items() if Same.RESUMED not in where)
OF_EACH_PROCESS = frozenset(name for name, where in SAME.items() if Same.PROCESSES not in where)
NOT_COMPARED = frozenset(name for name, where in SAME.items() if Same.RUNS not in where)
