"""Which arguments of a trainer must be the same, and where: a table that has each of them."""

from __future__ import annotations

from supernet.training.config import FIELDS, Same

__all__: list[str] = []

OF_THE_TASK = {
    "loss": Same.EVERYWHERE,
    "metrics": Same.PROCESSES | Same.RUNS,
    "optimizer": Same.EVERYWHERE,
    "num_epochs": Same.PROCESSES | Same.RUNS,
    "dataset": Same.RUNS,  # what is in it is compared otherwise
    "valid_dataset": Same.RUNS,
    "forward_fn": Same.EVERYWHERE,
    "loss_fn": Same.EVERYWHERE,
    "scheduler": Same.EVERYWHERE,
    "scheduler_interval": Same.EVERYWHERE,
}
SAME = {**OF_THE_TASK, **{name: field.metadata["same"] for name, field in FIELDS.items()}}

FREE = frozenset(name for name, where in SAME.items() if Same.RESUMED not in where)
OF_EACH_PROCESS = frozenset(name for name, where in SAME.items() if Same.PROCESSES not in where)
NOT_COMPARED = frozenset(name for name, where in SAME.items() if Same.RUNS not in where)
