"""Whether a frozen network computes what the supernet computes under its architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from supernet.errors import ReplacementError
from supernet.execution import restore
from supernet.execution.state import Buffers, Forms, seeded
from supernet.execution.structure import copied, parts_of
from supernet.execution.supernet import Supernet
from supernet.space import SearchSpace
from supernet.space.copying import with_what_cannot_be_copied
from supernet.space.original import model_itself
from supernet.space.summary import called_with

__all__: list[str] = []

# How far apart outputs may be, as a share of their norm: sums come in another order. Of all other types it is 1e-2.
TOLERANCES = {torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: 1e-4, torch.complex64: 1e-4}
TOLERANCE = 1e-2


def verify(network: nn.Module, model: nn.Module, architecture: Mapping[str, Any], batch: Any) -> None:
    """Raise unless a network, frozen from a model, gives what the supernet gives, in training and in eval form.

    The supernet is that of a copy of the model. Network, model and random numbers are after it as they were.

    Args:
        network: The frozen network.
        model: The model, as written or with its choices replaced.
        architecture: The architecture of the network.
        batch: What the model is called with: the first of its arguments, or several in a tuple, or by name in a dict.

    Raises:
        ReplacementError: The outputs differ; names the form, the output, and the first module that differs.
    """
    model = model_itself(model)
    architecture = SearchSpace(model).canonical(architecture)
    supernet = Supernet(restore(with_what_cannot_be_copied(lambda memo: copy.deepcopy(model, memo))))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def outputs(training: bool, seen: tuple[dict[str, Any], dict[str, Any]] | None = None) -> tuple[Any, Any]:
        """Return what comes out of the supernet, and of the network; note what comes out of modules, by their paths."""
        found = []
        for module, context in ((supernet.model, supernet.following(architecture)), (network, ExitStack())):
            with context, Buffers(module).preserve(), seeded(0, device), torch.no_grad():
                module.train(training)
                if seen is None:
                    found.append(called_with(module, copied(batch)))
                else:
                    with _noting(module, seen[len(found)]):
                        found.append(called_with(module, copied(batch)))
        return found[0], found[1]

    with Forms(network).preserve():
        for training in (True, False):
            if difference := _difference(*outputs(training)):
                by_path: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
                outputs(training, by_path)
                raise ReplacementError(_message(architecture, training, difference, *by_path))


def _message(
    architecture: Mapping[str, Any],
    training: bool,
    difference: str,
    in_supernet: Mapping[str, Any],
    in_network: Mapping[str, Any],
) -> str:
    # Modules end after those inside them, so the first that differs holds none that does.
    differing = [
        f"module {path!r} is the first that differs: {its_own}"
        for path, output in in_network.items()
        if path and path in in_supernet and (its_own := _difference(in_supernet[path], output))
    ]
    form = "training" if training else "eval"
    return (
        f"the network that is frozen does not compute in {form} form what the supernet computes under "
        f"{dict(architecture)}: {difference}; {differing[0] if differing else 'no module of the same path differs'}; "
        "if a module or choice there is your own, look at its frozen() or resolve(), else please report the model"
    )


@contextmanager
def _noting(module: nn.Module, outputs: dict[str, Any]) -> Iterator[None]:
    """Note what the modules inside give in this context, the first time each ends."""

    def note(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs.setdefault(path, copied(output))

        return hook

    handles = [inner.register_forward_hook(note(path)) for path, inner in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(expected: Any, got: Any, path: str = "the output") -> str | None:
    """Return how two structures of tensors differ, in words; None where they do not."""
    if isinstance(expected, torch.Tensor) and isinstance(got, torch.Tensor):
        return _difference_of_tensors(expected, got, path)
    ours, theirs = parts_of(expected), parts_of(got)
    if ours is None or theirs is None:
        is_same = type(expected) is type(got) and (ours, theirs) == (None, None)
        return None if is_same else f"{path} is a {type(expected).__name__}, in the network a {type(got).__name__}"
    if ours.keys() != theirs.keys():
        return f"{path} has parts {list(ours)}, in the network {list(theirs)}"
    found = (_difference(ours[key], theirs[key], f"{path}[{key!r}]") for key in ours)
    return next((difference for difference in found if difference), None)


def _difference_of_tensors(expected: torch.Tensor, got: torch.Tensor, path: str) -> str | None:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        kinds = [f"{tuple(one.shape)} of {one.dtype}" for one in (expected, got)]
        return f"{path} is of shape {kinds[0]}, in the network {kinds[1]}"
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), got.to(wide)
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b)
    tolerance = TOLERANCES.get(expected.dtype, TOLERANCE)
    if not (expected.is_floating_point() or expected.is_complex()):
        tolerance = 0.0
    elif expected.is_cuda and tolerance > 1e-10:
        tolerance = TOLERANCE  # some kernels of a GPU round float32 to TF32, others do not
    if apart.norm() <= tolerance * a[a.isfinite()].norm():
        return None
    return f"{path} differs by up to {apart.abs().max().item():.3g}, of values up to {a.abs().max().item():.3g}"
