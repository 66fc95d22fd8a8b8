"""A choice of how many blocks run one after another."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Choice
from supernet.nn.domain import Decision, Domain, is_int
from supernet.nn.value import Value

__all__ = ["Repeat"]

Block: TypeAlias = nn.Module | Callable[..., nn.Module]


class Repeat(Choice):
    """The first `depth` of several blocks run one after another; how many is decided by a search.

    The blocks are direct children, "0", "1", ..., called as in the `torch.nn.Sequential` that a decision makes of it.
    They may hold choices, which are decided only where their block is reached. In a mixture each block runs once, and
    what comes out after each depth is weighted.

    Args:
        blocks: A module, which is copied for each position; a function that makes one, called with the position where
            it needs an argument; or a list of either, one for each position, where modules stand as they are.
        depth: How many run: a number, which gives a `Sequential` of as many; `(low, high)`, both included, or a
            `range`; a `ValueChoice`, or an expression of one, whose decision this is too. 0 of them give the input.
        label: The decision's name, where no `ValueChoice` has one. Default: the path in the model.

    Raises:
        ChoiceError: A depth is no whole number from 0 on, there are too few or too many blocks for the depths, one is
            no module, or the label is another than that of `depth`.

    >>> model = nn.Sequential(Repeat(nn.Linear(4, 4), (1, 3), label="depth"))
    >>> freeze(model, {"depth": 2})[0]
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): Linear(in_features=4, out_features=4, bias=True)
    )
    """

    is_sequence = True

    def __init__(
        self,
        blocks: Block | Sequence[Block],
        depth: int | tuple[int, int] | range | Value,
        *,
        label: str | None = None,
    ) -> None:
        super().__init__(_label_of(depth, label))
        self._depth = (depth,)  # which is no child: it has the label of this choice, and is decided with it
        self._depths, self._is_number = depths_of(depth), not isinstance(depth, Value | tuple | range)
        for position, block in enumerate(_made(blocks, max(self._depths), cut=self._is_number)):
            self._modules[str(position)] = block

    def settled(self) -> nn.Module | None:
        """Return all blocks, where the depth is a number."""
        return nn.Sequential(*self._blocks()) if self._is_number else None

    def _blocks(self) -> list[nn.Module]:
        return list(self._modules.values())  # type: ignore[arg-type]  # a block is never None

    def domain(self) -> Domain:
        """Return what can be decided here: the depth, or the value that it follows from."""
        (depth,) = self._depth
        if isinstance(depth, Value):
            (leaf,) = depth.leaves()
            return leaf.domain()
        return Domain(str(self.label), tuple(map(str, self._depths)), values=self._depths, noun="value")

    def branches(self) -> list[list[nn.Module]]:
        """Return the blocks that run at each depth."""
        return [self._blocks()[:depth] for depth in self._depths]

    def resolve(self, decision: Decision) -> nn.Sequential:
        """Return the blocks that run where that has been decided."""
        (position,) = self.domain().positions(decision)
        return nn.Sequential(*self.branches()[position])

    def extra_repr(self) -> str:
        """Show the depth and the label."""
        label = "" if self.label is None else f", label={self.label!r}"
        return f"depth={self._depth[0]}{label}"


def _label_of(depth: Any, label: str | None) -> str | None:
    """Return the label of the decision, or raise `ChoiceError` where there would be two."""
    if not isinstance(depth, Value):
        return label
    leaves = depth.leaves()
    if len(leaves) != 1:
        names = ", ".join(repr(leaf.label) for leaf in leaves) or "none"
        raise ChoiceError(f"the depth of a Repeat follows from one ValueChoice, but {depth} from {names}")
    if label not in (None, leaves[0].label):
        raise ChoiceError(
            f"Repeat {label!r} has the depth {depth}, whose decision is {leaves[0].label!r}; leave out label="
        )
    return leaves[0].label


def depths_of(depth: Any) -> tuple[int, ...]:
    """Return the depth that each decision gives."""
    depths: tuple[Any, ...]
    if isinstance(depth, Value):
        (leaf,) = depth.leaves()
        depths = tuple(depth.evaluate({str(leaf.label): value}) for value in leaf.domain().outcomes)
    elif isinstance(depth, range):
        depths = tuple(depth)
    elif isinstance(depth, tuple) and len(depth) == 2 and all(map(is_int, depth)):
        depths = tuple(range(depth[0], depth[1] + 1))
    else:
        depths = (depth,)
    for one in depths:
        if not is_int(one) or one < 0:
            what = "is" if one is depth else f"{depth} may be"
            raise ChoiceError(
                f"the depth of a Repeat is a whole number from 0 on, (low, high), a range or a ValueChoice, "
                f"but {what} {one!r}"
            )
    if not depths:
        raise ChoiceError(f"the depth of a Repeat is one of {depth}, which has none; give (low, high) with low <= high")
    return depths


def _made(blocks: Any, count: int, cut: bool) -> list[nn.Module]:
    """Return `count` blocks, the first of those given where these may be `cut`."""
    if isinstance(blocks, list | tuple | nn.ModuleList):
        if len(blocks) < count or (len(blocks) > count and not cut):
            raise ChoiceError(
                f"Repeat has {len(blocks)} blocks, but runs at most {count} of them; give it as many as its largest "
                "depth, or one module or function for all"
            )
        return [block if isinstance(block, nn.Module) else _called(block, i) for i, block in enumerate(blocks[:count])]
    if isinstance(blocks, nn.Module):
        return [copy.deepcopy(blocks) for _ in range(count)]
    return [_called(blocks, i) for i in range(count)]


def _called(make: Any, position: int) -> nn.Module:
    """Return what a function makes for a position."""
    if not callable(make):
        raise ChoiceError(f"a block of a Repeat is a module, or a function that makes one, not {make!r}")
    block = make(position) if _needs_argument(make) else make()
    if not isinstance(block, nn.Module):
        raise ChoiceError(f"block {position} of a Repeat is made by {make!r}, which gives no module but {block!r}")
    return block


def _needs_argument(make: Callable[..., Any]) -> bool:
    try:
        inspect.signature(make).bind()
    except TypeError:
        return True
    except ValueError:  # what is written in C may not say
        return False
    return False
