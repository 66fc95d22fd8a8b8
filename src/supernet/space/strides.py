"""Weights in the memory layout that their user gave them, while a supernet has them in another.

A module remembers the strides of its own weights, as an ordinary attribute, so that it goes along with `copy.deepcopy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__: list[str] = []

_MEMORY = "_supernet_strides"


def lay_out(model: nn.Module, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put the 4-D weights of a model into another memory layout, and remember the one that they have."""
    places = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
    images = [(module, name, p) for module, name, p in places if p.dim() == 4]
    for module, name, p in images:
        module.__dict__.setdefault(_MEMORY, {})[name] = p.shape, p.stride()  # by name, which a copy has too
    for p in {id(p): p for _, _, p in images}.values():
        p.data = layout(p.data)


def give_back_strides(model: nn.Module) -> None:
    """Put the weights of a model into the memory layout that they had before `lay_out`; no value changes."""
    for module in model.modules():
        for name, (shape, strides) in module.__dict__.pop(_MEMORY, {}).items():
            p = module._parameters.get(name)
            if p is not None and p.shape == shape and p.stride() != strides:
                p.data = torch.empty_strided(shape, strides, dtype=p.dtype, device=p.device).copy_(p.data)


def give_strides_like(original: nn.Module, frozen: nn.Module) -> None:
    """Put parts of a module's weights into the layout that the weights had before `lay_out`; no value changes."""
    for name, (shape, strides) in original.__dict__.get(_MEMORY, {}).items():
        p = frozen._parameters.get(name)
        if p is not None and p.dim() == len(shape):
            before = torch.empty_strided(shape, strides, device="meta")
            is_last = before.is_contiguous(memory_format=torch.channels_last) and not before.is_contiguous()
            layout = torch.channels_last if is_last else torch.contiguous_format
            laid_out = p.detach().contiguous(memory_format=layout)
            frozen._parameters[name] = nn.Parameter(laid_out, requires_grad=p.requires_grad)


@torch.no_grad()
def let_state_follow(parameters: Iterable[torch.Tensor], state: dict[Any, dict[str, Any]]) -> None:
    """Put what belongs to parameters, gradients and the state of an optimizer, into their memory layout."""
    for p in parameters:
        if p.grad is not None:
            p.grad = _like(p.grad, p)
        own_state = state.get(p, {})
        for name, value in own_state.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                own_state[name] = _like(value, p)


def _like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if tensor.stride() == parameter.stride() or tensor.layout != torch.strided:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
