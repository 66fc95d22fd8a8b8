"""Elastic norms: a path is the frozen network, a mixture the sum of what each width gives, padded with zeros."""

import inspect
from itertools import product
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import supernet
from supernet import Supernet, ValueChoice, fixed_architecture, freeze, recalibrate
from supernet.errors import ChoiceError
from supernet.execution import Selection
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import Forms
from supernet.nn import Mutable, Value

CANDIDATES = {"a": [2, 4, 6], "b": [3, 5], "g": [1, 2]}
A, B, G = (ValueChoice(values, label=label) for label, values in CANDIDATES.items())
BATCH_NORMS = {1: supernet.nn.BatchNorm1d, 2: supernet.nn.BatchNorm2d, 3: supernet.nn.BatchNorm3d}


def double(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decided(number, decisions):
    if isinstance(number, tuple):
        return tuple(decided(each, decisions) for each in number)
    return number.evaluate(decisions) if isinstance(number, Value) else number


# torch's BatchNorm and GroupNorm; from torch 2.12 on.
MAY_LACK_BIAS = "bias" in inspect.signature(nn.BatchNorm2d).parameters


def labels_in(arguments):
    numbers = [n for number in arguments for n in (number if isinstance(number, tuple) else [number])]
    return sorted({leaf.label for n in numbers if isinstance(n, Value) for leaf in n.leaves()})


@st.composite
def norms(draw):
    """Draw a norm, its sizes, torch's other arguments, and the shape of its input, of which None are its sizes."""
    which = draw(st.sampled_from(["batch", "layer", "layers", "rms", "group"]))
    affine, bias = draw(st.booleans()), draw(st.booleans())
    shift = {"bias": bias} if MAY_LACK_BIAS else {}
    if which == "batch":
        dims = draw(st.sampled_from([1, 2, 3]))
        width, is_tracked = draw(st.sampled_from([A, A + B, 4])), draw(st.booleans())
        momenta = [0.1, None] if isinstance(width, int) or not is_tracked else [0.1]
        others = {"momentum": draw(st.sampled_from(momenta)), "track_running_stats": is_tracked}
        return BATCH_NORMS[dims], (width,), {"affine": affine, **shift, **others}, (5, None, 2, 3, 2)[: 2 + dims]
    if which == "group":
        sizes = draw(st.sampled_from([(2, A), (A // 2, A), (G, 4), (A, A * B), (1, B)]))
        return supernet.nn.GroupNorm, sizes, {"affine": affine, **shift, "eps": 0.1}, (3, None, 4)
    others = {"elementwise_affine": affine, "eps": draw(st.sampled_from([0.1, 1e-5]))}
    if which == "rms":
        return supernet.nn.RMSNorm, (draw(st.sampled_from([A, 2 * B, 4])),), others, (3, 2, None)
    shape, before = ((A, 3, B), (2,)) if which == "layers" else (draw(st.sampled_from([A, A + B, (B,)])), (3, 2))
    return supernet.nn.LayerNorm, (shape,), {**others, "bias": bias}, (*before, None)


def made(kind, sizes, others):
    norm = kind(*sizes, **others).double()
    for seed, tensor in enumerate([*norm.parameters(), *norm.buffers()]):
        if tensor.is_floating_point():
            tensor.data.copy_(double(tensor.shape, seed).abs() + 0.5)
    return norm


def shape_of(norm, shape, sizes):
    """Return the shape of the input, with the widths that the sizes are; of groups the last, the channels."""
    width = sizes[-1] if isinstance(sizes[-1], tuple) else (sizes[-1],)
    return tuple(n for size in shape for n in (width if size is None else (size,)))


def by_hand(norm, sizes, others, x, state=None):
    """Return what torch's norm of these sizes gives, of the first features and channels, and move the state given."""
    width = sizes[-1] if isinstance(sizes[-1], tuple) else (sizes[-1],)
    part = tuple(slice(size) for size in width)
    plain = getattr(nn, type(norm).__name__)(*sizes, **others).double().train(norm.training)
    tensors = state if state is not None else {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    x = x[(..., *part)] if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else x[:, : width[0]]
    return torch.func.functional_call(plain, {name: t[part] if t.dim() else t for name, t in tensors.items()}, x)


def largest(number):
    if isinstance(number, tuple):
        return tuple(map(largest, number))
    return max(number.values()) if isinstance(number, Value) else number


def state_of(norm):
    """Return its parameters, and copies of its buffers, which `by_hand` moves."""
    return {**dict(norm.named_parameters()), **{name: b.clone() for name, b in norm.named_buffers()}}


@given(norms(), st.booleans(), st.randoms(use_true_random=False))
def test_a_path_is_the_frozen_network_with_the_first_weights_and_statistics(drawn, training, random):
    kind, sizes, others, shape = drawn
    norm = made(kind, sizes, others).train(training)
    architecture = {label: random.choice(CANDIDATES[label]) for label in labels_in(sizes)}
    right, model = decided(sizes, architecture), nn.Sequential(norm)
    network = freeze(model, architecture)
    plain = getattr(nn, kind.__name__)
    assert type(network[0]) is plain and repr(network[0]) == repr(plain(*right, **others))
    assert network[0].training == training

    state, x = state_of(norm), double(shape_of(norm, shape, right)).requires_grad_()
    expected = by_hand(norm, right, others, x, state)
    running = Supernet(model) if architecture else lambda x, _: model(x)
    output = running(x, architecture)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)
    for name, buffer in norm.named_buffers():  # moved for its own channels alone
        torch.testing.assert_close(buffer, state[name], rtol=0, atol=1e-10)
    moved = freeze(model, architecture).state_dict()
    torch.testing.assert_close(dict(network.state_dict()), dict(moved), rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(y.sin().sum(), [x, *norm.parameters()]) for y in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def padded_sum(outputs):
    shape = [max(sizes) for sizes in zip(*(y.shape for y in outputs), strict=True)]
    total = torch.zeros(shape, dtype=torch.float64)
    for y in outputs:
        padded = torch.zeros(shape, dtype=torch.float64)
        padded[tuple(map(slice, y.shape))] = y
        total = total + padded
    return total


@given(norms(), st.booleans(), st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_a_mixture_is_the_sum_of_what_each_width_gives_padded_with_zeros(drawn, training, numbers):
    kind, sizes, others, shape = drawn
    labels = labels_in(sizes)
    assume(labels)
    numbers = torch.tensor(numbers, dtype=torch.float64).split([len(CANDIDATES[each]) for each in CANDIDATES])
    plan = {label: weights for label, weights in zip(CANDIDATES, numbers, strict=True) if label in labels}
    norm = made(kind, sizes, others).train(training)
    running, x = Supernet(norm), double(shape_of(norm, shape, largest(sizes)))
    outputs, state = [], state_of(norm)
    for each in product(*(range(len(CANDIDATES[label])) for label in labels)):
        decisions = {label: CANDIDATES[label][k] for label, k in zip(labels, each, strict=True)}
        weight = torch.stack([plan[label][k] for label, k in zip(labels, each, strict=True)]).prod()
        outputs.append(weight * by_hand(norm, decided(sizes, decisions), others, x, dict(state)))
    moved = state_of(norm)
    by_hand(norm, largest(sizes), others, x, moved)
    # The input is as wide as the widest on a path too, of which one without any weight would take the whole.
    with mock.patch("supernet.execution.trial.check_one_hot"):
        torch.testing.assert_close(running(x, plan), padded_sum(outputs), rtol=0, atol=1e-10)
    for name, buffer in norm.named_buffers():  # moved once
        torch.testing.assert_close(buffer, moved[name], rtol=0, atol=1e-10)
    with running.following(plan):  # as the base of all such modules has it, one width after another
        torch.testing.assert_close(Mutable.mixed(norm, x), padded_sum(outputs), rtol=0, atol=1e-10)


def test_groups_at_their_largest_need_not_divide_the_largest_width():
    sizes = (A, A * B)  # of 2 to 6 groups, and 6 to 30 channels
    norm = supernet.nn.GroupNorm(*sizes)
    assert (norm.num_groups, norm.num_channels) == (6, 30)
    norm = supernet.nn.GroupNorm(ValueChoice([3, 4], label="groups") * 1, 12)
    assert freeze(norm, {"groups": 3}).num_groups == 3


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: supernet.nn.BatchNorm1d(A), (3, None)),
        (lambda: supernet.nn.LayerNorm(A, eps=0.1), (2, None)),
        (lambda: supernet.nn.RMSNorm(A, eps=0.1), (2, None)),
        (lambda: supernet.nn.GroupNorm(2, A, eps=0.1), (2, None, 3)),
    ],
)
def test_a_mixture_has_the_gradients_of_its_definition(norm, shape):
    layer = norm().double()
    running, weights = Supernet(layer), double((3,), seed=1).requires_grad_()
    x = double(tuple(size or 6 for size in shape)).requires_grad_()

    def mixture(weights, x, *_):
        return running(x, {"a": weights})

    assert torch.autograd.gradcheck(mixture, (weights, x, *layer.parameters()))


@pytest.mark.parametrize("kind", [supernet.nn.BatchNorm1d, supernet.nn.LayerNorm])
def test_what_is_detached_gives_an_output_and_its_weight_a_gradient_and_nothing_else(kind):
    norm, x = kind(A).double(), double((5, 6)).requires_grad_()
    gates = double((2,), seed=1).requires_grad_()
    output = Supernet(norm)(x, {"a": Selection((2, 4), gates, detached=1)})
    active, detached = (by_hand(norm, (width,), {}, x, state_of(norm)) for width in (2, 4))
    expected = padded_sum([gates[0] * active, gates[1] * detached.detach()])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    wanted = [x, norm.weight, norm.bias, gates]
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), wanted) for y in (output, expected)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        width = ValueChoice([4, 8], label="width")
        self.conv, self.norm = supernet.nn.Conv2d(1, width, 3), supernet.nn.BatchNorm2d(width, momentum=0.3)
        self.deep, self.head = supernet.nn.Conv2d(width, width, 3), supernet.nn.Linear(width, 2)
        self.last = supernet.nn.BatchNorm2d(width)

    def forward(self, x):
        return self.head(self.last(self.deep(torch.relu(self.norm(self.conv(x))))).mean((2, 3)))


def test_statistics_computed_anew_on_a_path_are_those_of_the_frozen_network_on_the_same_batches():
    torch.manual_seed(0)
    model, images = Net().double(), double((40, 1, 8, 8)) * 3 + 1
    loader = DataLoader(TensorDataset(images, torch.zeros(40)), 10)
    running, plan = Supernet(model), {"width": torch.tensor([0.5, 0.5], dtype=torch.float64)}
    running(images, plan)  # statistics of many mixed
    network = freeze(model, {"width": 4})
    with statistics_anew(model, Forms(model)) as norms, torch.no_grad():
        assert norms == [model.norm, model.last]
        for X, _ in loader:
            running(X, {"width": 4})
    assert not model.training and model.norm.momentum == 0.3
    recalibrate(network, loader)
    found = freeze(model, {"width": 4})
    for name in ("norm", "last"):
        right, got = getattr(network, name), getattr(found, name)
        torch.testing.assert_close(got.running_mean, right.running_mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(got.running_var, right.running_var, rtol=0, atol=1e-10)
        assert not model.norm.running_mean[4:].any()  # others are none of this network's
    torch.testing.assert_close(running(images, {"width": 4}), network.eval()(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [*BATCH_NORMS.values(), supernet.nn.LayerNorm, supernet.nn.RMSNorm])
def test_a_norm_of_plain_numbers_is_that_of_torch(kind):
    plain, norm = getattr(nn, kind.__name__)(3), kind(3)
    assert list(norm.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, *{"BatchNorm2d": (3, 4, 4), "BatchNorm3d": (3, 4, 4, 4)}.get(kind.__name__, (3,)))
    assert torch.equal(norm(x), plain(x))
    with fixed_architecture({"width": 2}):
        assert repr(kind(ValueChoice([2, 4], label="width"))) == repr(getattr(nn, kind.__name__)(2))


def test_a_batch_norm_of_another_number_of_dimensions_is_refused_as_torch_refuses_it():
    for running, plan in ((Supernet(supernet.nn.BatchNorm2d(A)), each) for each in ({"a": 2}, {"a": torch.ones(3)})):
        with pytest.raises(ValueError, match="expected 4D input"):
            running(torch.ones(3, 2), plan)


def test_a_norm_on_a_path_that_is_given_more_channels_than_it_has_is_an_error_as_in_the_frozen_network():
    for kind in (supernet.nn.BatchNorm1d, supernet.nn.LayerNorm, supernet.nn.RMSNorm):
        with pytest.raises(RuntimeError):
            Supernet(kind(A))(torch.ones(3, 6), {"a": 2})


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (supernet.nn.BatchNorm2d, (A / 4,), "num_features is a whole number above 0, but a / 4 may be 0.5"),
        (supernet.nn.LayerNorm, (A - 2,), "normalized_shape is a whole number above 0, but a - 2 may be 0"),
        (supernet.nn.LayerNorm, ((2, A - 4),), r"normalized_shape\[1\] is a whole number above 0, but a - 4 may be -2"),
        (supernet.nn.RMSNorm, ("wide",), "normalized_shape is a whole number above 0, but wide may be 'wide'"),
        (supernet.nn.GroupNorm, (4, A), "num_groups=4 must divide num_channels=a, but 4 does not divide 2"),
        (supernet.nn.GroupNorm, (G - 1, A), "num_groups is a whole number above 0"),
    ],
)
def test_sizes_that_torch_would_not_take_are_refused_by_name(kind, sizes, message):
    with pytest.raises(ChoiceError, match=message):
        kind(*sizes)


def test_a_torch_whose_norms_all_shift_is_named_where_one_shall_not(monkeypatch):
    def of_old_torch(self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None):
        init(self, num_groups, num_channels, eps, affine, device, dtype)

    init = nn.GroupNorm.__init__
    monkeypatch.setattr(nn.GroupNorm, "__init__", of_old_torch)
    norm = supernet.nn.GroupNorm(2, A)
    assert isinstance(freeze(nn.Sequential(norm), {"a": max(CANDIDATES["a"])})[0].bias, nn.Parameter)
    with pytest.raises(ChoiceError, match=r"GroupNorm takes bias=False from torch 2\.12 on; this is torch \d"):
        supernet.nn.GroupNorm(2, A, bias=False)


@pytest.mark.skipif(not MAY_LACK_BIAS, reason="norms of this torch have a bias")
def test_a_norm_whose_bias_was_taken_away_is_frozen_without_one():
    norm = supernet.nn.BatchNorm2d(A)
    norm.bias = None
    network = freeze(nn.Sequential(norm), {"a": max(CANDIDATES["a"])})
    assert network[0].bias is None and network[0].weight is not None
