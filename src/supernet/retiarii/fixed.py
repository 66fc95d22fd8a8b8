"""Fixed architectures in Retiarii's form: plain JSON, label -> name, position or list of positions."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from supernet.errors import ArchitectureError, FileFormatError
from supernet.nn.choice import Choice, constructors_follow
from supernet.nn.layer_choice import LayerChoice
from supernet.nn.mutable import Mutable
from supernet.retiarii.absent import names_absent_from
from supernet.retiarii.choices import Cell, NasBench201Cell
from supernet.retiarii.labels import as_in, put_labels_of_cell_right

__all__ = ["apply_fixed_architecture", "fixed_arch"]

logger = logging.getLogger("supernet")

Fixed = str | os.PathLike[str] | Mapping[str, Any]


@contextmanager
def fixed_arch(fixed_arch: Fixed, verbose: bool = True) -> Iterator[None]:
    """Let choices that are constructed inside this context be what a file or dict decides.

    Raises:
        FileFormatError: The file holds no JSON object.
        ArchitectureError: A decision is not possible for its choice, or none of its labels was constructed.
    """
    decisions = _read(fixed_arch)
    if verbose:
        logger.info("fixed architecture: %s", decisions)
    with as_in(decisions), constructors_follow(decisions) as met:
        yield
    if decisions and not met & set(decisions):
        raise ArchitectureError(
            f"no choice with a label of this architecture was constructed: it has {', '.join(decisions)}; constructed "
            f"were {', '.join(sorted(met)) or 'none'}. @model_wrapper makes automatic labels begin anew for each model"
        )
    for label in sorted(met - set(decisions)):
        logger.warning("choice %r is not decided by this architecture, and cannot run where it is reached", label)


def apply_fixed_architecture(model: nn.Module, fixed_arc: Fixed, verbose: bool = True) -> None:
    """Put the decided candidates and inputs in the place of the choices of a model that is already built.

    Values are names, positions, lists of either, or one-hot lists of booleans or floats.

    Raises:
        FileFormatError: The file holds no JSON object.
        ArchitectureError: A label is missing, or a decision is not possible for its choice.
    """
    decisions = _read(fixed_arc)
    if verbose:
        logger.info("fixed architecture: %s", decisions)
    for module in model.modules():
        if isinstance(module, Cell | NasBench201Cell):
            predecessors = getattr(module, "num_predecessors", 0)
            put_labels_of_cell_right(str(module.label), module.label_of_2_6, predecessors, decisions)
    _apply(model, decisions)


def _apply(module: nn.Module, decisions: Mapping[str, Any]) -> None:
    for name, child in list(module.named_children()):
        while isinstance(child, Choice):
            decision = _decision_of(child, decisions)
            if decision is None:
                raise ArchitectureError(f"{child.description()} has no decision; there are: {', '.join(decisions)}")
            if isinstance(child, LayerChoice) and isinstance(decision, list) and len(decision) == 1:
                decision = decision[0]
            child = child.resolve(decision)
        if isinstance(child, Mutable):
            child = copy.deepcopy(_fixed(child, decisions))  # which is made of views
        module._modules[name] = child
        _apply(child, decisions)


def _fixed(mutable: Mutable, decisions: Mapping[str, Any]) -> nn.Module:
    found = {str(leaf.label): (leaf, _decision_of(leaf, decisions)) for leaf in mutable.choices()}
    decided = {label: leaf.decided(decision) for label, (leaf, decision) in found.items() if decision is not None}
    try:
        return mutable.frozen(decided)
    except KeyError as missing:
        raise ArchitectureError(f"choice {missing} has no decision; there are: {', '.join(decisions)}") from None


def _decision_of(choice: Choice, decisions: Mapping[str, Any]) -> Any:
    """Return what an architecture decides at a choice, None if it decides nothing there."""
    for label in (str(choice.label), getattr(choice, "label_of_2_6", None)):
        if label is not None and label in decisions:
            return _positions(decisions[label])
    return None


def _positions(decision: Any) -> Any:
    """Return a one-hot list as the positions that it marks, and all else as it is."""
    if isinstance(decision, list) and decision and all(isinstance(item, bool | float) for item in decision):
        return [position for position, item in enumerate(decision) if item]
    return decision


def _read(fixed: Fixed) -> dict[str, Any]:
    if isinstance(fixed, Mapping):
        return dict(fixed)
    try:
        decisions = json.loads(Path(fixed).read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{fixed} is not a whole JSON file: {error}") from error
    if not isinstance(decisions, dict):
        raise FileFormatError(f"{fixed} holds no architecture: a JSON object label -> decision is needed")
    return decisions


__getattr__ = names_absent_from(__name__, "nni.retiarii.fixed")
