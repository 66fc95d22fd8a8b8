"""Counting the multiply-accumulates of a pass, also where torch's own counter knows no formula."""

# shapes: B batch, M rows, K what is summed over, N columns; T steps, I inputs; H heads, L queries, S keys

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__: list[str] = []

Shape = tuple[int, ...]

aten = torch.ops.aten


@contextmanager
def counting() -> Iterator[None]:
    """Let layers in this context run as operators that are counted: attention has a way of its own, which is not."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def flop_counter() -> FlopCounterMode:
    """Return a counter that counts two for each multiply-accumulate of products, convolutions and attention."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten.mv: lambda a_MK, x_K, **_: 2 * math.prod(a_MK),
            aten.addmv: lambda y_M, a_MK, x_K, **_: 2 * math.prod(a_MK),
            aten.dot: lambda a_K, b_K, **_: 2 * math.prod(a_K),
            aten.vdot: lambda a_K, b_K, **_: 2 * math.prod(a_K),
            aten.addbmm: lambda y_MN, a_BMK, b_BKN, **_: 2 * math.prod(a_BMK) * b_BKN[2],
            aten._trilinear: _trilinear,
            # What these are on a CPU; elsewhere they are made of products that are counted.
            aten.mkldnn_rnn_layer: _recurrent_layer,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        },
    )
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """In the place of what torch's counter tells modules apart by: hooks, which take longer than the counting."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *args: object) -> None:
        pass


def _trilinear(
    one: Shape,
    two: Shape,
    three: Shape,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    *others: Any,
    **named: Any,
) -> int:
    """Count what `nn.Bilinear` is: each of its products of three is one multiply-accumulate."""
    shapes = []
    for shape, expand in ((one, expand1), (two, expand2), (three, expand3)):
        sizes = list(shape)
        for place in sorted(expand):
            sizes.insert(place, 1)
        shapes.append(sizes)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))


def _recurrent_layer(x_TBI: Shape, of_input: Shape, of_hidden: Shape, *_: Any, **__: Any) -> int:
    return 2 * x_TBI[0] * x_TBI[1] * (math.prod(of_input) + math.prod(of_hidden))


def _attention(q_BHLK: Shape, k_BHSK: Shape, v_BHSN: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(q_BHLK[:-1]) * v_BHSN[-2] * (q_BHLK[-1] + v_BHSN[-1])
