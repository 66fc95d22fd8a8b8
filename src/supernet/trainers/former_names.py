"""Names that methods of trainers had before: those who call or override them are warned, and go on working."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

__all__: list[str] = []

FORMER = {
    "take_over": "build_supernet",
    "take_over_paths": "build_path_supernet",
    "measure": "compute_loss",
    "descend": "optimizer_step",
    "weights_held": "frozen_weights",
    "preferred": "derive",
}


class FormerNames:
    """Gives a trainer's methods the names that they had before, too."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for former, new in FORMER.items():
            by_former, by_new = _nearest(cls, former), _nearest(cls, new)
            if by_former is None or by_new is None:
                continue
            order = cls.__mro__.index
            if order(by_former) < order(by_new):  # such as of a mixin, which does not inherit from us
                _warn(f"{by_former.__name__}.{former}", new, stacklevel=3)
                setattr(cls, new, vars(by_former)[former])
            elif by_new is cls and by_former is not cls:  # whose subclasses may reach it by either name
                setattr(cls, former, vars(cls)[new])


def _nearest(cls: type, name: str) -> type | None:
    """Return the class, nearest in the order of inheritance, that defines a name; those here do not count."""
    return next((c for c in cls.__mro__ if name in vars(c) and c is not FormerNames), None)


def _warn(former: str, new: str, stacklevel: int) -> None:
    message = f"{former} is called {new} now; the former name goes in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def _alias(former: str, new: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        _warn(former, new, stacklevel=2)
        classes = type(self).__mro__
        overriding = [position for position, cls in enumerate(classes[:-1]) if former in vars(cls)]
        if overriding[:-1]:  # this is the last one itself: called by `super()` of one that overrides the former name
            beyond = classes[overriding[-2] + 1 :]
            return next(vars(cls)[new] for cls in beyond if new in vars(cls))(self, *args, **kwargs)
        return getattr(self, new)(*args, **kwargs)

    method.__name__, method.__doc__ = former, f"Do the same as `{new}`, as it is called now."
    return method


for _former, _new in FORMER.items():
    setattr(FormerNames, _former, _alias(_former, _new))
