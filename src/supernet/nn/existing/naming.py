"""Layers by path, pattern or class."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.existing.undo import plain_class

__all__: list[str] = []


def matching(model: nn.Module, selector: str | type[nn.Module]) -> list[str]:
    """Return the paths that a path, pattern or class selects.

    Raises:
        ChoiceError: There is none; names near ones.
    """
    modules = dict(model.named_modules())
    if isinstance(selector, type):
        found = [path for path, module in modules.items() if issubclass(plain_class(module), selector)]
    else:
        found = [path for path in modules if fnmatchcase(path, selector)]
    if found:
        return found
    if isinstance(selector, type):
        raise ChoiceError(f"no module of this model is a {selector.__name__}")
    near = difflib.get_close_matches(selector, list(modules), n=3, cutoff=0.4)
    raise ChoiceError(
        f"no module of this model is at {selector!r}; "
        + (
            f"near are: {', '.join(map(repr, near))}"
            if near
            else f"its modules are: {', '.join(list(modules)[1:6])}, ..."
        )
    )
