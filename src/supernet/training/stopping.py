"""Rules that end a search early, and what they remember."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, TypeAlias

import torch

__all__: list[str] = []

StoppingRule: TypeAlias = Callable[[Mapping[str, Any]], "str | None"]


class StoppingRules:
    """Rules that are asked after each epoch; each may remember what it was shown.

    What a rule remembers comes from the records of the epochs, so no checkpoint needs to hold it: where a search begins
    or goes on, the rules are put back to how they were given, and shown the records that there are.

    Args:
        rules: `record -> reason or None`.
    """

    def __init__(self, rules: Sequence[StoppingRule]) -> None:
        self._rules = [*rules]
        self._given = [_memory_of(rule) for rule in rules]

    def begin(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Let the rules remember these epochs and no others; return why to stop after the last of them, or None."""
        for rule, given in zip(self._rules, self._given, strict=True):
            _put_memory(rule, given)
        reason = None
        for record in history:
            reason = self.ask(record)
        return reason

    def ask(self, record: Mapping[str, Any]) -> str | None:
        """Return why to stop after the epoch of this record, or None."""
        reasons = [rule(record) for rule in self._rules]  # all are asked, for each may remember the record
        return next((reason for reason in reasons if reason), None)


def _memory_of(rule: StoppingRule) -> dict[str, Any]:
    """Return what a rule remembers: its state_dict, else its attributes that are plain values."""
    owner = _owner(rule)
    if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
        return copy.deepcopy(owner.state_dict())
    return copy.deepcopy({name: value for name, value in _attributes(owner).items() if _is_memory(value)})


def _put_memory(rule: StoppingRule, memory: dict[str, Any]) -> None:
    owner = _owner(rule)
    memory = copy.deepcopy(memory)
    if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
        owner.load_state_dict(memory)
        return
    attributes = _attributes(owner)
    for name in [name for name, value in attributes.items() if _is_memory(value)]:
        del attributes[name]
    attributes.update(memory)


def _owner(rule: StoppingRule) -> Any:
    return rule.__self__ if isinstance(rule, MethodType) else rule


def _attributes(owner: Any) -> dict[str, Any]:
    attributes = getattr(owner, "__dict__", None)
    return attributes if isinstance(attributes, dict) else {}  # a class has another kind, which is not to be changed


def _is_memory(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(_is_memory, value))
    if isinstance(value, Mapping):
        return all(map(_is_memory, value.values()))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)
