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
from supernet.files.digests import bits
from supernet.training.named_state import load_optimizer
from supernet.training.state_of_processes import gathered, state_of

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []

logger = logging.getLogger("supernet")


def snapshot(trainer: TrainingLoop) -> dict[str, Any]:
    """Return everything that a search needs to go on exactly. All processes must call it together."""
    optimizer: Any = trainer.given_optimizer
    shared = {
        "identity": trainer.identity(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "global_step": trainer.global_step,
        "skipped_steps": trainer.skipped_steps,
        "validation": [trainer.valid_part.round, trainer.valid_part.position],
        "data": [trainer.train_part.state_dict(), trainer.valid_part.state_dict()],
        "history": trainer.history,
        "seconds": trainer.seconds(),
        "random": trainer.processes.all_gather_object(
            "the states of random numbers", RandomState(trainer.device).to_tree()
        ),
    }
    own = {
        "parameters": dict(trainer.model.named_parameters()),
        "buffers": dict(trainer.model.named_buffers()),
        "loss": dict(_named_state(trainer.loss)),
        "outside": trainer.parameters_outside(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "precision": trainer.fabric.strategy.precision.state_dict(),
        "meters": {part: meter.state_dict() for part, meter in trainer.meters.items()},
        "means": trainer.means.state_dict(),
        "algorithm": trainer.named_state.to_tree(),
    }
    if trainer.processes.count == 1:
        return {**shared, **own}
    own["shares_buffers"] = trainer.supernet.shares_buffers_next()
    return {**shared, "processes": gathered(trainer.processes, own)}


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
        _check_epochs(trainer.num_epochs, int(state["epoch"]), int(state["step"]), source)
        if "processes" in state:
            classes = trainer.named_state.classes()
            state = {**state, **state_of(state["processes"], trainer.processes.rank, classes, trainer.device)}
            trainer.supernet.share_buffers_next(state["shares_buffers"])
        # Older checkpoints lack it: each epoch began a round.
        trainer.valid_part.enter(*map(int, state.get("validation", (trainer.epoch, trainer.step))))
        for of_part, read in zip((trainer.train_part, trainer.valid_part), state.get("data", ()), strict=False):
            of_part.load_state_dict(read)  # older ones lack it
        trainer.history = list(state["history"])
        of_epochs = sum(record["cost"]["seconds"] for record in trainer.history)
        trainer.seconds_before = float(state.get("seconds", of_epochs))  # older ones lack it
        _copy_into_model(trainer.model, dict(trainer.model.named_parameters()), state["parameters"])
        _copy_into_model(trainer.model, dict(trainer.model.named_buffers()), state["buffers"])
        _copy_into(dict(_named_state(trainer.loss)), state.get("loss", {}))  # older ones lack it
        _copy_into(_numbered(trainer.parameters_outside()), _numbered(state.get("outside", [])))
        load_optimizer(trainer.given_optimizer, state["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.fabric.strategy.precision.load_state_dict(state["precision"])
        for part, meter in trainer.meters.items():
            meter.load_state_dict(state["meters"][part])
        trainer.means.load_state_dict(state["means"], trainer.device)
        if "algorithm" in state:
            trainer.named_state.load(state["algorithm"], *_held(trainer, state), source)
        else:  # version 1
            trainer.named_state.load_version_1(state["of_the_algorithm"], state.get("made_in_training", []), source)
        RandomState.from_tree(state["random"][trainer.fabric.global_rank], trainer.device).put_back()
    except (TrainingError, FileFormatError):
        raise
    except Exception as error:  # whatever a wrong value leads to in whatever takes it
        raise FileFormatError(f"{source} does not fit this search: {type(error).__name__}: {error}") from error


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a digest of the tensors' bits."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(bits(tensor).data)
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


def _check_epochs(num_epochs: int, epoch: int, step: int, source: Any) -> None:
    begun = epoch + bool(step)
    if begun > num_epochs:
        raise TrainingError(
            f"{source} is in epoch {begun} already, and num_epochs is {num_epochs}: what is trained cannot be taken "
            f"back; give num_epochs={begun} or more, or begin anew in another run_dir"
        )


def _differences(name: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Yield a text for each setting in which two differ; of groups of settings, for those that differ alone."""
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours) and name.endswith("settings"):
        for position, (then, now) in enumerate(zip(theirs, ours, strict=True)):
            for setting in [setting for setting in now if then.get(setting) != now[setting]]:
                yield f"{name}: {setting} of group {position} was {then.get(setting)!r}, is {now[setting]!r}"
    else:
        yield f"{name} was {theirs!r}, is {ours!r}"


def _held(trainer: TrainingLoop, state: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the tensors that the loop brings back, which the algorithm may hold too: those here, those read."""
    here = [dict(trainer.model.named_parameters()), dict(trainer.model.named_buffers())]
    here += [dict(_named_state(trainer.loss)), trainer.parameters_outside()]
    return here, [state[name] for name in ("parameters", "buffers", "loss", "outside")]


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
