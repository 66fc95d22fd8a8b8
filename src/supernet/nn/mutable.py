"""Modules that depend on choices: what they have in common, elastic layers and modules of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import OutOfMemoryError, Tensor, nn
from torch.nn import functional as F

from supernet.errors import ChoiceError, MixtureError, SupernetError
from supernet.nn.choice import ShowsConstructor, is_following
from supernet.nn.sizes import Joint, Sizes
from supernet.nn.value import ValueChoice

__all__ = ["Mutable"]


class _PlainWhenDecided(ShowsConstructor):
    """Lets a constructor inside `fixed_architecture` give the plain module, where nothing is left to decide."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        if type(module).forward is Mutable.forward and not isinstance(getattr(module, "sizes", None), Sizes):
            raise ChoiceError(f"{cls.__name__} does not say its numbers; give it self.sizes = Sizes(...) in __init__")
        module.__dict__["_supernet_made"] = names_of(module)
        return module.frozen({}) if is_following() and not module.choices() else module


class Mutable(nn.Module, metaclass=_PlainWhenDecided):
    """A module that depends on values decided by choices: base of the elastic layers, and of modules of your own.

    One of your own hands its numbers to `Sizes`, as its attribute `sizes`; makes its weights at the largest sizes; says
    in `run` what it computes for given sizes; and in `frozen` what plain module it is then. In a mixture all widths
    come in one tensor, those that are not taken zeros: `run_part` takes of it what `run` is to see.

    Attributes:
        sizes: The numbers that choices decide.

    >>> class PReLU(Mutable):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.sizes = Sizes(width=width)
    ...         self.weight = nn.Parameter(torch.full((self.sizes.largest("width"),), 0.25))
    ...
    ...     def run(self, sizes, x):
    ...         return nn.functional.prelu(x, self.weight[: sizes["width"]])
    ...
    ...     def run_part(self, sizes, x):
    ...         return self.run(sizes, x[:, : sizes["width"]])
    ...
    ...     def frozen(self, decisions):
    ...         layer = nn.PReLU(self.sizes.under(decisions)["width"])
    ...         layer.weight = nn.Parameter(self.weight[: layer.num_parameters])
    ...         return layer
    >>> freeze(nn.Sequential(PReLU(ValueChoice([2, 3], label="width"))), {"width": 2})[0]
    PReLU(num_parameters=2)
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for a number of an elastic layer, which would not be what it computes."""
        if "_supernet_made" in self.__dict__ and is_of_ours(type(self).frozen):
            self._check_set(name, value)
        super().__setattr__(name, value)

    def _check_set(self, name: str, value: Any) -> None:
        """Raise `ChoiceError` if an attribute that is set is a number that this takes from `sizes`."""
        sizes = self._modules.get("sizes")
        if isinstance(sizes, Sizes) and sizes.decides(name) and self.__dict__.get(name) != value:
            raise ChoiceError(
                f"{name} of {type(self).__name__}({self.extra_repr()}) is what its constructor was given, and setting "
                f"it to {value!r} would change nothing; give {type(self).__name__} a number or ValueChoice as {name}"
            )

    def _weighted(self, one: Joint, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad() if one.is_detached else nullcontext():
            try:
                output = self.run_part(one.sizes, *args, **kwargs)
            except RuntimeError as error:
                if type(self).run_part is not Mutable.run_part or isinstance(error, SupernetError | OutOfMemoryError):
                    raise
                raise ChoiceError(
                    f"{type(self).__name__} does not run in a mixture: {error}; define run_part(), which takes of an "
                    "input as wide as the widest what run() is to see"
                ) from error
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
        return padded(a, shape) + padded(b, shape)


def is_of_ours(function: Any) -> bool:
    """Say whether a function or class is this library's."""
    return str(function.__module__).partition(".")[0] == __name__.partition(".")[0]


def names_of(module: nn.Module) -> frozenset[str]:
    """Return the names of all that a module holds: parameters, buffers, children and other attributes."""
    return frozenset((*module._parameters, *module._buffers, *module._modules, *module.__dict__))


def padded(x: Tensor, shape: list[int]) -> Tensor:
    """Return a tensor with zeros where it ends before a shape does."""
    return F.pad(
        x, [n for have, want in zip(reversed(x.shape), reversed(shape), strict=True) for n in (0, want - have)]
    )
