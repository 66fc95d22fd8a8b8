"""Elastic convolutions: a path is the frozen network, a mixture the sum of what each size gives, padded with zeros."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import supernet
from supernet import Supernet, ValueChoice, fixed_architecture, freeze
from supernet.errors import ChoiceError
from supernet.execution import Selection
from supernet.nn import Mutable, Value

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of torch's own too

CANDIDATES = {"a": [2, 4, 6], "b": [3, 4], "k": [1, 3, 5], "e": [2, 4], "h": [1, 3], "s": [1, 2], "d": [1, 2]}
A, B, K, E, H, S, D = (ValueChoice(values, label=label) for label, values in CANDIDATES.items())

# (in_channels, out_channels, groups)
WIDTHS = {
    "plain": (3, 4, 1),
    "independent": (A, B, 1),
    "one choice": (A, A + 1, 1),
    "depthwise": (A, A, A),
    "depthwise, two of each": (A, 2 * A, A),
    "groups of two": (A, A, A // 2),
    "two groups": (A, 2 * B, 2),
    "chosen groups": (12, 6, H),
}
# kernel, padding; the dilation is d
KERNELS = {
    "fixed": (3, lambda d: 1),
    "odd": (K, lambda d: d * (K // 2)),
    "even": (E, lambda d: d * (E // 2)),
    "same": (K, lambda d: "same"),
    "even, same": (E, lambda d: "same"),
    "unpadded": (K, lambda d: 0),
    "valid": (K, lambda d: "valid"),
}
LAYERS = [supernet.nn.Conv1d, supernet.nn.Conv2d, supernet.nn.Conv3d, supernet.nn.ConvTranspose2d]
IN_ONE_PASS = {"plain", "independent", "one choice", "depthwise", "depthwise, two of each", "groups of two"}


def double(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decided(arguments, decisions):
    """Return torch's arguments under an architecture."""

    def value(number):
        if isinstance(number, tuple):
            return tuple(map(value, number))
        return number.evaluate(decisions) if isinstance(number, Value) else number

    return {name: value(number) for name, number in arguments.items()}


def part_of(layer, arguments):
    """Return by hand the part of the weight, and of the bias, that torch's layer of these arguments has."""
    ins, outs, groups = (arguments[name] for name in ("in_channels", "out_channels", "groups"))
    weight = layer.weight[:ins, : outs // groups] if layer.transposed else layer.weight[:outs, : ins // groups]
    kernel = arguments["kernel_size"]
    for dim, size in enumerate(kernel if isinstance(kernel, tuple) else (kernel,) * layer.num_dims, 2):
        around = weight.shape[dim] - size
        weight = weight[(slice(None),) * dim + (slice(around // 2, around // 2 + size),)]
    return weight, None if layer.bias is None else layer.bias[:outs]


def by_hand(layer, arguments, x):
    """Return what torch's own layer gives that has the part of the weight."""
    weight, bias = part_of(layer, arguments)
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    channels = x.narrow(-1 - layer.num_dims, 0, arguments["in_channels"])
    return torch.func.functional_call(layer.plain(**arguments).double(), state, channels)


def padded_sum(outputs):
    """Return the sum of tensors of several widths, the second dimension."""
    width = max(y.shape[1] for y in outputs)
    return sum(torch.cat([y, y.new_zeros(y.shape[0], width - y.shape[1], *y.shape[2:])], 1) for y in outputs)


def labels_in(arguments):
    numbers = [n for number in arguments.values() for n in (number if isinstance(number, tuple) else [number])]
    return sorted({leaf.label for n in numbers if isinstance(n, Value) for leaf in n.leaves()})


def each_by_hand(layer, arguments, x, plan):
    """Return what each joint size gives, times the product of its weights; a plan has weights of all candidates."""
    labels, outputs = labels_in(arguments), []
    for each in product(*(range(len(CANDIDATES[label])) for label in labels)):
        decisions = {label: CANDIDATES[label][k] for label, k in zip(labels, each, strict=True)}
        weight = torch.stack([plan[label][k] for label, k in zip(labels, each, strict=True)]).prod()
        outputs.append(weight * by_hand(layer, decided(arguments, decisions), x))
    return outputs


def arguments_of(widths, kernel, stride=1, dilation=1, **others):
    ins, outs, groups = WIDTHS[widths]
    size, padding = KERNELS[kernel][0], KERNELS[kernel][1](dilation)
    arguments = {"in_channels": ins, "out_channels": outs, "kernel_size": size, "padding": padding, "groups": groups}
    return arguments | {"stride": stride, "dilation": dilation, **others}


@st.composite
def convolutions(draw, can_be_mixed):
    """Draw a layer and its arguments; none whose outputs are images of several sizes, where it is to be mixed."""
    kind = draw(st.sampled_from(LAYERS))
    lacking = {"unpadded", "valid"} if can_be_mixed else set()
    if kind is supernet.nn.ConvTranspose2d:
        lacking |= {"same", "even, same", "valid"}
    kernel = draw(st.sampled_from(sorted(KERNELS.keys() - lacking)))
    dilation = draw(st.sampled_from([1, 2] if can_be_mixed else [1, 2, D]))
    is_word = kernel in ("same", "even, same", "valid")
    stride = 1 if is_word else draw(st.sampled_from([1, 2] if can_be_mixed else [1, 2, S]))
    others = {"bias": draw(st.booleans())}
    if kind is supernet.nn.ConvTranspose2d:
        others["output_padding"] = stride - 1
    elif kernel != "valid":
        others["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    arguments = arguments_of(draw(st.sampled_from(sorted(WIDTHS))), kernel, stride, dilation, **others)
    if kind.num_dims == 2 and kernel == "fixed" and draw(st.booleans()):  # each dimension its own
        padding = (dilation * (K // 2), dilation * (H // 2))
        arguments |= {
            "kernel_size": (K, H),
            "padding": padding,
            "stride": (stride, 1),
            "dilation": (dilation, dilation),
        }
        if "output_padding" in arguments:
            arguments["output_padding"] = (stride - 1, 0)
    return kind, arguments


def batch(kind, channels):
    return double((2, channels, *(9, 10, 9)[: kind.num_dims]))


def made(kind, arguments):
    torch.manual_seed(0)
    return kind(**arguments).double()


@settings(max_examples=70)
@given(convolutions(can_be_mixed=False), st.booleans(), st.randoms(use_true_random=False))
def test_a_path_is_the_frozen_network_with_a_part_of_the_weight(convolution, training, random):
    kind, arguments = convolution
    layer = made(kind, arguments).train(training)
    architecture = {label: random.choice(CANDIDATES[label]) for label in labels_in(arguments)}
    right = decided(arguments, architecture)
    model = nn.Sequential(layer)
    network = freeze(model, architecture)
    weight, bias = part_of(layer, right)
    assert type(network[0]) is kind.plain and repr(network[0]) == repr(kind.plain(**right))
    assert network[0].training == training
    assert torch.equal(network[0].weight, weight)
    assert network[0].bias is None if bias is None else torch.equal(network[0].bias, bias)
    assert len(list(network.parameters())) == 2 - (bias is None)

    x = batch(kind, right["in_channels"]).requires_grad_()
    running = Supernet(model) if architecture else lambda x, _: model(x)
    output, expected = running(x, architecture), by_hand(layer, right, x)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(running(x[0], architecture), expected[0], rtol=0, atol=1e-10)  # an image alone
    gradients = [torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]) for y in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@settings(max_examples=50)
@given(convolutions(can_be_mixed=True), st.lists(st.floats(-1, 1), min_size=16, max_size=16))
def test_a_mixture_is_the_sum_of_what_each_size_gives_padded_with_zeros(convolution, numbers):
    kind, arguments = convolution
    labels = labels_in(arguments)
    assume(labels)
    numbers = torch.tensor(numbers, dtype=torch.float64).split([len(CANDIDATES[each]) for each in CANDIDATES])
    plan = {label: weights for label, weights in zip(CANDIDATES, numbers, strict=True) if label in labels}
    layer = made(kind, arguments)
    running, x = Supernet(layer), batch(kind, layer.in_channels)
    expected = padded_sum(each_by_hand(layer, arguments, x, plan))
    torch.testing.assert_close(running(x, plan), expected, rtol=0, atol=1e-10)
    with running.following(plan):  # as the base of all such modules has it, one size after another
        torch.testing.assert_close(Mutable.mixed(layer, x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [supernet.nn.Conv2d, supernet.nn.ConvTranspose2d])
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_mixture_runs_once_where_each_size_is_a_part_of_the_largest(kind, widths, monkeypatch):
    layer = made(kind, arguments_of(widths, "odd"))
    calls, function = [], kind.function
    monkeypatch.setattr(kind, "function", staticmethod(lambda *a, **k: calls.append(a) or function(*a, **k)))
    plan = {label: torch.ones(len(CANDIDATES[label]), dtype=torch.float64) for label in "kabh"}
    running = Supernet(layer)
    with running.following({label: weights for label, weights in plan.items() if label in running.space}):
        layer(batch(kind, layer.in_channels))
    assert (len(calls) == 1) == (widths in IN_ONE_PASS)


@pytest.mark.parametrize(
    ("kind", "widths", "kernel"),
    [
        (supernet.nn.Conv1d, "independent", "odd"),
        (supernet.nn.Conv1d, "depthwise", "even"),
        (supernet.nn.Conv2d, "one choice", "fixed"),
        (supernet.nn.Conv1d, "chosen groups", "same"),
        (supernet.nn.ConvTranspose2d, "one choice", "fixed"),
    ],
)
def test_a_mixture_has_the_gradients_of_its_definition(kind, widths, kernel):
    arguments = arguments_of(widths, kernel)
    layer, labels = made(kind, arguments), labels_in(arguments)
    running, x = Supernet(layer), double((1, layer.in_channels, *(4, 2)[: kind.num_dims])).requires_grad_()
    counts = [len(CANDIDATES[label]) for label in labels]
    weights = double((sum(counts),), seed=1).requires_grad_()

    def mixture(weights, x, *_):
        return running(x, dict(zip(labels, weights.split(counts), strict=True)))

    assert torch.autograd.gradcheck(mixture, (weights, x, layer.weight, layer.bias), fast_mode=True)


@pytest.mark.parametrize("widths", ["independent", "depthwise", "chosen groups"])
def test_what_is_detached_gives_an_output_and_its_weight_a_gradient_and_nothing_else(widths):
    arguments = arguments_of(widths, "odd")
    layer = made(supernet.nn.Conv2d, arguments)
    running, x = Supernet(layer), batch(layer, layer.in_channels).requires_grad_()
    gates = {label: double((2,), seed=len(label)).requires_grad_() for label in labels_in(arguments)}
    plan = {label: Selection(tuple(CANDIDATES[label][:2]), gates[label], detached=1) for label in gates}
    output = running(x, plan)

    each = []
    for at in product(range(2), repeat=len(gates)):
        decisions = {label: CANDIDATES[label][k] for label, k in zip(gates, at, strict=True)}
        weight = torch.stack([gates[label][k] for label, k in zip(gates, at, strict=True)]).prod()
        y = by_hand(layer, decided(arguments, decisions), x)
        each.append(weight * (y.detach() if any(at) else y))
    expected = padded_sum(each)
    assert output.shape == expected.shape  # as wide as the widest of those that run
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    wanted = [x, layer.weight, layer.bias, *gates.values()]
    gradients = [torch.autograd.grad(y.sin().sum(), wanted) for y in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [supernet.nn.Conv1d, supernet.nn.Conv2d, supernet.nn.Conv3d])
def test_smaller_kernels_may_be_what_matrices_make_of_the_centre_of_larger_ones(kind):
    """Once-for-All: W5 = M(7to5) centre(W7), W3 = M(5to3) centre(W5), the matrices the same for all channels."""
    dims, kernel = kind.num_dims, ValueChoice([3, 7, 5], label="kernel")
    width = ValueChoice([2, 4], label="width")
    torch.manual_seed(0)
    layer = kind(3, width, kernel, padding=kernel // 2, kernel_transform=True).double()
    x = batch(kind, 3)
    before = {size: freeze(layer, {"kernel": size, "width": 4}) for size in (3, 5, 7)}
    for size, plain in before.items():  # at first the matrices are the identity
        around = (7 - size) // 2
        assert torch.equal(plain.weight, layer.weight[(..., *[slice(around, 7 - around)] * dims)])
    names = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    matrices = {"kernel_transforms.7to5": (5**dims,) * 2, "kernel_transforms.5to3": (3**dims,) * 2}
    assert names == {"weight": (4, 3, *[7] * dims), "bias": (4,), **matrices}
    with torch.no_grad():
        for matrix in layer.kernel_transforms.values():
            matrix.add_(double(matrix.shape))
    to5, to3 = layer.kernel_transforms["7to5"], layer.kernel_transforms["5to3"]
    centre = (..., *[slice(1, -1)] * dims)
    weight_5 = (layer.weight[centre].flatten(2) @ to5.T).reshape(4, 3, *[5] * dims)
    weight_3 = (weight_5[centre].flatten(2) @ to3.T).reshape(4, 3, *[3] * dims)
    running = Supernet(nn.Sequential(layer))
    function, outputs = kind.function, {}
    for size, weight in {3: weight_3, 5: weight_5, 7: layer.weight}.items():
        frozen = freeze(running, {"kernel": size, "width": 2})[0]
        assert type(frozen) is kind.plain and frozen.weight.is_leaf
        torch.testing.assert_close(frozen.weight, weight[:2], rtol=0, atol=1e-12)
        outputs[size] = function(x, weight, layer.bias, padding=size // 2)
        narrow = running(x, {"kernel": size, "width": 2})
        torch.testing.assert_close(narrow, outputs[size][:, :2], rtol=0, atol=1e-10)
    weights = double((3,), seed=2)
    expected = weights[0] * outputs[3] + weights[1] * outputs[7] + weights[2] * outputs[5]
    mixture = running(x, {"kernel": weights, "width": 4})
    torch.testing.assert_close(mixture, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(y.sin().sum(), list(layer.parameters())) for y in (mixture, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_a_transposed_convolution_takes_the_size_of_its_output():
    width, kernel = ValueChoice([2, 4], label="width"), ValueChoice([3, 5], label="kernel")
    layer = supernet.nn.ConvTranspose2d(3, width, kernel, stride=2, padding=kernel // 2).double()
    running, x = Supernet(layer), double((2, 3, 5, 5))
    for decisions in ({"width": 2, "kernel": 3}, {"width": 4, "kernel": 5}):
        for size in (9, 10):
            with running.following(decisions):
                output = layer(x, output_size=[size, size])
            torch.testing.assert_close(output, freeze(running, decisions)(x, output_size=[size, size]))
    with running.following({"width": torch.tensor([0.5, 0.5]), "kernel": 5}):
        assert layer(x, output_size=[10, 10]).shape == (2, 4, 10, 10)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_plain_numbers_begins_and_runs_as_that_of_torch(kind):
    torch.manual_seed(0)
    ours = kind(4, 6, 3, 2, 1, groups=2)
    torch.manual_seed(0)
    plain = kind.plain(4, 6, 3, 2, 1, groups=2)
    x = batch(kind, 4).float()
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)
    assert torch.equal(ours(x), plain(x))
    with fixed_architecture({"width": 4}):
        assert repr(kind(4, ValueChoice([2, 4], label="width"), 3)) == repr(kind.plain(4, 4, 3))


def test_frozen_weights_of_a_network_in_channels_last_stay_in_it():
    model = nn.Sequential(supernet.nn.Conv2d(8, A, K, padding=K // 2), supernet.nn.Conv2d(A, 8, 3, padding=1))
    model.to(memory_format=torch.channels_last)
    architecture, x = {"a": 4, "k": 3}, torch.randn(2, 8, 9, 8).to(memory_format=torch.channels_last)
    frozen, running = freeze(model, architecture), Supernet(model)
    for conv in frozen:
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    for output in (frozen(x), running(x, architecture), running(x, {"a": torch.ones(3), "k": torch.ones(3)})):
        assert output.is_contiguous(memory_format=torch.channels_last)


def test_a_path_that_is_given_more_channels_than_it_has_is_an_error_as_in_the_frozen_network():
    running = Supernet(supernet.nn.Conv2d(A, 3, 1))
    with pytest.raises(RuntimeError, match="to have 2 channels, but got 6 channels"):
        running(torch.ones(1, 6, 2, 2), {"a": 2})


@pytest.mark.parametrize("layer", [supernet.nn.Conv2d(3, 4, 3, S, padding=1), supernet.nn.Conv2d(3, 4, K, padding=1)])
def test_images_of_several_sizes_are_not_mixed(layer):
    (label,) = labels_in({"": layer.sizes["stride"], " ": layer.sizes["kernel_size"]})
    with pytest.raises(
        ChoiceError, match=r"gives images of \(.*\) and \(.*\), which cannot be mixed; let padding follow"
    ):
        Supernet(layer)(torch.ones(1, 3, 9, 9), {label: torch.ones(len(CANDIDATES[label]))})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": A / 4}, r"out_channels is a whole number above 0, but a / 4 may be 0.5"),
        ({"in_channels": A - 2}, r"in_channels is a whole number above 0, but a - 2 may be 0"),
        ({"groups": 0}, r"groups is a whole number above 0, but 0 may be 0"),
        ({"groups": H}, r"groups=h must divide in_channels=4, but 3 does not divide 4"),
        ({"in_channels": A, "groups": 4}, r"groups=4 must divide in_channels=a, but 4 does not divide 2"),
        ({"out_channels": B, "groups": 2}, r"groups=2 must divide out_channels=b, but 2 does not divide 3"),
        ({"kernel_size": K - 1}, r"kernel_size is a whole number above 0"),
        ({"kernel_size": B}, r"kernel_size=b may be 3, 4, and even and odd kernels"),
        ({"kernel_size": (3, B)}, r"kernel_size\[1\]=b may be 3, 4, and even and odd kernels"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size is one number, or one for each of 2 dimensions"),
        ({"stride": S - 1}, r"stride is a whole number above 0, but s - 1 may be 0"),
        ({"stride": 1.5}, r"stride is a whole number above 0"),
        ({"dilation": D / 2}, r"dilation is a whole number above 0, but d / 2 may be 0.5"),
        ({"padding": K - 2}, r"padding is a whole number from 0 on or 'same' or 'valid', but \(k - 2\) may be -1"),
        ({"padding": "full"}, r"padding is a whole number from 0 on or 'same' or 'valid', but 'full' may be 'full'"),
        ({"padding": ("same", 1)}, r"padding\[0\] is a whole number from 0 on, but 'same' may be 'same'"),
        ({"padding": "same", "stride": S}, r"padding is 'same' only where the stride is 1"),
        ({"kernel_size": (K, H), "kernel_transform": True}, r"kernel_transform is for one kernel_size"),
    ],
)
def test_numbers_that_torch_would_not_take_are_refused_by_name(arguments, message):
    with pytest.raises(ChoiceError, match=message):
        supernet.nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})


def test_a_transposed_convolution_refuses_what_its_kin_takes():
    with pytest.raises(ChoiceError, match="padding is a whole number from 0 on, but 'same' may be 'same'"):
        supernet.nn.ConvTranspose2d(2, 2, 3, padding="same")
    with pytest.raises(ChoiceError, match=r"output_padding is a whole number from 0 on, but .s - 2. may be -1"):
        supernet.nn.ConvTranspose2d(2, 2, 3, output_padding=S - 2)


def test_kernels_of_each_dimension_may_come_from_a_table():
    shape = ValueChoice.lookup({"wide": (1, 3), "high": (3, 1)}, ValueChoice(["wide", "high"], label="shape"))
    layer = supernet.nn.Conv2d(1, 1, shape, padding="same")
    assert layer.weight.shape == (1, 1, 3, 3)
    assert freeze(layer, {"shape": "wide"}).weight.shape == (1, 1, 1, 3)
    assert freeze(layer, {"shape": "high"}).kernel_size == (3, 1)
