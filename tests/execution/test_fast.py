"""The fast way is held against its plain twin: outputs, gradients, running statistics and random stream."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from ways import take_way

from supernet import DartsTrainer, LayerChoice
from supernet.execution import LayerSlot, Plan, replace_layer_choice
from supernet.execution.fast.candidates import Candidates
from supernet.execution.fast.shared import one_pass
from supernet.execution.state import RandomState, reseed
from supernet.hub.darts import FactorizedReduce, darts_operation

C = 4


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Skip(nn.Module):
    def forward(self, x):
        return x


class Own(nn.Module):
    """A user's module with a forward of its own."""

    def __init__(self, stride, affine):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, stride, 1)
        self.bn = nn.BatchNorm2d(C, affine=affine)

    def forward(self, x):
        return self.bn(torch.relu(self.conv(torch.relu(x))))


KINDS = {
    "zero": lambda stride, affine: Zero(stride),
    "skip": lambda stride, affine: Skip() if stride == 1 else FactorizedReduce(C, C, affine=affine),
    "max": lambda stride, affine: nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(C, affine=affine)),
    "avg": lambda stride, affine: nn.Sequential(
        nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(C, affine=affine)
    ),
    "sep3": lambda stride, affine: darts_operation("sep_conv_3x3", C, stride, affine=affine),
    "sep5": lambda stride, affine: darts_operation("sep_conv_5x5", C, stride, affine=affine),
    "dil3": lambda stride, affine: darts_operation("dil_conv_3x3", C, stride, affine=affine),
    "dil5": lambda stride, affine: darts_operation("dil_conv_5x5", C, stride, affine=affine),
    "own": Own,
    "conv": lambda stride, affine: nn.Conv2d(C, C, 3, stride, 1),
    "dropout": lambda stride, affine: nn.Sequential(nn.Conv2d(C, C, 1, stride), nn.Dropout(0.3)),
    "nested": lambda stride, affine: nn.Sequential(
        nn.ReLU(), LayerChoice({"a": nn.Conv2d(C, C, 3, stride, 1), "b": Own(stride, affine)}, label="inner")
    ),
}


class Net(nn.Module):
    """Two edges that leave one node, and a third behind them that shares the label of the first."""

    def __init__(self, first, second, stride, affine):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.a = LayerChoice({k: KINDS[k](stride, affine) for k in first}, label="a")
        self.b = LayerChoice({k: KINDS[k](stride, affine) for k in second}, label="b")
        self.c = LayerChoice({k: KINDS[k](1, not affine) for k in first}, label="a")

    def forward(self, x):
        h = self.stem(x)
        y = self.a(h) + self.b(h)
        return self.c(y) + y


def taken_over(model, lean=False):
    """Return a copy that runs as mixtures, and its plan."""
    model, plan = copy.deepcopy(model), Plan()
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan, lean), [])
    return model, plan


def passed(model, fast, x, weights, training=True, create_graph=False, lean=False):
    """Return all that one forward and backward pass gives or changes."""
    model, plan = taken_over(model, lean)
    model.train(training)
    take_way(model, fast)
    x = x.detach().requires_grad_()
    weights = {label: w.detach().clone().requires_grad_() for label, w in weights.items()}
    plan.update(weights)
    reseed(3)
    with one_pass():
        output = model(x)
    target = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    named = {"x": x, **weights, **dict(model.named_parameters())}
    grads = torch.autograd.grad((output * target).sum(), named.values(), allow_unused=True, create_graph=create_graph)
    if create_graph:
        squares = sum(g.pow(2).sum() for g in grads if g is not None)
        grads = torch.autograd.grad(squares, named.values(), allow_unused=True)
    gradients = {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(named.items(), grads, strict=True)}
    drawn = RandomState().to_tree()
    drawn["cpu"] = drawn["cpu"].tolist()
    return output.detach(), gradients, dict(model.named_buffers()), drawn


def assert_same(fast, plain, tolerance, exact=None):
    """Hold two passes against each other, relative to the norm.

    With `exact`, the plain pass in float64, the error may also be a few times the plain way's own: where values cancel,
    as in the gradient of a bias before a BatchNorm, two orders of one sum differ by more than the tolerance.
    """
    assert fast[3] == plain[3], "the random stream differs"
    names = ["output", *(f"gradient of {k}" for k in plain[1]), *plain[2]]
    rows = [[p[0], *p[1].values(), *p[2].values()] for p in (fast, plain, exact or plain)]
    for name, got, expected, true in zip(names, *(map(torch.Tensor.double, row) for row in rows), strict=True):
        allowed = max(tolerance * float(expected.norm()), 4 * float((expected - true).norm()), 1e-12)
        error = float((got - expected).norm())
        assert error <= allowed, f"{name}: {error} of {float(expected.norm())}"


def weights_of(dtype, **sizes):
    return {k: torch.linspace(0.1, 1.0, n, dtype=dtype).softmax(0) for k, n in sizes.items()}


kinds = st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=4, unique=True)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    first=kinds,
    second=kinds,
    stride=st.sampled_from([1, 2]),
    affine=st.booleans(),
    training=st.booleans(),
    batch=st.integers(1, 3),
    size=st.sampled_from([6, 7, 8]),
    mean=st.sampled_from([0.0, 100.0]),
    channels_last=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_models_run_the_same_both_ways(
    first, second, stride, affine, training, batch, size, mean, channels_last, double, seed
):
    size += size % 2 if stride == 2 else 0  # a FactorizedReduce halves even sizes only
    dtype = torch.float64 if double else torch.float32
    torch.manual_seed(seed)
    model = Net(first, second, stride, affine).to(dtype)
    # In float32 two orders of one sum already differ by more where the mean is 100 deviations.
    x = torch.randn(batch, 3, size, size, dtype=dtype) + (mean if double else 0.0)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    weights = weights_of(dtype, a=len(first), b=len(second), inner=2)
    fast, plain = (passed(model, way, x, weights, training) for way in (True, False))
    if double:
        assert_same(fast, plain, 1e-10)
    else:
        in_double = {label: w.double() for label, w in weights.items()}
        assert_same(fast, plain, 1e-5, passed(model.double(), False, x.double(), in_double, training))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"dropout", "nested"}))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_can_be_differentiated_again(kind, training, stride):
    torch.manual_seed(0)
    model = Net([kind, "conv"], [kind, "skip"], stride, True).double()
    widths = {"a": len({kind, "conv"}), "b": len({kind, "skip"})}
    x, weights = torch.randn(2, 3, 6, 6, dtype=torch.float64), weights_of(torch.float64, **widths)
    assert_same(*(passed(model, way, x, weights, training, create_graph=True) for way in (True, False)), 1e-10)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"nested"}))
@pytest.mark.parametrize("stride", [1, 2])
def test_users_own_operations_are_understood(kind, stride):
    trace = Candidates({kind: KINDS[kind](stride, False)}, {}).traces[kind]
    assert not trace.runs_as_it_is, trace.text
    assert trace.is_zero == (kind == "zero")
    assert (trace.norm is not None) == (kind not in ("zero", "conv", "dropout") and (kind, stride) != ("skip", 1))


def test_under_autocast_both_ways_agree():
    """In bfloat16 candidates run as they are, in the dtypes that autocast gives them."""
    torch.manual_seed(0)
    model = Net(["sep3", "max", "skip"], ["conv", "own"], 1, True)
    x, weights = torch.randn(2, 3, 8, 8), weights_of(torch.float32, a=3, b=2)
    with torch.autocast("cpu", torch.bfloat16):
        fast, plain = (passed(model, way, x, weights) for way in (True, False))
    assert_same(fast, plain, 1e-5)


class OtherConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def hooked():
    conv = nn.Conv2d(C, C, 1)
    conv.register_forward_hook(lambda module, args, output: 3 * output)
    return nn.Sequential(conv)


def normed(**options):
    return nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, **options))


ODD = {
    "hook": hooked,
    "subclass": lambda: OtherConv(C, C, 1),
    "branching": Branching,
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(C, C, 1)),
    "momentum None": lambda: normed(momentum=None),
    "no running statistics": lambda: normed(track_running_stats=False),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_understood_runs_as_it_is(kind, training):
    torch.manual_seed(0)
    model = Net(["conv", "sep3"], ["max", "skip"], 1, True)
    model.b = LayerChoice({"odd": ODD[kind](), "max": KINDS["max"](1, True)}, label="b")
    model, x = model.double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weights = weights_of(torch.float64, a=2, b=2)
    assert_same(*(passed(model, way, x, weights, training) for way in (True, False)), 1e-10)
    trace = Candidates({"odd": ODD[kind]()}, {}).traces["odd"]
    assert trace.runs_as_it_is or trace.norm is None


def test_candidates_that_share_parameters_run_as_they_are():
    conv = nn.Conv2d(C, C, 1)
    common = Candidates({"a": nn.Sequential(nn.ReLU(), conv), "b": nn.Sequential(conv)}, {}).common
    assert common == "'a' and 'b' share modules or parameters"


def test_a_hook_put_on_later_is_called():
    model, plan = taken_over(Net(["conv", "own"], ["max", "skip"], 1, True))
    x = torch.randn(2, 3, 6, 6)
    plan.update(weights_of(torch.float32, a=2, b=2))
    model(x)
    called = []
    model.a.candidates["own"].bn.register_forward_hook(lambda *_: called.append(1))
    model(x)
    assert called == [1]


def test_one_value_a_channel_is_refused_in_training_as_torch_does():
    model, plan = taken_over(Net(["own", "conv"], ["max", "skip"], 1, True))
    plan.update(weights_of(torch.float32, a=2, b=2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 1, 1))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net(["zero", "max", "sep3", "skip"], ["avg", "dil3", "own", "dropout"], 2, False)
        self.head = nn.Linear(C, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def darts(unrolled=False, **options):
    torch.manual_seed(0)
    model = Classifier().double()
    data = torch.utils.data.TensorDataset(torch.randn(48, 3, 8, 8, dtype=torch.float64), torch.arange(48).remainder(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    options = {"batch_size": 8, "unrolled": unrolled, "progress": False, **options}
    return DartsTrainer(model, nn.CrossEntropyLoss(), None, optimizer, 3, data, **options)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_whole_search_finds_the_same(unrolled):
    fast, plain = darts(unrolled), darts(unrolled)
    take_way(plain.model, fast=False)
    fast.fit()
    plain.fit()
    assert fast.export() == plain.export()
    for label, alpha in plain.alphas.items():
        torch.testing.assert_close(fast.alphas[label], alpha, rtol=0, atol=1e-6)


def test_the_trainer_says_what_it_found(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="supernet"):
        trainer = darts()
    assert "12 of the 12 candidates in 3 choices run the fast way" in caplog.text
    trainer.explain()
    printed = capsys.readouterr().out
    assert "zero: skipped: zeros" in printed
    assert "max: MaxPool2d shared, BatchNorm2d in the mixture" in printed
