"""Whether two trees of values are the same."""

import dataclasses
import random
import struct
from collections import OrderedDict, defaultdict, deque

import numpy as np
import torch


def same(a, b, seen=None):
    """Whether two values are equal in value and type, to any depth, and hold the same objects twice."""
    seen = {} if seen is None else seen
    if id(a) in seen and not isinstance(a, int | str | float | None):
        return seen[id(a)][1] is b
    seen[id(a)] = a, b  # which stay alive, and so keep their ids

    def all_same(xs, ys):
        xs, ys = list(xs), list(ys)
        return len(xs) == len(ys) and all(same(x, y, seen) for x, y in zip(xs, ys, strict=True))

    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if (a.shape, a.dtype, a.layout, a.requires_grad, a.device) != (
            *(b.shape, b.dtype, b.layout, b.requires_grad, b.device),
        ):
            return False
        if a.layout != torch.strided:
            return a.is_coalesced() == b.is_coalesced() and all_same(
                (a._indices(), a._values()), (b._indices(), b._values())
            )
        bits = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*bits)
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes("A")) == (b.dtype, b.shape, b.tobytes("A")) and (
            a.flags.writeable == b.flags.writeable
        )
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
    if isinstance(a, defaultdict) and a.default_factory is not b.default_factory:
        return False
    if isinstance(a, OrderedDict) and vars(a) != vars(b):
        return False
    if isinstance(a, dict):
        return all_same(a, b) and all_same(a.values(), b.values())
    if isinstance(a, deque):
        return a.maxlen == b.maxlen and all_same(a, b)
    if isinstance(a, list | tuple):
        return all_same(a, b)
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return all_same([getattr(a, name) for name in names], [getattr(b, name) for name in names])
    if isinstance(a, torch.Generator):
        return a.device == b.device and torch.equal(a.get_state(), b.get_state())
    if isinstance(a, random.Random):
        return a.getstate() == b.getstate()
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator, b.bit_generator, seen)
    if isinstance(a, np.random.RandomState):
        return same(a.get_state(legacy=False), b.get_state(legacy=False)) and same(
            a._bit_generator, b._bit_generator, seen
        )
    if isinstance(a, np.random.BitGenerator):
        seeds = [bits.seed_seq and bits.seed_seq.state for bits in (a, b)]
        return same(a.state, b.state) and same(*seeds)
    return a == b
