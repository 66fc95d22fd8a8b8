"""Devices, processes, nodes and precision, which Lightning Fabric carries."""

from __future__ import annotations

import atexit
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from supernet.errors import TrainingError
from supernet.processes.messages import is_about_processes, set_timeout

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []

TIMEOUT = 600.0  # seconds
STARTING = 60.0  # at least, until all are there: imports take long on a busy machine, and do not begin together

# What gloo and NCCL can send.
_SENT = {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}
_SENT |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def new_fabric(
    device: str | torch.device | None,
    precision: str,
    *,
    strategy: str = "auto",
    devices: int | None = None,
    num_nodes: int | None = None,
    unused_parameters: bool = False,
    timeout: float = TIMEOUT,
) -> Fabric:
    """Return a Fabric whose processes are there.

    Under `torchrun` every process of it takes part, with DDP, unless something else is asked for.

    Args:
        device: A kind of device ("cpu", "cuda"), or one device of it where there is one process. Default: an
            accelerator if there is one.
        precision: Precision by the name that Fabric has for it, such as "bf16-mixed".
        strategy: Strategy by the name that Fabric has for it. Default: DDP where there are several processes.
        devices: Number of processes on this node. Default: as `torchrun` says, else 1.
        num_nodes: Number of nodes. Default: as `torchrun` says, else 1.
        unused_parameters: Whether a step may leave parameters without a gradient, which DDP must be told. Default: not.
        timeout: Seconds that a process waits for the others, once all are there. Default: 600.

    Raises:
        TrainingError: Something of this is unknown, or not to be had on this machine; not all processes come.
    """
    from lightning_fabric import Fabric  # here, for its import takes as long as torch's
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints what it was asked for
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    devices = local if devices is None else devices
    # Processes that Fabric itself has launched know WORLD_SIZE alone.
    num_nodes = max(1, world // max(local, devices)) if num_nodes is None else num_nodes
    chosen: Any = strategy
    patience = max(timeout, STARTING)
    if strategy in ("auto", "ddp") and devices * num_nodes > 1:
        chosen = DDPStrategy(find_unused_parameters=unused_parameters, timeout=timedelta(seconds=patience))
    try:
        kind = None if device is None else torch.device(device)
        one = [kind.index] if kind is not None and kind.index is not None and kind.type != "cpu" else devices
        fabric = Fabric(
            accelerator="auto" if kind is None else kind.type,
            devices=one if devices == 1 else devices,
            num_nodes=num_nodes,
            strategy=chosen,
            precision=precision,  # type: ignore[arg-type]
        )
    except Exception as error:  # Fabric raises many kinds, its own private ones among them
        raise TrainingError(
            f"device {device!r} with precision {precision!r} and strategy {strategy!r} is not to be had: {error}"
        ) from error
    if fabric.device.type == "cuda" and devices > torch.cuda.device_count():
        raise TrainingError(
            f"{devices} processes run on this machine, each on a CUDA device of its own, and torch sees "
            f"{torch.cuda.device_count()} there; start no more processes than that, or pass device='cpu'"
        )
    try:
        fabric.launch()
    except RuntimeError as error:
        if not is_about_processes(error):
            raise
        raise TrainingError(
            f"not all of the {fabric.world_size} processes have come within {patience:g} seconds: {error}"
        ) from error
    if fabric.world_size > 1:
        set_timeout(timeout)
        atexit.register(_leave_process_group)
    if not fabric.is_global_zero:  # the first process speaks for all
        logging.getLogger("supernet").setLevel(logging.ERROR)
    return fabric


def keep_from_ddp(model: nn.Module) -> None:
    """Let DDP leave those buffers alone whose dtype cannot be sent: it would fail at the first of them."""
    known: list[str] = list(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    odd = [name for name, buffer in model.named_buffers(remove_duplicate=False) if buffer.dtype not in _SENT]
    if odd:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*known, *odd])


def _leave_process_group() -> None:
    """End gloo's threads before the interpreter goes: one that still runs then aborts the process, now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
