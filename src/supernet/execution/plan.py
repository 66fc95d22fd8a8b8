"""What a supernet follows in one forward pass."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from supernet.errors import UnresolvedChoiceError

__all__ = ["Plan"]


class Plan(dict[str, Any]):
    """Label -> what its choices follow now: a decision, weights of all options, or a `Selection`.

    One plan belongs to one supernet: it is written before each forward pass, and the modules in the choices' places
    read it. A copy of a supernet begins with an empty plan, for the tensors of the last pass belong to a graph that
    cannot be copied.

    Attributes:
        of_regions: Region under `torch.utils.checkpoint` -> the plan of its pass, while the region may run again.
    """

    def __init__(self, *args: Any, **entries: Any) -> None:
        super().__init__(*args, **entries)
        self.of_regions: WeakKeyDictionary[Any, Plan] = WeakKeyDictionary()

    def __missing__(self, label: str) -> torch.Tensor:
        entries = ", ".join(map(repr, self))
        raise UnresolvedChoiceError(
            f"choice {label!r} has no plan to follow: "
            + (f"the plan has an entry for {entries} alone, and " if entries else "")
            + "a trainer or Supernet has replaced the choices of this model; "
            "run it through trainer.forward(X, plan) or supernet(X, plan), with a plan for each choice that is "
            "reached, or call freeze(model, architecture), or restore(model)"
        )

    def __reduce__(self) -> tuple[type[Plan], tuple[()]]:
        return Plan, ()
