"""Lean mixtures, which are computed again in the backward pass, are held against the ordinary ones."""

import random
import weakref

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fast import KINDS, C, Net, assert_same, darts, kinds, passed, taken_over, weights_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ways import take_way

from supernet import LayerChoice
from supernet.errors import TrainingError
from supernet.execution import LayerSlot, Plan
from supernet.execution.fast.shared import one_pass

ways = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def assert_lean_is_the_same(model, fast, x, weights, training=True, create_graph=False):
    lean, ordinary = (passed(model, fast, x, weights, training, create_graph, lean) for lean in (True, False))
    assert_same(lean, ordinary, 1e-10)


@ways
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(first=kinds, second=kinds, stride=st.sampled_from([1, 2]), affine=st.booleans(), seed=st.integers(0, 99))
def test_random_models_run_the_same_in_lean_memory(first, second, stride, affine, seed, training, fast):
    torch.manual_seed(seed)
    second = sorted({*second, "dropout", "nested"})  # what runs otherwise when it runs again, if it may
    model = Net(first, second, stride, affine).double()
    weights = weights_of(torch.float64, a=len(first), b=len(second), inner=2)
    assert_lean_is_the_same(model, fast, torch.randn(2, 3, 6, 6, dtype=torch.float64), weights, training)


def example(**candidates):
    """Return a model with dropout, a nested choice and these candidates; an input; and weights."""
    torch.manual_seed(0)
    model = Net(["dropout", "sep3"], ["nested", "max"], 1, True)
    model.b = LayerChoice({**dict(model.b.named_children()), **candidates}, label="b")
    weights = weights_of(torch.float64, a=2, b=2 + len(candidates), inner=2)
    return model.double(), torch.randn(2, 3, 6, 6, dtype=torch.float64), weights


@ways
def test_the_gradient_can_be_differentiated_again_in_lean_memory(fast):
    model, x, weights = example()
    assert_lean_is_the_same(model, fast, x, weights, create_graph=True)


class Noisy(nn.Module):
    """A user's module that draws noise in a way of its own."""

    def __init__(self, draw):
        super().__init__()
        self.conv, self.draw = nn.Conv2d(C, C, 1), draw

    def forward(self, x):
        return self.conv(x) * self.draw()


DRAWS = {"Python": lambda: random.random(), "NumPy": lambda: numpy.random.random()}  # noqa: NPY002


@ways
@pytest.mark.parametrize("numbers", DRAWS)
def test_noise_of_other_random_numbers_than_torchs_is_the_same_when_drawn_again(numbers, fast):
    model, x, weights = example(noisy=Noisy(DRAWS[numbers]))
    assert_lean_is_the_same(model, fast, x, weights)


class Warming(nn.Module):
    """Uses a buffer that each forward moves, as a spectral norm does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return self.conv(x) / self.steps


@ways
def test_a_module_finds_its_buffers_as_they_were_when_it_is_computed_again(fast):
    model, x, weights = example(warming=Warming())
    assert_lean_is_the_same(model, fast, x, weights)


@ways
def test_a_mixture_is_computed_again_by_the_plan_of_its_own_forward_and_leaves_the_plan_as_it_is(fast):
    model, x, weights = example()
    found = []
    for lean in (True, False):
        taken, plan = taken_over(model, lean)
        sought, loss = list(taken.parameters()), 0.0
        torch.manual_seed(3)
        take_way(taken, fast)
        for turned in ((), (0,)):
            followed = {label: w.flip(turned).requires_grad_() for label, w in weights.items()}
            plan.update(followed)
            loss = loss + taken(x).square().sum()
            sought += followed.values()
        found.append(torch.autograd.grad(loss, sought))
        assert plan.keys() == followed.keys() and all(plan[label] is w for label, w in followed.items())
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


class Several(nn.Module):
    """Takes two tensors, one of them by a name that torch's own checkpoint claims; returns a structure."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(3, 3, 3)

    def forward(self, x, *, debug):
        return {"both": self.layer(x, debug), "each": (torch.tanh(x), None)}


def test_arguments_of_any_name_and_outputs_of_any_structure_pass_through_a_lean_mixture():
    choice = LayerChoice([Several(), Several()], label="op").double()
    x, y = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = []
    for lean in (True, False):
        output = LayerSlot(choice, Plan(weights_of(torch.float64, op=2)), lean)(x, debug=y)
        assert output["each"][1] is None
        loss = output["both"].square().sum() + output["each"][0].sum()
        found.append(torch.autograd.grad(loss, [x, y, *choice.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_mixture_inside_a_lean_mixture_is_not_computed_a_third_time():
    conv, calls = nn.Conv2d(C, C, 1), []
    conv.register_forward_hook(lambda *_: calls.append(1))
    inner = LayerChoice({"conv": conv, "skip": nn.Identity()}, label="inner")
    outer = LayerChoice({"deep": nn.Sequential(inner), "skip": nn.Identity()}, label="outer")
    model, plan = taken_over(nn.Sequential(outer), lean=True)
    plan.update(weights_of(torch.float32, inner=2, outer=2))
    model(torch.randn(1, C, 2, 2)).sum().backward()
    assert len(calls) == 2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it, as long as they live, whoever holds them."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [id(storage) for storage in storages((args, kwargs))]
        for storage in storages(result):
            if id(storage) not in given:  # else it is a view, or changed in place
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return result

    def count(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def bytes_of_a_chain(depth, fast, lean):
    """Return what a chain of mixtures holds for the backward pass, and its peak, in tensors of a node."""
    torch.manual_seed(0)
    choices = [{k: KINDS[k](1, True) for k in ("skip", "max", "sep3", "dil5")} for _ in range(depth)]
    model, plan = taken_over(nn.Sequential(*(LayerChoice(c, label="op") for c in choices)), lean)
    take_way(model, fast)
    plan.update(weights_of(torch.float32, op=4))
    x = torch.randn(8, C, 16, 16)
    with LiveBytes() as live:
        with one_pass():
            output = model(x)
        held = live.now
        output.sum().backward()
    node = x.numel() * x.element_size()
    return held / node, live.peak / node


@ways
def test_a_chain_of_lean_mixtures_holds_no_more_than_its_nodes(fast):
    depth = 5
    assert bytes_of_a_chain(depth, fast, lean=True)[0] < 1.1 * depth
    assert bytes_of_a_chain(depth, fast, lean=False)[0] > 3 * depth


@ways
def test_a_longer_chain_of_lean_mixtures_needs_no_more_than_its_further_nodes(fast):
    """One mixture at a time is computed again, and is gone before the next one is."""
    short, long = (bytes_of_a_chain(depth, fast, lean=True)[1] for depth in (2, 5))
    assert long - short < 1.1 * 3


@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
def test_a_whole_search_in_lean_memory_finds_the_same(unrolled):
    lean, ordinary = darts(unrolled, memory="lean"), darts(unrolled)
    assert all(mixture.lean for _, mixture in lean.supernet.replaced)
    lean.fit()
    ordinary.fit()
    assert lean.export() == ordinary.export()
    for label, alpha in ordinary.alphas.items():
        torch.testing.assert_close(lean.alphas[label], alpha, rtol=0, atol=1e-6)


def test_another_memory_than_fast_or_lean_is_refused():
    with pytest.raises(TrainingError, match="memory is 'fast' or 'lean', not 'small'"):
        darts(memory="small")
