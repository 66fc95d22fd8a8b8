"""What stands in a choice's place holds the candidates as the choice did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from supernet.execution.plan import Plan
from supernet.nn import LayerChoice
from supernet.nn.layer_choice import ByNameAndPosition

__all__: list[str] = []


class LayerSlot(ByNameAndPosition, nn.Module):
    """What stands in a `LayerChoice`'s place.

    The candidates are its children by their own names, as they are the choice's: so parameters, and the keys of
    `state_dict`, are called as in the model as written. `len`, iteration, `in` and indexing are the choice's too.

    Args:
        choice: in whose place it stands.
        plan: what it follows.
    """

    def __init__(self, choice: LayerChoice, plan: Plan) -> None:
        super().__init__()
        self.label, self.plan = str(choice.label), plan
        self._names = choice.names
        self._modules.update(choice.named_children())

    @property
    def key(self) -> str:
        """The same as `label`."""
        return self.label

    @property
    def names(self) -> list[str]:
        """The candidates' names, in order."""
        return list(self._names)

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """The candidates by name."""
        return {name: self._modules[name] for name in self._names}  # type: ignore[misc]  # never None

    def _candidates(self) -> dict[str, nn.Module]:
        return self.candidates

    def description(self) -> str:
        """Name the choice in whose place it stands, for a message."""
        return f"choice {self.label!r} ({', '.join(self._names)})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)  # an attribute and a candidate of one name do not meet
        else:
            super().__setattr__(name, value)


def former_names(model: nn.Module, names: list[str]) -> list[str]:
    """Return how parameters or buffers were called while a slot's candidates stood in a ModuleDict, `candidates`."""
    slots = {path for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, LayerSlot)}

    def parts(name: str) -> Iterator[str]:
        path = ""
        if path in slots:
            yield "candidates"
        for part in name.split("."):
            yield part
            path = f"{path}.{part}" if path else part
            if path in slots:
                yield "candidates"

    return [".".join(parts(name)) for name in names]
