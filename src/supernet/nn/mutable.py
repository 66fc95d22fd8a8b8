"""Modules that depend on choices: what they have in common, elastic layers and modules of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.errors import ChoiceError, MixtureError
from supernet.nn.choice import is_following
from supernet.nn.sizes import Joint, Sizes
from supernet.nn.value import ValueChoice

__all__ = ["Mutable"]


class _PlainWhenDecided(type):
    """Lets a constructor inside `fixed_architecture` give the plain module, where nothing is left to decide."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        return module.frozen({}) if is_following() and not module.choices() else module


class Mutable(nn.Module, metaclass=_PlainWhenDecided):
    """A module that depends on values decided by choices: base of the elastic layers, and of modules of your own.

    One of your own hands its numbers to `Sizes`, as its attribute `sizes`; makes its weights at the largest sizes; says
    in `run` what it computes for given sizes; and in `frozen` what plain module it is then. In a mixture all widths
    come in one tensor, those that are not taken zeros: `run_part` takes of it what `run` is to see.

    Attributes:
        sizes: The numbers that choices decide.

    >>> class Scale(Mutable):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.sizes = Sizes(width=width)
    ...         self.weight = nn.Parameter(torch.ones(self.sizes.largest("width")))
    ...
    ...     def run(self, sizes, x):
    ...         return x * self.weight[: sizes["width"]]
    ...
    ...     def run_part(self, sizes, x):
    ...         return self.run(sizes, x[..., : sizes["width"]])
    ...
    ...     def frozen(self, decisions):
    ...         scale = Scale(self.sizes.under(decisions)["width"])
    ...         scale.weight = nn.Parameter(self.weight[: scale.sizes["width"]])
    ...         return scale
    >>> freeze(nn.Sequential(Scale(ValueChoice([2, 3], label="width"))), {"width": 2})[0].weight.shape
    torch.Size([2])
    """

    sizes: Sizes

    def choices(self) -> list[ValueChoice]:
        """Return the choices that this depends on."""
        return self.sizes.leaves()

    def condition(self) -> Callable[[Mapping[str, Any]], bool] | None:
        """Return what says whether this can be what an architecture decides; None where it can be all.

        Spaces have no other architectures: see `SearchSpace.where`. Two modules that share their choices give functions
        that are equal; its attribute `text` stands for it in fingerprints and messages.
        """
        return None

    def run(self, sizes: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the module gives where its numbers have been decided.

        Args:
            sizes: Name -> value, of `self.sizes`.
            args, kwargs: Arguments of the module.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run()")

    def run_part(self, sizes: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the same where this is one of several sizes that are mixed, and the input as wide as the widest.

        What `run` itself would not do to an input that is too wide: alone, that is an error of the model. Default: as
        `run`.
        """
        return self.run(sizes, *args, **kwargs)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return the plain module that stands here under an architecture, with views of this one's weights.

        Args:
            decisions: Label -> decision, of all `choices()`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define frozen()")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what the supernet's plan decides, or the mixture that it has."""
        sizes = self.sizes.now()
        return self.mixed(*args, **kwargs) if sizes is None else self.run(sizes, *args, **kwargs)

    def mixed(self, *args: Any, **kwargs: Any) -> Any:
        """Return the sum, by their weights, of what all sizes give, padded with zeros to the largest.

        A layer that is linear in its weight mixes that instead, by `Sizes.entangled`: it is the same, in one pass.
        """
        total: Any = None
        for position, one in enumerate(self.sizes.joint()):
            output = self._weighted(one, *args, **kwargs)
            total = self._added(total, output) if position else output
        return total

    def _weighted(self, one: Joint, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad() if one.is_detached else nullcontext():
            output = self.run_part(one.sizes, *args, **kwargs)
        return output if one.weight is None else self._scaled(one.weight, output)

    def _scaled(self, weight: Tensor, output: Any) -> Any:
        """Return an output times its weight: a tensor, or a tuple of such and of None."""
        if isinstance(output, tuple):
            return tuple(self._scaled(weight, each) for each in output)
        if output is not None and not isinstance(output, Tensor):
            raise MixtureError(
                f"{type(self).__name__} gives a {type(output).__name__}, and only tensors and their tuples are mixed; "
                "use a trainer that samples, or define mixed()"
            )
        return None if output is None else weight * output

    def _added(self, a: Any, b: Any) -> Any:
        """Return the sum of two outputs, of which one may be narrower, and counts as zeros where it ends."""
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            return tuple(self._added(of_a, of_b) for of_a, of_b in zip(a, b, strict=True))
        if a is None and b is None:
            return None
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() == b.dim()):
            given = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in (a, b))
            raise ChoiceError(f"{type(self).__name__} gives {given}, which cannot be mixed")
        if a.shape == b.shape:
            return a + b
        shape = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
        return _padded(a, shape) + _padded(b, shape)


def _padded(x: Tensor, shape: list[int]) -> Tensor:
    return F.pad(
        x, [n for have, want in zip(reversed(x.shape), reversed(shape), strict=True) for n in (0, want - have)]
    )
