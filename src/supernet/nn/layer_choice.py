"""A choice between modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Choice
from supernet.nn.domain import Domain

__all__ = ["LayerChoice"]


class ByNameAndPosition:
    """What a `LayerChoice`, and what stands in its place, have in common: its candidates are read as if in a list."""

    names: Any

    def _candidates(self) -> Mapping[str, nn.Module]:
        raise NotImplementedError

    def description(self) -> str:
        """Name the choice for a message."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._candidates().values())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, index: str | int | slice) -> Any:
        if isinstance(index, slice):
            return [self._candidates()[name] for name in self.names[index]]
        return self._candidates()[self._name_at(index)]

    def _name_at(self, index: Any) -> str:
        """Return the name of the candidate at a name or position."""
        if isinstance(index, str):
            if index not in self.names:
                raise KeyError(f"{self.description()} has no candidate {index!r}")
            return index
        return str(self.names[index])


class LayerChoice(ByNameAndPosition, Choice):
    """One of several modules stands here; which one is decided by a search.

    The candidates are direct children, so `named_children()` yields exactly them, in order. A candidate may
    hold choices of its own. All must take the same input and give outputs of the same shape.

    Args:
        candidates: Modules in a list (then named "0", "1", ...) or a mapping name -> module.
        label: The decision's name. Choices of one label are one decision. Default: the path in the model.
        prior: The probability of each candidate when an architecture is sampled; they sum to 1. Default: all the same.

    Raises:
        ChoiceError: There is no candidate, one is not a module or occurs twice, a name cannot be a module's
            attribute, or the prior is not a distribution over the candidates.

    >>> model = nn.Sequential(LayerChoice({"conv": nn.Conv2d(8, 8, 3), "skip": nn.Identity()}, label="first"))
    >>> freeze(model, {"first": "skip"})
    Sequential(
      (0): Identity()
    )
    """

    def __init__(
        self,
        candidates: Iterable[nn.Module] | Mapping[str, nn.Module] | nn.ModuleDict,
        *,
        label: str | None = None,
        prior: Sequence[float] | None = None,
    ) -> None:
        super().__init__(label)
        self._prior = None
        if isinstance(candidates, Mapping | nn.ModuleDict):
            named = list(candidates.items())
        else:
            named = [(str(position), module) for position, module in enumerate(candidates)]
        if not named:
            raise ChoiceError("a LayerChoice needs at least one candidate, but its candidates are empty")
        for name, module in named:
            self._put(_checked_name(name), module)
        self._prior = None if prior is None else [float(p) for p in prior]
        self.domain()  # which looks whether that is a prior

    @property
    def names(self) -> list[str]:
        """The candidates' names, in order."""
        return list(self._modules)

    def __setitem__(self, index: str | int, module: nn.Module) -> None:
        if isinstance(index, str) and index not in self._modules:
            if self._prior is not None:
                raise ChoiceError(f"{self.description()} has a prior, so candidate {index!r} cannot be added to it")
            self._put(_checked_name(index), module)
        else:
            self._put(self._name_at(index), module)

    def _put(self, name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise ChoiceError(f"candidate {name!r} is not an nn.Module but {type(module).__name__}: {module!r}")
        for other, present in self._candidates().items():
            if present is module and other != name:
                raise ChoiceError(
                    f"candidates {other!r} and {name!r} are one and the same module; give a copy of it, or drop one"
                )
        self._modules[name] = module

    def __delitem__(self, index: str | int | slice) -> None:
        names = self.names[index] if isinstance(index, slice) else [self._name_at(index)]
        if self._prior is not None:
            raise ChoiceError(f"{self.description()} has a prior, so candidates cannot be taken from it: {names}")
        if len(names) == len(self):
            raise ChoiceError(f"{self.description()} needs at least one candidate; {names} are all it has")
        for name in names:
            del self._modules[name]

    def _candidates(self) -> dict[str, nn.Module]:
        return self._modules  # type: ignore[return-value]  # a candidate is never None

    def description(self) -> str:
        """Name this choice, by label where it has one, and its candidates."""
        return (
            f"LayerChoice {self.label!r} ({', '.join(self.names)})"
            if self.label
            else (f"the LayerChoice between {', '.join(self.names)}")
        )

    def domain(self) -> Domain:
        """Return what can be decided here: a candidate's name."""
        names, prior = tuple(self.names), None if self._prior is None else tuple(self._prior)
        form = {"kind": "layer", "candidates": list(names)}
        return Domain(str(self.label), names, prior=prior, noun="candidate", form=form)

    def branches(self) -> list[tuple[nn.Module]]:
        """Return each candidate."""
        return [(candidate,) for candidate in self]

    def resolve(self, decision: str | int) -> nn.Module:
        """Return the candidate of that name or position."""
        return self[str(self.domain().normalized(decision))]

    def extra_repr(self) -> str:
        """Show the label."""
        return "" if self.label is None else f"label={self.label!r}"


# What torch modules and module dicts use themselves, and so no candidate can be called.
_RESERVED = frozenset({*dir(nn.ModuleDict()), *dir(LayerChoice), "_prior", "_label", "_path"})


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise ChoiceError(f"a candidate's name is a text without a dot, not {name!r}; rename it")
    if name in _RESERVED:
        raise ChoiceError(
            f"a module cannot have a candidate called {name!r}, for that is one of its attributes; rename it"
        )
    return name
