"""What a teacher gives for each sample of a dataset, computed once and stored, so that it need not run in each step."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from supernet.data.loaders import loader_of
from supernet.data.split import DataSplit
from supernet.errors import DataError, FileFormatError
from supernet.execution.state import Forms
from supernet.execution.structure import outline_of
from supernet.files.safetensors_file import read_safetensors, write_safetensors
from supernet.processes.fabric import new_fabric
from supernet.training.agreement import digest_of_samples
from supernet.training.distillation import Taught, is_broken
from supernet.training.forward import Forward, ForwardFn

__all__ = ["WithLogits", "store_logits"]

logger = logging.getLogger("supernet")


def store_logits(
    teacher: nn.Module,
    dataset: Dataset[Any],
    path: str | os.PathLike[str],
    *,
    forward_fn: ForwardFn | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: str = "32-true",
) -> None:
    """Write what a teacher gives, in eval form, for each sample of a dataset, to a safetensors file.

    `WithLogits(dataset, path)` is then a dataset that gives it beside the targets. Samples that are changed at random
    whenever they are read have other outputs than those stored, of which a warning tells: let the teacher itself
    teach there.

    Args:
        teacher: A module whose output is one tensor, a row a sample.
        dataset: A map-style dataset of samples (X, y).
        path: Path of the file.
        forward_fn, batch_size, workers, device, precision: The same as `SupernetTrainer` takes by these names. Default
            batch size: 256.

    Raises:
        DataError: The dataset has no length, or the teacher's output has not a row for each sample, or is NaN or
            infinite for one.

    >>> data = TensorDataset(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
    >>> store_logits(nn.Identity(), data, "logits.safetensors")
    >>> WithLogits(data, "logits.safetensors")[1]
    (tensor([3.]), Taught(target=tensor(1), output=tensor([3.])))
    """
    length = _length(dataset)
    run, fabric = Forward(teacher, forward_fn, None), new_fabric(device, precision)
    loader = loader_of(dataset, batch_size=batch_size, workers=workers, seed=0, shuffle=False)
    forms, module, rows = Forms(teacher), fabric.setup_module(teacher), list[torch.Tensor]()
    with torch.no_grad(), forms.evaluating():
        for X, _ in DataSplit(loader, fabric.to_device, split=run.split).batches(0):
            output = run(module, X)
            if not isinstance(output, torch.Tensor) or not output.dim():
                raise DataError(
                    f"a teacher's output is stored where it is one tensor, a row a sample, and "
                    f"{type(teacher).__name__} gives {outline_of(output)}; give forward_fn, which returns logits alone"
                )
            rows.append(output.detach().cpu())
    logits = torch.cat(rows)
    if len(logits) != length:
        raise DataError(
            f"a teacher's output has a row for each sample, but {type(teacher).__name__} gives {len(logits)} rows for "
            f"{length} samples; give forward_fn, which returns a row a sample"
        )
    if broken := _rows_that_are_broken(logits):
        raise DataError(
            f"the teacher {type(teacher).__name__} gives NaN or infinity for sample {broken[0]} and {len(broken) - 1} "
            "more; look at its weights, and at the samples"
        )
    samples = _digest(dataset)
    if samples is None:
        logger.warning(
            "samples of %s differ from one reading to the next, or cannot be told apart: outputs are stored of those "
            "that were read now",
            type(dataset).__name__,
        )
    write_safetensors(Path(path), {"logits": logits.contiguous()}, {"samples": json.dumps(samples)})


class WithLogits(Dataset[Any]):
    """A dataset that gives (X, Taught(y, output)): beside each target what a teacher gave, from a file.

    `Distillation("stored")` takes it; evaluations take its targets alone.

    Args:
        dataset: The dataset whose outputs were stored.
        path: The file that `store_logits` has written. All of it is read into memory.

    Raises:
        DataError: The file is of another dataset.
        FileFormatError: It is truncated, changed, not of `store_logits`, or has NaN or infinity.
    """

    def __init__(self, dataset: Dataset[Any], path: str | os.PathLike[str]) -> None:
        metadata, tensors = read_safetensors(Path(path))
        if list(tensors) != ["logits"] or "samples" not in metadata:
            raise FileFormatError(
                f"{path} has no outputs of a teacher; let store_logits(teacher, dataset, path) write it"
            )
        self.dataset, self._logits = dataset, tensors["logits"]
        if broken := _rows_that_are_broken(self._logits):
            raise FileFormatError(
                f"{path} has NaN or infinity for sample {broken[0]} and {len(broken) - 1} more; store the outputs of a "
                "teacher whose are finite"
            )
        stored, here = json.loads(metadata["samples"]), _digest(dataset)
        if len(self._logits) != _length(dataset) or (None not in (stored, here) and stored != here):
            raise DataError(
                f"{path} has outputs for {len(self._logits)} samples of another dataset than this "
                f"{type(dataset).__name__} of {_length(dataset)}; store them of this one, in this order"
            )

    def __len__(self) -> int:
        return len(self._logits)

    def __getitem__(self, index: int) -> tuple[Any, Taught]:
        sample = self.dataset[index]
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise DataError(
                f"a sample with a stored output is (X, y), but {type(self.dataset).__name__} gives "
                f"{outline_of(sample)}; let it return (X, y)"
            )
        *X, y = sample
        return (*X, Taught(y, self._logits[index]))


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not len(dataset):
        raise DataError(
            f"outputs are stored of a dataset whose samples have numbers, which {type(dataset).__name__} has not, or "
            "none; let the teacher itself teach"
        )
    return len(dataset)


def _digest(dataset: Any) -> str | None:
    """Return a digest of some samples; None where they are others whenever they are read."""
    first, second = (digest_of_samples(dataset, seed, torch.device("cpu")) for seed in (0, 1))
    return first if first == second else None


def _rows_that_are_broken(logits: torch.Tensor) -> list[int]:
    return [row for row, sample in enumerate(logits) if is_broken(sample)] if is_broken(logits) else []
