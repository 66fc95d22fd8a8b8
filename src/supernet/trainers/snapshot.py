"""A trainer's whole state as a tree of plain values, and back: what a checkpoint holds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.errors import FileFormatError, TrainingError
from supernet.execution.slot import former_names
from supernet.execution.state import RandomState, overwritten

if TYPE_CHECKING:
    from supernet.trainers.loop import TrainingLoop

__all__: list[str] = []

logger = logging.getLogger("supernet")


def snapshot(trainer: TrainingLoop) -> dict[str, Any]:
    """Return everything that a search needs to go on exactly. All processes must call it together."""
    optimizer: Any = trainer.given_optimizer
    return {
        "identity": trainer.identity(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "global_step": trainer.global_step,
        "skipped_steps": trainer.skipped_steps,
        "validation": [trainer.valid_part.round, trainer.valid_part.position],
        "history": trainer.history,
        "seconds": trainer.seconds(),
        "parameters": dict(trainer.model.named_parameters()),
        "buffers": dict(trainer.model.named_buffers()),
        "loss": dict(_named_state(trainer.loss)),
        "outside": trainer.parameters_outside(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "precision": trainer.fabric.strategy.precision.state_dict(),
        "meters": {part: meter.state_dict() for part, meter in trainer.meters.items()},
        "means": trainer.means.state_dict(),
        "of_the_algorithm": {name: _state_of(value) for name, value in trainer.kept_attributes()},
        "made_in_training": [n for n, _ in trainer.kept_attributes() if not trainer.has_made_before_fit(n)],
        "random": trainer.processes.all_gather_object(
            "the states of random numbers", RandomState(trainer.device).to_tree()
        ),
    }


def bring_back(trainer: TrainingLoop, state: Mapping[str, Any], source: Any) -> None:
    """Put a trainer into a state that `snapshot` returned.

    Raises:
        TrainingError: it is the state of another search; says what differs.
        FileFormatError: it lacks something, or something in it does not fit.
    """
    try:
        _check_identity(state["identity"], trainer.identity(), source)
        trainer.epoch, trainer.step = int(state["epoch"]), int(state["step"])
        trainer.global_step, trainer.skipped_steps = int(state["global_step"]), int(state["skipped_steps"])
        # Older checkpoints lack it: each epoch began a round.
        trainer.valid_part.enter(*map(int, state.get("validation", (trainer.epoch, trainer.step))))
        trainer.history = list(state["history"])
        of_epochs = sum(record["cost"]["seconds"] for record in trainer.history)
        trainer.seconds_before = float(state.get("seconds", of_epochs))  # older ones lack it
        _copy_into_model(trainer.model, dict(trainer.model.named_parameters()), state["parameters"])
        _copy_into_model(trainer.model, dict(trainer.model.named_buffers()), state["buffers"])
        _copy_into(dict(_named_state(trainer.loss)), state.get("loss", {}))  # older ones lack it
        _copy_into(_numbered(trainer.parameters_outside()), _numbered(state.get("outside", [])))
        _load_optimizer(trainer.given_optimizer, state["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.fabric.strategy.precision.load_state_dict(state["precision"])
        for part, meter in trainer.meters.items():
            meter.load_state_dict(state["meters"][part])
        trainer.means.load_state_dict(state["means"], trainer.device)
        kept = state["of_the_algorithm"]
        for name, value in trainer.kept_attributes():
            if name in kept or trainer.has_made_before_fit(name):
                setattr(trainer, name, _brought_back(value, kept[name]))
            else:  # training made it, after the checkpoint
                delattr(trainer, name)
        for name in set(state.get("made_in_training", [])) - vars(trainer).keys():
            _check_plain(name, kept[name], source)
            setattr(trainer, name, kept[name])
        RandomState.from_tree(state["random"][trainer.fabric.global_rank], trainer.device).put_back()
    except (TrainingError, FileFormatError):
        raise
    except Exception as error:  # whatever a wrong value leads to in whatever takes it
        raise FileFormatError(f"{source} does not fit this search: {type(error).__name__}: {error}") from error


def is_kept(value: Any) -> bool:
    """Say whether an attribute of a trainer is state that a checkpoint keeps: see `SupernetTrainer`."""
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor | torch.Generator):
        return True
    if isinstance(value, list | tuple):
        return all(is_kept(item) for item in value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and is_kept(item) for key, item in value.items())
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a digest of the tensors' bits."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _check_identity(theirs: Mapping[str, Any], ours: Mapping[str, Any], source: Any) -> None:
    # Options that only one of them has are of another version. What stands outside of the options too is named once.
    options = theirs.get("options", {}).keys() & ours["options"].keys()
    theirs = {**{name: theirs["options"][name] for name in options}, **theirs, "options": None}
    ours = {**{name: ours["options"][name] for name in ours["options"] if name in options}, **ours, "options": None}
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if differing:
        lines = "; ".join(line for name in differing for line in _differences(name, theirs.get(name), ours[name]))
        raise TrainingError(
            f"{source} is of another search, so going on from it would not be exact: {lines}; make the trainer as it "
            "was, or begin anew in another run_dir"
        )


def _differences(name: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Yield a text for each setting in which two differ; of groups of settings, for those that differ alone."""
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours) and name.endswith("settings"):
        for position, (then, now) in enumerate(zip(theirs, ours, strict=True)):
            for setting in [setting for setting in now if then.get(setting) != now[setting]]:
                yield f"{name}: {setting} of group {position} was {then.get(setting)!r}, is {now[setting]!r}"
    else:
        yield f"{name} was {theirs!r}, is {ours!r}"


def _state_of(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, list | tuple):
        return [_state_of(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _state_of(item) for key, item in value.items()}
    if hasattr(value, "state_dict") and not isinstance(value, torch.Tensor):
        return value.state_dict()
    return value


def _check_plain(name: str, state: Any, source: Any) -> None:
    """Raise unless the state is the attribute itself, as it is of numbers, texts, and lists and dicts of these."""
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    for item in inner:
        _check_plain(name, item, source)
    if isinstance(state, torch.Tensor) or (isinstance(state, Mapping) and "param_groups" in state):
        raise TrainingError(
            f"{source} has the state of {name!r}, which this trainer makes only while it trains; make it in the "
            "constructor, where it can be brought back"
        )


def _brought_back(value: Any, state: Any) -> Any:
    """Return `value` in that state: the same object, where it is one that others may hold."""
    if isinstance(value, torch.Tensor) and (value.requires_grad or isinstance(value, nn.Parameter)):
        with torch.no_grad():
            value.copy_(state)
        return value
    if isinstance(value, torch.Tensor):
        return state.to(value.device)
    if isinstance(value, torch.Generator):
        value.set_state(state)
        return value
    if isinstance(value, list | tuple) and len(value) == len(state):
        return type(value)(_brought_back(item, inner) for item, inner in zip(value, state, strict=True))
    if isinstance(value, Mapping) and list(value) == list(state):
        for key, item in list(value.items()):
            value[key] = _brought_back(item, state[key])  # type: ignore[index]
        return value
    if isinstance(value, torch.optim.Optimizer):
        _load_optimizer(value, state)
        return value
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
        return value
    return state


def _copy_into_model(model: nn.Module, tensors: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    if list(saved) == former_names(model, list(tensors)):
        saved = dict(zip(tensors, saved.values(), strict=True))
    _copy_into(tensors, saved)


def _copy_into(tensors: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    if list(tensors) != list(saved):
        raise ValueError(f"its tensors are {list(saved)[:5]}..., those of this model {list(tensors)[:5]}...")
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"{name} is {tuple(saved[name].shape)} in it, {tuple(tensor.shape)} here")
    with torch.no_grad():
        for name, tensor in tensors.items():
            overwritten(tensor, saved[name])


def _named_state(loss: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers of a loss that is a module."""
    if isinstance(loss, nn.Module):
        yield from loss.named_parameters()
        yield from loss.named_buffers()


def _numbered(tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(position): tensor for position, tensor in enumerate(tensors)}


def _load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load the state, each tensor in its parameter's memory format: kernels sum in the order of memory."""
    optimizer.load_state_dict(state)
    inner = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper has the optimizer inside
    for parameter, kept in inner.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
