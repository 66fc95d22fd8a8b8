"""Candidates that change their input in place, beside others that are to see it as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.structure import copied, is_as_noted, noted

__all__: list[str] = []


class Apart:
    """Runs the candidates of a choice on one input, each as if no other had had it.

    One that changes its input in place gets a copy. Whether a candidate does is found out the first time that it runs
    in a form, in training or not, on a copy too: in a trainer's trial, so that each step is the same whenever a search
    is resumed. Then it is watched by torch's own count of a tensor's changes, which costs next to nothing.

    Args:
        label: Label of the choice, for errors.
        changeable: Names of the candidates of which nothing is known from one time to the next, so that they always get
            copies. Default: none.
    """

    def __init__(self, label: str, changeable: Collection[str] = ()) -> None:
        self._label, self._changeable = label, changeable
        self._changes: dict[tuple[str, bool], bool] = {}
        self._sees_tensors = True  # one each time, and nothing beside it

    def changing(self) -> list[str]:
        """Return the names of the candidates that have changed their input in place."""
        return list(dict.fromkeys(name for (name, _), changes in self._changes.items() if changes))

    def is_superfluous(self, names: Collection[str]) -> bool:
        """Say whether these candidates have all run, in training and in eval form, and left a lone tensor as it was."""
        forms = [(name, training) for name in names for training in (True, False)]
        return self._sees_tensors and all(self._changes.get(form) is False for form in forms)

    def has_changed(self, name: str, candidate: nn.Module) -> ChoiceError:
        """Note that a candidate has changed its input in place, and return the error that says so."""
        self._changes[name, candidate.training] = True
        return ChoiceError(
            f"candidate {name!r} of choice {self._label!r} has changed its input in place, which it had not done "
            "before, so the other candidates cannot see it as it was; let it work on a copy of its own"
        )

    def may_change(self, name: str, candidate: nn.Module) -> bool:
        """Say whether the candidate, as it would run now, changes its input in place, or is not known not to."""
        return (
            self._changes.get((name, candidate.training)) is not False
            or name in self._changeable
            or torch.compiler.is_compiling()  # which drops the copies that nobody changes
            or torch.is_inference_mode_enabled()  # where nothing is counted
        )

    def run(
        self, name: str, candidate: nn.Module, args: Any, kwargs: Any, call: Callable[..., Any] | None = None
    ) -> Any:
        """Return `candidate(*args, **kwargs)`, or what `call` makes of the same in its place; the input stays.

        Raises:
            ChoiceError: The candidate has changed the input, which it had not done before: for the others it is lost.
        """
        if self.may_change(name, candidate):
            args, kwargs = copied((args, kwargs))
        return self.run_last(name, candidate, args, kwargs, call)

    def run_last(
        self, name: str, candidate: nn.Module, args: Any, kwargs: Any, call: Callable[..., Any] | None = None
    ) -> Any:
        """Do the same on the input itself, which no other candidate is to see after this one."""
        call = call or candidate
        form = name, candidate.training
        changes = self._changes.get(form)
        if changes or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return call(*args, **kwargs)
        is_one = len(args) == 1 and not kwargs
        given = args[0] if is_one else (args, kwargs)
        self._sees_tensors &= is_one and isinstance(given, torch.Tensor)
        before = noted(given)
        result = call(*args, **kwargs)
        has_changed = not is_as_noted(given, before)
        if changes is None or has_changed:
            self._changes[form] = has_changed
        if has_changed and changes is False and name not in self._changeable:
            raise self.has_changed(name, candidate)
        return result
