"""A trainer's whole state as a tree of plain values, and back: what a checkpoint holds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.errors import FileFormatError, TrainingError
from supernet.execution.slot import former_names
from supernet.execution.state import RandomState, overwritten
from supernet.files.digests import bits
from supernet.files.encoding import OUT_OF_MEMORY, check_can_be_saved
from supernet.training.named_state import load_optimizer
from supernet.training.state_of_processes import gather_states, state_of

if TYPE_CHECKING:
    from supernet.training.loop import TrainingLoop

__all__: list[str] = []

logger = logging.getLogger("supernet")


def snapshot(trainer: TrainingLoop) -> dict[str, Any]:
    """Return everything that a search needs to go on exactly. All processes must call it together."""
    own, random = {**_own_state(trainer), "algorithm": trainer.named_state.to_tree()}, RandomState(trainer.device)
    shared = _shared_state(trainer)
    if trainer.processes.count == 1:
        return {**shared, "random": [random.to_tree()], **own}
    own["shares_buffers"] = trainer.distributed.shares_buffers_next()
    entries, numbers = gather_states(trainer.processes, own, random.to_tree())
    return {**shared, "random": numbers, "processes": entries}


def check_own_state(trainer: TrainingLoop) -> None:
    """Look before the first step whether what the loop itself holds can be saved and brought back.

    Raises:
        TrainingError: Something of it cannot be; names it.
    """
    state = {**_shared_state(trainer), **_own_state(trainer)}
    check_can_be_saved(state, "state", trainer.named_state.classes())


def _shared_state(trainer: TrainingLoop) -> dict[str, Any]:
    """Return what is the same in all processes."""
    return {
        "identity": trainer.identity(),
        "num_epochs": trainer.num_epochs,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "global_step": trainer.global_step,
        "skipped_steps": trainer.skipped_steps,
        "validation": [trainer.valid_part.round, trainer.valid_part.position],
        "data": [trainer.train_part.state_dict(), trainer.valid_part.state_dict()],
        "history": trainer.history,
        "seconds": trainer.seconds(),
    }


def _own_state(trainer: TrainingLoop) -> dict[str, Any]:
    """Return what each process has of its own, but for what the trainer names."""
    optimizer: Any = trainer.given_optimizer
    return {
        "parameters": _of_torchs_class(trainer.model.named_parameters()),
        "buffers": _of_torchs_class(trainer.model.named_buffers()),
        "loss": _of_torchs_class(_named_state(trainer.loss)),
        "outside": list(_of_torchs_class(_numbered(trainer.parameters_outside()).items()).values()),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "precision": trainer.fabric.strategy.precision.state_dict(),
        "meters": {part: meter.state_dict() for part, meter in trainer.meters.items()},
        "means": trainer.means.state_dict(),
    }


def _of_torchs_class(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return tensors of whatever class as those that a checkpoint can hold; these are brought back by their values."""
    return {
        name: t if type(t) in (torch.Tensor, nn.Parameter) else t.detach().as_subclass(torch.Tensor)
        for name, t in tensors
    }


def load_state(trainer: TrainingLoop, state: Mapping[str, Any], source: Any) -> None:
    """Put a trainer into a state that `snapshot` returned.

    What does not pass `checked` leaves the trainer as it is. Whatever else fails leaves it as one that has begun, so
    that it does not train from what is neither its own nor the checkpoint's.

    Raises:
        TrainingError: It is the state of another search, or of another model; says what differs.
        FileFormatError: It lacks something, or something in it cannot be.
    """
    state = checked(trainer, state, source)
    with _errors_named(source):
        trainer.note_state_loaded()
        trainer.epoch, trainer.step = int(state["epoch"]), int(state["step"])
        trainer.global_step, trainer.skipped_steps = int(state["global_step"]), int(state["skipped_steps"])
        before = int(state.get("num_epochs", trainer.num_epochs))  # older ones lack it
        if before != trainer.num_epochs:
            trainer.note_other_num_epochs(before)
        if "processes" in state:
            trainer.distributed.share_buffers_next(state["shares_buffers"])
        # Older checkpoints lack it: each epoch began a round.
        trainer.valid_part.enter(*map(int, state.get("validation", (trainer.epoch, trainer.step))))
        for of_part, saved in zip((trainer.train_part, trainer.valid_part), state.get("data", ()), strict=False):
            of_part.load_state_dict(saved)  # older ones lack it
        trainer.history = list(state["history"])
        of_epochs = sum(record["cost"]["seconds"] for record in trainer.history)
        trainer._run.seconds_before = float(state.get("seconds", of_epochs))  # older ones lack it
        with torch.no_grad():
            for here, saved in _tensors(trainer, state):
                for name, tensor in here.items():
                    overwritten(tensor, saved[name])
        load_optimizer(trainer.given_optimizer, state["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.fabric.strategy.precision.load_state_dict(state["precision"])
        for part, meter in trainer.meters.items():
            meter.load_state_dict(state["meters"][part])
        trainer.means.load_state_dict(state["means"], trainer.device)
        if "algorithm" in state:
            trainer.named_state.load(state["algorithm"], *_tensors_of_the_loop(trainer, state), source)
        else:  # version 1
            trainer.named_state.load_version_1(state["of_the_algorithm"], state.get("made_in_training", []))
        RandomState.from_tree(state["random"][trainer.fabric.global_rank], trainer.device).put_back()


def checked(trainer: TrainingLoop, state: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """Return what of a state is for this process, if the trainer can be put into it, which stays as it is.

    Raises:
        TrainingError: It is the state of another search, or of another model; says what differs.
        FileFormatError: It lacks something, or something in it cannot be.
    """
    with _errors_named(source):
        _check_identity(state, trainer, source)
        _check_epochs(trainer.num_epochs, int(state["epoch"]), int(state["step"]), source)
        own: Mapping[str, Any] = {}
        if "processes" in state:
            classes = trainer.named_state.classes()
            own = state_of(state["processes"], trainer.processes.rank, classes, trainer.device)
        state = {**state, **own}
        for here, saved in _tensors(trainer, state):
            _check_shapes(here, saved, source)
        if "algorithm" in state:
            trainer.named_state.check(state["algorithm"], *_tensors_of_the_loop(trainer, state), source)
        else:  # version 1
            made = state.get("made_in_training", [])
            trainer.named_state.check_version_1(state["of_the_algorithm"], made, source)
        return state


@contextmanager
def _errors_named(source: Any) -> Iterator[None]:
    try:
        yield
    except (TrainingError, FileFormatError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # whatever a wrong value leads to in whatever takes it
        raise FileFormatError(f"{source} does not fit this search: {type(error).__name__}: {error}") from error


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a digest of the tensors' bits."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(bits(tensor).data)
    return result.hexdigest()


def _check_identity(state: Mapping[str, Any], trainer: TrainingLoop, source: Any) -> None:
    theirs, ours = state["identity"], trainer.identity()
    # Options that only one of them has are of another version. What stands outside of the options too is named once.
    options = theirs.get("options", {}).keys() & ours["options"].keys()
    theirs = {**{name: theirs["options"][name] for name in options}, **theirs, "options": None}
    ours = {**{name: ours["options"][name] for name in ours["options"] if name in options}, **ours, "options": None}
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if "seed" in differing and "data" in differing:
        differing.remove("data")  # the seed draws the parts
    lines = [line for name in differing if name != "space" for line in _differences(name, theirs.get(name), ours[name])]
    if "space" in differing:
        space: Mapping[str, Any] = getattr(trainer, "space", {})
        lines += _differences_of_spaces(state["history"], {label: len(space[label].options) for label in space})
    if lines:
        raise TrainingError(
            f"{source} is of another search, so going on from it would not be exact: {'; '.join(lines)}; make the "
            "trainer as it was, or begin anew in another run_dir"
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
    elif name == "data" and isinstance(theirs, list):  # digests
        parts = zip(("training", "validation"), theirs, ours, strict=True)
        yield f"other samples are in the {' and the '.join(part for part, then, now in parts if then != now)} part"
    else:
        if name == "batch_size":  # of the two parts, where one number was given
            theirs, ours = (
                each[0] if isinstance(each, list) and len({*each}) == 1 else each for each in (theirs, ours)
            )
        yield f"{name} was {theirs!r}, is {ours!r}"


def _differences_of_spaces(history: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> list[str]:
    """Return how two spaces differ, as far as the record of an epoch says.

    Args:
        history: Records of the epochs in one of them.
        counts: Number of options of each label in the other one.
    """
    none: Mapping[str, Any] = {}
    recorded = next((record["probabilities"] for record in reversed(history) if record.get("probabilities")), none)
    then = {label: len(probabilities) for label, probabilities in recorded.items()}
    if not then:
        return ["the choices of the model were others"]
    lines = [f"the model had a choice {label!r}" for label in then if label not in counts]
    lines += [f"the model had no choice {label!r}" for label in counts if label not in then]
    for label in then:
        if label in counts and then[label] != counts[label]:
            lines.append(f"choice {label!r} had {then[label]} options, has {counts[label]}")
    return lines or [
        "options of the model's choices had other names, other choices around them, or other constraints between them"
    ]


def _tensors_of_the_loop(trainer: TrainingLoop, state: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the tensors that the loop brings back, which the algorithm may have too: those here, those saved."""
    here = [dict(trainer.model.named_parameters()), dict(trainer.model.named_buffers())]
    here += [dict(_named_state(trainer.loss)), trainer.parameters_outside()]
    return here, [state[name] for name in ("parameters", "buffers", "loss", "outside")]


Tensors = Mapping[str, torch.Tensor]


def _tensors(trainer: TrainingLoop, state: Mapping[str, Any]) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield name -> tensor here, and name -> what was read for it."""
    model = trainer.model
    for here, saved in (
        (dict(model.named_parameters()), state["parameters"]),
        (dict(model.named_buffers()), state["buffers"]),
    ):
        is_of_former_names = list(saved) == former_names(model, list(here))
        yield here, dict(zip(here, saved.values(), strict=True)) if is_of_former_names else saved
    yield dict(_named_state(trainer.loss)), state.get("loss", {})  # older ones lack it
    yield _numbered(trainer.parameters_outside()), _numbered(state.get("outside", []))


def _check_shapes(tensors: Tensors, saved: Tensors, source: Any) -> None:
    """Raise `TrainingError` unless what was read has the names and shapes of what is here."""
    differing = [f"it has no {name!r}" for name in tensors if name not in saved]
    differing += [f"this model has no {name!r}" for name in saved if name not in tensors]
    if not differing and list(tensors) != list(saved):
        differing = ["their order is another"]
    if differing:
        finding = f"the model is another one, its tensors are not those here: {_some(differing)}"
    else:
        shapes = [
            f"{name} is {tuple(saved[name].shape)} in it, {tuple(tensor.shape)} here"
            for name, tensor in tensors.items()
            if tensor.shape != saved[name].shape
        ]
        if not shapes:
            return
        finding = f"weights have other shapes: {_some(shapes)}"
    raise TrainingError(
        f"{source} does not fit this search: {finding}; make the model as it was, or begin anew in another run_dir"
    )


def _some(findings: Sequence[str]) -> str:
    return ", ".join(findings[:4]) + (f", and {len(findings) - 4} more" if len(findings) > 4 else "")


def _named_state(loss: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers of a loss that is a module."""
    if isinstance(loss, nn.Module):
        yield from loss.named_parameters()
        yield from loss.named_buffers()


def _numbered(tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(position): tensor for position, tensor in enumerate(tensors)}
