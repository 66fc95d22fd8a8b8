"""The peak of activations is that of the frozen network: in closed form, and by looking at all its operations."""

import itertools

import pytest
import torch
from tests.cost.models_with_choices import MODELS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import supernet.nn as elastic
from supernet import LayerChoice, Repeat, ValueChoice, freeze
from supernet.cost import Limits, PeakMemory
from supernet.errors import CostError
from supernet.space.summary import moved


class Watching(TorchDispatchMode):
    """Notes of each storage its bytes, when it is made and when it is read last."""

    def __init__(self, given):
        super().__init__()
        self.now, self.life, self.kept = 0, {}, []
        for tensor in given:
            self.make(tensor, True)

    def make(self, tensor, counts):
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        self.life[storage._cdata] = [storage.nbytes(), self.now, self.now if counts else None]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.now += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in given:
            if tensor.untyped_storage()._cdata in self.life:
                self.life[tensor.untyped_storage()._cdata][2] = self.now
        weights = {tensor.untyped_storage()._cdata for tensor in given}
        for position, tensor in enumerate(tree_leaves(output)):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in weights | self.life.keys():
                self.make(tensor, position == 0)
        return output


def peak_of_frozen(model, architecture, example):
    """On the device "meta", where attention is made of products on every machine."""
    network, example = freeze(model, architecture).to("meta").eval(), moved(example, "meta")
    with torch.no_grad(), Watching([example]) as watching:
        output = network(example)
    for tensor in tree_leaves(output):
        if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata in watching.life:
            watching.life[tensor.untyped_storage()._cdata][2] = watching.now
    lives = [life for life in watching.life.values() if life[2] is not None]
    return max(sum(n for n, born, last in lives if born <= now <= last) for now in range(watching.now + 1))


SLOW = {"Darts", "ShuffleNetV2", "elastic ResNet-50", "elastic MobileNet", "elastic DenseNet"}
SLOW |= {"elastic windows", "elastic ViT", "AutoFormer", "FBNet", "ProxylessNas", "NasBenchMacro", "elastic encoder"}
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]


@pytest.mark.parametrize("name", EVERY)
def test_the_peak_is_that_of_the_frozen_networks_operations(name):
    torch.manual_seed(0)
    model, example = MODELS[name]()
    cost, generator = PeakMemory(model, example), torch.Generator().manual_seed(2)
    for _ in range(4):
        architecture = cost.space.sample(generator)
        given, expected = cost.of(architecture), peak_of_frozen(model, architecture, example)
        assert given == expected


def test_a_chain_holds_what_goes_into_a_layer_and_what_comes_out():
    sizes = [ValueChoice([8, 64], label=label) for label in "abc"]
    model = nn.Sequential(*(elastic.Linear(a, b) for a, b in zip([16, *sizes], [*sizes, 4], strict=True)))
    cost = PeakMemory(model, torch.ones(3, 16))
    for architecture in cost.space.enumerate():
        widths = [16, *architecture.values(), 4]
        assert cost.of(architecture) == 3 * 4 * max(a + b for a, b in itertools.pairwise(widths))


class Residual(nn.Module):
    def __init__(self, expansion):
        super().__init__()
        self.body = nn.Sequential(
            elastic.Linear(8, expansion * 8), nn.ReLU(inplace=True), elastic.Linear(expansion * 8, 8)
        )

    def forward(self, x):
        return x + self.body(x)


def test_a_shortcut_is_held_while_its_block_runs_and_what_is_changed_in_place_is_one_memory():
    expansion = ValueChoice([1, 6], label="expansion")
    model = nn.Sequential(Repeat([Residual(expansion) for _ in range(2)], ValueChoice([1, 2], label="depth")))
    cost = PeakMemory(model, torch.ones(1, 8, dtype=torch.float64))
    # x, what is inside, and what comes out of it; x, that, and their sum
    assert cost.of({"expansion": 6, "depth": 2}) == 8 * (8 + 48 + 8)
    assert cost.of({"expansion": 1, "depth": 1}) == 8 * (8 + 8 + 8)


def test_by_products_that_nothing_reads_are_not_counted():
    model = nn.Sequential(LayerChoice({"max": nn.MaxPool2d(2), "skip": nn.Identity()}, label="pool"))
    cost = PeakMemory(model, torch.ones(1, 1, 8, 8))
    assert (cost.of({"pool": "max"}), cost.of({"pool": "skip"})) == (4 * (64 + 16), 4 * 64)


def test_its_mean_is_the_sum_over_all_architectures_or_refused():
    widths = [ValueChoice([8, 64], label=label) for label in "ab"]
    model = nn.Sequential(elastic.Linear(16, widths[0]), elastic.Linear(*widths))
    cost = PeakMemory(model, torch.ones(1, 16))
    p = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    peaks = {one: cost.of({"a": one[0], "b": one[1]}) for one in ((8, 8), (8, 64), (64, 8), (64, 64))}
    mean = 0.25 * (0.25 * peaks[8, 8] + 0.75 * peaks[8, 64]) + 0.75 * (0.25 * peaks[64, 8] + 0.75 * peaks[64, 64])
    expected = cost.expected({"a": p, "b": p})
    assert expected.item() == pytest.approx(mean)
    expected.backward()
    assert p.grad.abs().sum() > 0
    many = nn.Sequential(
        *(elastic.Linear(4, 4), nn.Identity()), *(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"{i}") for i in range(13))
    )
    uniform = {f"{i}": torch.full((2,), 0.5) for i in range(13)}
    with pytest.raises(CostError, match="the peak of memory is no sum of parts"):
        PeakMemory(many, torch.ones(1, 4)).expected(uniform)


def test_it_is_limited_by_its_name():
    width = ValueChoice([8, 64], label="width")
    model = nn.Sequential(elastic.Linear(16, width), elastic.Linear(width, 4))
    limits = Limits(model, {"peak_memory": 200}, example=torch.ones(1, 16))
    assert (limits({"width": 8}), limits({"width": 64})) == (True, False)
    assert limits.described("peak_memory") == "at most 200 bytes"
    with pytest.raises(CostError, match="'peak_memory' is of a network that runs; give example="):
        Limits(model, {"peak_memory": 200})


def test_a_tensor_that_comes_by_an_attribute_is_refused():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.reads = {}, Reads()
            self.reads.kept = self.kept
            self.layer = LayerChoice([nn.ReLU(), nn.Tanh()], label="layer")

        def forward(self, x):
            self.kept["x"] = x + 1
            return self.reads(self.layer(x))

    class Reads(nn.Module):
        def forward(self, x):
            return x + self.kept["x"]

    with pytest.raises(CostError, match="'reads' reads a tensor that it was not given"):
        PeakMemory(Keeps(), torch.ones(1, 4))
