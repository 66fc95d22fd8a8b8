"""Device and precision, which Lightning Fabric carries."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from supernet.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []


def new_fabric(device: str | torch.device | None, precision: str) -> Fabric:
    """Return a Fabric for one process on one device.

    Raises:
        TrainingError: the device or the precision is unknown, or not to be had on this machine.
    """
    from lightning_fabric import Fabric  # here, for its import takes as long as torch's

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints what it was asked for
    try:
        if device is None:
            return Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]
        kind = torch.device(device)
        devices = 1 if kind.index is None or kind.type == "cpu" else [kind.index]
        return Fabric(accelerator=kind.type, devices=devices, precision=precision)  # type: ignore[arg-type]
    except Exception as error:  # Fabric raises many kinds, its own private ones among them
        raise TrainingError(f"device {device!r} with precision {precision!r} is not to be had: {error}") from error
