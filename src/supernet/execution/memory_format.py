"""Running image models in `channels_last`, where the model bears it.

Measured on 2 CPU cores in float32 on the DARTS cell (C=16, 32x32, batch 16): 0.39 of the time of NCHW, for
depthwise convolutions and pools are several times faster in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from supernet.execution.structure import mapped, tensors_of
from supernet.space.strides import give_back_strides, lay_out

__all__ = ["agree", "channels_last_inputs", "choose_memory_format", "lay_out_weights"]

logger = logging.getLogger(__name__)

# Two orders of the same float32 sums differ by about 1e-6 of the norm; normalisation of small batches and
# depth can raise that a hundredfold. A layout that is misread is wrong by about 1.
TOLERANCE = 1e-3

NARROW = 16  # channels


def channels_last_inputs(X: Any) -> Any:
    """Return a batch with each image tensor (N, C, H, W) laid out as N, H, W, C."""
    return mapped(X, lambda t: _channels_last(t) if _is_image(t) else t)


def choose_memory_format(model: nn.Module, X: Any, run: Callable[[Any], Any]) -> bool:
    """Lay the weights of an image model out in `channels_last` if it gives the same output so.

    Args:
        model: The module whose 4-D weights are to be laid out; left as it was if they are not. `give_back_strides` ends
            it.
        X: A batch, as the model takes it.
        run: A function that tries the model on X as it will run, and returns its output in eval form: in training form
            dropout's noise would differ, for it is drawn in the order of memory.

    Returns:
        Whether inputs are to be laid out in `channels_last` from now on.
    """
    expected = run(X)
    weights = [p for p in model.parameters() if p.dim() == 4]
    if not weights or not any(map(_is_image, tensors_of(X))):
        return False
    if weights[0].device.type == "cpu" and any(map(_may_corrupt_memory, model.modules())):
        logger.info("%s runs in torch's usual memory format: it has narrow strided 1x1 kernels", type(model).__name__)
        return False
    original = [p.data for p in weights]
    lay_out_weights(model)
    try:
        agrees = agree(expected, run(channels_last_inputs(X)))
        why = "its output differs in channels_last"
    except RuntimeError as error:  # such as .view on a feature map
        agrees, why = False, f"in channels_last it raises: {str(error).splitlines()[0]}"
    if agrees:
        logger.info("%s runs in channels_last: a trial gave the same output", type(model).__name__)
    else:
        give_back_strides(model)
        for p, data in zip(weights, original, strict=True):
            p.data = data
        logger.info("%s runs in torch's usual memory format: %s", type(model).__name__, why)
    return agrees


def _may_corrupt_memory(module: nn.Module) -> bool:
    """Say whether a module is a convolution whose backward pass torch gets wrong in `channels_last` on a CPU.

    Of 1x1 kernels with a stride torch 2.13 (oneDNN) writes beyond its memory where there are 4 or 6 input channels, and
    the process dies, then or later; 1 and 7 to 24 have been seen to be right. Kernels of vectors differ between CPUs.
    """
    if not isinstance(module, _ConvNd) or module.transposed or len(module.kernel_size) != 2:
        return False
    sizes = getattr(module, "sizes", None)  # of an elastic one, all that it may have
    kernels, strides, widths = (
        sizes.values_of(name) if sizes is not None and sizes.decides(name) else given
        for name, given in _numbers_of(module).items()
    )
    return min(kernels) == 1 and max(strides) > 1 and min(widths) < NARROW


def _numbers_of(conv: _ConvNd) -> dict[str, tuple[int, ...]]:
    return {"kernel_size": conv.kernel_size, "stride": conv.stride, "in_channels": (conv.in_channels,)}


def lay_out_weights(model: nn.Module) -> None:
    """Lay the weights of an image model out in `channels_last`, until `give_back_strides`."""
    lay_out(model, _channels_last)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    # With one channel both layouts are the same in memory, and only a copy gets the strides that tell kernels
    # which is meant: grey images and depthwise weights would stay in NCHW, and all that follows them.
    if tensor.shape[1] == 1:
        return tensor.clone(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last)


def _is_image(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


def agree(expected: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Say whether two outputs are the same up to the order of their sums."""
    first, second = tensors_of(expected), tensors_of(got)
    return len(first) == len(second) and all(_agree(a, b, tolerance) for a, b in zip(first, second, strict=True))


def _agree(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    exact = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(exact), b.to(exact)
    same = (a == b) | (a.isnan() & b.isnan())  # infinities and NaN of a batch that holds such values
    return bool(torch.where(same, 0.0, a - b).norm() <= tolerance * a[a.isfinite()].norm())
