"""What all processes of a run must have in common: what they are given, and what they come to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from supernet.data.loaders import given_dataset, stateful_dataset
from supernet.data.split import DataSplit
from supernet.execution.state import seeded
from supernet.files.digests import bits
from supernet.processes.fabric import keep_from_ddp
from supernet.training.description import version_of
from supernet.training.options import OF_EACH_PROCESS

if TYPE_CHECKING:
    from supernet.training.preparation import Preparation

__all__: list[str] = []

_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> dtype


def what_is_given(trainer: Preparation) -> dict[str, Any]:
    """Return name -> what a trainer was given, as JSON has it, of all that the processes must be given alike.

    But for what samples hold, which `some_samples` reads.
    """
    modules = {"weight": trainer.model, "weight of the loss": trainer.loss}
    parameters = {
        f"{kind} {name!r}": [list(p.shape), str(p.dtype), p.requires_grad]
        for kind, module in modules.items()
        for name, p in (module.named_parameters() if isinstance(module, nn.Module) else ())
    }
    options = {name: value for name, value in trainer.given_options.items() if name not in OF_EACH_PROCESS}
    space = getattr(trainer, "space", None)
    return {
        "the version of torch": torch.__version__,
        "the version of supernet": version_of("supernet"),
        "the trainer": type(trainer).__qualname__,
        "the model": type(trainer.model).__qualname__,
        "the kind of device": trainer.device.type,
        "run_dir": None if trainer.given_options["run_dir"] is None else "given",
        "the space": None if space is None else space.fingerprint,
        **dict(_flat("", options)),
        **_of_data("the training part", trainer.train_part),
        **_of_data("the validation part", trainer.valid_part),
        **parameters,
        **({} if trainer.teaching is None else {"the teacher": trainer.teaching.identity["teacher"]}),
        "parameters outside of the model": [list(p.shape) for p in trainer.parameters_outside()],
    }


def some_samples(trainer: Preparation) -> dict[str, str | None]:
    """Return name -> a digest of what some samples of a part hold, which all processes must read alike."""
    parts = {"the training part": trainer.train_part, "the validation part": trainer.valid_part}
    return {f"the digest of some samples in {name}": _digest_of_samples(part, trainer) for name, part in parts.items()}


def share_initial_values(trainer: Preparation) -> None:
    """Give all processes the first one's weights and buffers: those of the model, of the loss, and all else trained.

    DDP would do that for the model, later: first trials are run, whose outcome must be the same everywhere.
    """
    modules = [module for module in (trainer.model, trainer.loss) if isinstance(module, nn.Module)]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    trainer.processes.share([*tensors, *trainer.parameters_outside()])
    keep_from_ddp(trainer.model)


def what_has_come_out(trainer: Preparation) -> dict[str, Any]:
    """Return name -> what must be the same in all processes at any moment: steps, learning rates, digests."""
    rates = {
        f"the learning rate of group {position}": float(group["lr"])
        for position, group in enumerate(trainer.given_optimizer.param_groups)
        if "lr" in group
    }
    tensors: dict[str, torch.Tensor] = {f"the weight {name!r}": p for name, p in trainer.model.named_parameters()}
    if isinstance(trainer.loss, nn.Module):
        tensors |= {f"the weight {name!r} of the loss": p for name, p in trainer.loss.named_parameters()}
    tensors |= {f"parameter {n} outside of the model": p for n, p in enumerate(trainer.parameters_outside())}
    for name, value in trainer.named_state.values().items():
        tensors |= dict(_tensors_of(name, value))
    digests = zip(tensors, checksums(list(tensors.values())), strict=True)
    return {
        "the epoch": trainer.epoch,
        "the step": trainer.step,
        "the number of all steps": trainer.global_step,
        "the number of skipped steps": trainer.skipped_steps,
        **rates,
        **{f"the digest of {name}": digest for name, digest in digests},
    }


def checksums(tensors: list[torch.Tensor]) -> list[int]:
    """Return the sum of each tensor's bits, read as whole numbers: cheap, on its device, in any memory format."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        sums.setdefault(tensor.device, []).append(_checksum(tensor.detach()))
    read = {device: iter(torch.stack(of_device).tolist()) for device, of_device in sums.items()}
    return [next(read[tensor.device]) for tensor in tensors]


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.view(_WHOLE_NUMBERS[tensor.element_size()]).sum(dtype=torch.int64)


def _tensors_of(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what all share of an attribute, to any depth: what requires a gradient, parameters, states of generators.

    Buffers, means and statistics are each process's own, in tensors as in arrays.
    """
    state = _state_of_generator(value)
    if state is not None:
        yield f"trainer.{name}, a generator", torch.tensor(list(state)).cumsum(0)
    elif isinstance(value, torch.Tensor):
        if value.requires_grad:
            yield f"trainer.{name}", value
    elif isinstance(value, nn.Module):
        yield from ((f"trainer.{name}.{inner}", p) for inner, p in value.named_parameters())
        for inner, module in value.named_modules():
            for attribute, value in vars(module).items():
                if _state_of_generator(value) is not None:
                    yield from _tensors_of(".".join(filter(None, (name, inner, attribute))), value)
    elif isinstance(value, Mapping) and not isinstance(value, Optimizer):
        for key, inner in value.items():
            yield from _tensors_of(f"{name}[{key!r}]", inner)
    elif isinstance(value, list | tuple | deque):
        for position, inner in enumerate(value):
            yield from _tensors_of(f"{name}[{position}]", inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors_of(f"{name}.{field.name}", getattr(value, field.name, None))
    elif isinstance(value, set | frozenset):  # whose order may be another one in each process
        inside = [_checksum(tensor.detach()).cpu() for inner in value for _, tensor in _tensors_of(name, inner)]
        if inside:
            yield f"trainer.{name}, a set", torch.stack(inside)


def _state_of_generator(value: Any) -> bytes | None:
    """Return the state of a generator of random numbers; None of anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    state: Any
    if isinstance(value, random.Random):
        state = value.getstate()
    elif isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)
    elif isinstance(value, np.random.Generator):
        state = value.bit_generator.state
    elif isinstance(value, np.random.BitGenerator):
        state = value.state
    else:
        return None
    return json.dumps(state, default=lambda array: array.tolist()).encode()


def _of_data(name: str, part: DataSplit) -> dict[str, Any]:
    dataset = given_dataset(part.loader)
    return {
        f"the class of {name}": type(dataset).__qualname__,
        f"the number of samples in {name}": len(dataset) if isinstance(dataset, Sized) else None,
        f"the number of batches in {name}": part.length,
        f"the beginning of {name}, of all of which each process takes its share": part.beginning(),
        f"the digest of which samples are in {name}": part.digest()[:16],
    }


def _digest_of_samples(part: DataSplit, trainer: Preparation) -> str | None:
    if stateful_dataset(part.loader) is not None:  # which reading would move
        return None
    return digest_of_samples(given_dataset(part.loader), trainer.seed, trainer.device)


def digest_of_samples(dataset: Any, seed: int, device: torch.device) -> str | None:
    """Return a digest of what the first, a middle and the last sample hold, drawn with the same random numbers.

    None where that says nothing: they cannot be read by number, or differ from one reading to the next.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not len(dataset):
        return None
    positions = sorted({0, len(dataset) // 2, len(dataset) - 1})
    digests = []
    for _ in range(2):
        result = hashlib.sha256()
        try:
            with seeded(seed, device):
                for position in positions:
                    _take_in(result, dataset[position])  # type: ignore[index]
        except Exception:  # whatever a dataset raises whose samples have other names than numbers
            return None
        digests.append(result.hexdigest()[:16])
    return digests[0] if digests[0] == digests[1] else None


def _take_in(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(bits(value).data)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            digest.update(repr(key).encode())
            _take_in(digest, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _take_in(digest, inner)
    elif hasattr(value, "tobytes"):  # NumPy's arrays, and pictures
        digest.update(value.tobytes())
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__qualname__.encode())


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the plain values in dicts and lists, under names that say where each stands."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for position, inner in enumerate(value):
            yield from _flat(f"{name}[{position}]", inner)
    else:
        yield name, value
