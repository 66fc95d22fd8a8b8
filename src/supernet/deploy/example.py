"""What a network is called with, in batches of any size, and how far two networks' outputs are apart."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map  # as torch.export takes structures apart

from supernet.errors import ExportError
from supernet.training.verification import TOLERANCES

__all__: list[str] = []

BATCH = "batch"  # what files call the dimension


class Example:
    """What a network is called with.

    The first dimension of the first tensor is the batch, and so is that of every other tensor that is as long.

    Args:
        example: A tuple of arguments, a dict of keyword arguments, or one argument.

    Attributes:
        batch_size: Number of samples.
        sizes: Numbers of samples for which outputs are compared.

    Raises:
        ExportError: It has no tensor with a dimension, or no sample.
    """

    def __init__(self, example: Any) -> None:
        args = () if isinstance(example, dict) else example if isinstance(example, tuple) else (example,)
        self._given = tree_map(_on_cpu, (args, example if isinstance(example, dict) else {}))
        tensors = [leaf for leaf in tree_leaves(self._given) if isinstance(leaf, Tensor)]
        if not tensors or tensors[0].ndim == 0 or not len(tensors[0]):
            found = f"a tensor of shape {tuple(tensors[0].shape)}" if tensors else f"{example!r:.80}"
            raise ExportError(
                f"the example is what the network is called with, whose first tensor is a batch, and not {found}"
            )
        self.batch_size = size = len(tensors[0])
        self.sizes = [size, size + 1, 1] if size > 1 else [1, 2, 3]

    def of_size(self, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments of as many samples: the first ones, again and again."""

        def resized(leaf: Any) -> Any:
            return leaf[torch.arange(size) % self.batch_size] if self._is_batch(leaf) else leaf

        args, kwargs = tree_map(resized, self._given)
        return args, kwargs

    def dynamic_shapes(self, network: nn.Module) -> dict[str, Any]:
        """Return name of an argument -> which dimensions of it are dynamic, as `torch.export` has it."""
        batch = torch.export.Dim(BATCH)
        dynamic: dict[str, Any] = tree_map(
            lambda leaf: {0: batch} if self._is_batch(leaf) else None, self._arguments(network)
        )
        return dynamic

    def described(self, network: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """Return name of an argument -> dtypes and shapes of its tensors, as JSON has them."""
        named = {name: tensors_in(value) for name, value in self._arguments(network).items()}
        return {
            name: [described(one, self.batch_size) for one in tensors] for name, tensors in named.items() if tensors
        }

    def _arguments(self, network: nn.Module) -> dict[str, Any]:
        args, kwargs = self._given
        return dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)

    def _is_batch(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.batch_size


def _on_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of what a network gives, in the order of `torch.export`."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def described(tensor: Tensor, batch_size: int) -> dict[str, Any]:
    """Return dtype and shape of a tensor, as JSON has them; the dimension of a batch is called that."""
    shape = [BATCH if i == 0 and size == batch_size else size for i, size in enumerate(tensor.shape)]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}


class Comparison:
    """How far what a file gives is apart from what the network gives, in eval form.

    Attributes:
        difference: The largest difference: norm of what two outputs differ by, as a share of the network's norm.
        tolerance: How large it may be.
    """

    def __init__(self) -> None:
        self.difference, self.tolerance = 0.0, 0.0

    def add(self, expected: list[Tensor], got: list[Tensor], size: int) -> None:
        """Compare the outputs for a batch.

        Raises:
            ExportError: They differ, by more than the tolerance or in their number, shapes or types.
        """
        if len(expected) != len(got):
            raise ExportError(
                f"for a batch of {size} it gives {len(got)} tensors, where the network gives {len(expected)}"
            )
        for number, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
            which = f"output {number} " if len(expected) > 1 else "the output "
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                kinds = [f"{tuple(one.shape)} of {one.dtype}" for one in (theirs, ours)]
                raise ExportError(f"for a batch of {size} {which}is of shape {kinds[0]}, and the network's {kinds[1]}")
            difference, tolerance = relative_difference(ours, theirs), TOLERANCES.get(ours.dtype, 1e-2)
            if not (ours.is_floating_point() or ours.is_complex()):
                tolerance = 0.0
            if not difference <= tolerance:
                raise ExportError(
                    f"for a batch of {size} {which}differs from the network's by {difference:.3g} of its norm, where "
                    f"{tolerance:g} may be"
                )
            self.difference, self.tolerance = max(self.difference, difference), max(self.tolerance, tolerance)


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """Return the norm of what two tensors differ by, as a share of the first one's; of equal infinities it is 0."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), got.to(wide)
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).norm().item()
    norm = a[a.isfinite()].norm().item()
    return apart / norm if norm else float(apart)
