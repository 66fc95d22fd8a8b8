"""`nni.retiarii.oneshot.pytorch.utils`: replacing, moving to a device, and averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torch.utils.data import Dataset, Subset

from supernet.errors import DataError
from supernet.execution import replace
from supernet.execution.replace import Modules
from supernet.nn import InputChoice, LayerChoice
from supernet.retiarii.absent import names_absent_from

__all__ = ["AverageMeter", "AverageMeterGroup", "replace_input_choice", "replace_layer_choice", "to_device"]


def replace_layer_choice(
    root_module: nn.Module, init_fn: Callable[[LayerChoice], nn.Module], modules: Modules | None = None
) -> Modules:
    """`supernet.replace_layer_choice`, the name of whose first argument is `root`."""
    return replace.replace_layer_choice(root_module, init_fn, modules)


def replace_input_choice(
    root_module: nn.Module, init_fn: Callable[[InputChoice], nn.Module], modules: Modules | None = None
) -> Modules:
    """`supernet.replace_input_choice`, the name of whose first argument is `root`."""
    return replace.replace_input_choice(root_module, init_fn, modules)


Split = Literal["random", "sequential"]


def to_device(obj: Any, device: str | torch.device) -> Any:
    """Return tensors, and lists, tuples and dicts of them, on the device."""
    return apply_to_collection(obj, torch.Tensor, lambda tensor: tensor.to(device))


def halves(dataset: Dataset[Any], split: Split) -> dict[str, Any]:
    """Return the data of a trainer: split at random by the trainer, or cut in the middle as Retiarii did."""
    if split == "random":
        return {"dataset": dataset}
    if split != "sequential":
        raise DataError(f"split is 'random' or 'sequential', not {split!r}")
    count = len(dataset)  # type: ignore[arg-type]
    first, second = range(count // 2), range(count // 2, count)
    return {"dataset": Subset(dataset, first), "valid_dataset": Subset(dataset, second)}


class AverageMeter:
    """The last value of a number, and the average so far."""

    def __init__(self, name: str, fmt: str = ":f") -> None:
        self.name, self.fmt = name, fmt
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        """Take in a value that stands for `n` samples."""
        self.val = float(val)
        self.sum += self.val * n
        self.count += n
        self.avg = self.sum / self.count

    def __str__(self) -> str:
        return f"{{}} {{{self.fmt}}} ({{{self.fmt}}})".format(self.name, self.val, self.avg)

    def summary(self) -> str:
        """Return name and average as text."""
        return f"{{}}: {{{self.fmt}}}".format(self.name, self.avg)


class AverageMeterGroup:
    """Averages of several numbers, by name."""

    def __init__(self) -> None:
        self.meters: dict[str, AverageMeter] = {}

    def update(self, data: Mapping[str, float], n: int = 1) -> None:
        """Take in one value of each."""
        for name, value in data.items():
            self.meters.setdefault(name, AverageMeter(name, ":4f")).update(value, n)

    def __getattr__(self, name: str) -> AverageMeter:
        return self[name]

    def __getitem__(self, name: str) -> AverageMeter:
        return self.__dict__["meters"][name]

    def __str__(self) -> str:
        return "  ".join(map(str, self.meters.values()))

    def summary(self) -> str:
        """Return all averages as text."""
        return "  ".join(meter.summary() for meter in self.meters.values())


__getattr__ = names_absent_from(__name__, "nni.retiarii.oneshot.pytorch.utils")
