"""What processes compare after an epoch: what is trained, and generators, wherever the algorithm keeps them."""

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from supernet.training.agreement import _tensors_of, checksums


@dataclass
class Held:
    value: Any


CONTAINERS = {
    "dict": lambda value: {"key": value},
    "list": lambda value: [0, value],
    "tuple": lambda value: (value,),
    "deque": lambda value: deque([value]),
    "set": lambda value: {value},
    "dataclass": lambda value: Held([value]),
}
GENERATORS = {
    "torch": lambda seed: torch.Generator().manual_seed(seed),
    "Python": random.Random,
    "NumPy": np.random.default_rng,
    "bits": np.random.PCG64,
    "NumPy's old": np.random.RandomState,
}
OF_EACH_PROCESS = {
    "tensor": torch.ones(2),
    "array": np.ones(2),
    "number": np.float64(0.5),
    "array backwards": np.arange(3)[::-1],
    "array of foreign byte order": np.arange(3, dtype=">i4"),
}


def compared(value):
    tensors = dict(_tensors_of("name", value))
    return dict(zip(tensors, checksums(list(tensors.values())), strict=True))


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_requires_a_gradient_is_compared_at_any_depth(container):
    one, same, other = (compared(CONTAINERS[container](nn.Parameter(torch.full((2,), x)))) for x in (1.0, 1.0, 2.0))
    assert one == same
    assert one != other


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_generators_are_compared_at_any_depth(container, kind):
    one, same, other = (compared(CONTAINERS[container](GENERATORS[kind](seed))) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_sets_are_compared_whatever_their_order():
    upward, downward = ([nn.Parameter(torch.ones(2) * n) for n in order] for order in (range(20), range(19, -1, -1)))
    assert compared(set(upward)) == compared(set(downward))


@pytest.mark.parametrize("what", OF_EACH_PROCESS)
def test_means_may_be_each_processs_own_in_tensors_and_arrays_alike(what):
    assert compared({"mean": OF_EACH_PROCESS[what]}) == {}
