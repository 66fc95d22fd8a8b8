"""Linear layers of elastic width, and what all modules that depend on values have in common."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import supernet
from supernet import LayerChoice, SearchSpace, Supernet, ValueChoice, fixed_architecture, freeze
from supernet.errors import ChoiceError, UnresolvedChoiceError
from supernet.execution import Selection
from supernet.nn import Mutable, Sizes

WIDTHS = {"a": [1, 3, 4], "b": [2, 5]}


def double(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """Three layers, one with both widths by one choice, one with independent ones; and a value called in `forward`."""

    def __init__(self):
        super().__init__()
        a, b = (ValueChoice(values, label=label) for label, values in WIDTHS.items())
        self.first = supernet.nn.Linear(3, 2 * a)
        self.second = supernet.nn.Linear(2 * a, a + b, bias=False)
        self.third = supernet.nn.Linear(a + b, 2)
        self.scale = ValueChoice([0.5, 2.0], label="scale")

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x))))) * self.scale()


def net():
    torch.manual_seed(0)
    return Net().double()


def test_each_path_is_the_frozen_network_with_slices_of_the_weights():
    model, x = net(), double((4, 3))
    space, running = SearchSpace(model), Supernet(copy.deepcopy(model))
    assert space.size == 12
    for architecture in space.enumerate():
        network, (a, b) = freeze(model, architecture), (architecture["a"], architecture["b"])
        kinds = {type(module) for module in network.modules() if not list(module.children())}
        assert nn.Linear in kinds and not any(issubclass(kind, Mutable) for kind in kinds)
        assert torch.equal(network.second.weight, model.second.weight[: a + b, : 2 * a])
        assert network.second.bias is None and network.third.bias.shape == (2,)
        hidden = torch.tanh(F.linear(x, model.first.weight[: 2 * a], model.first.bias[: 2 * a]))
        hidden = torch.tanh(F.linear(hidden, model.second.weight[: a + b, : 2 * a]))
        expected = F.linear(hidden, model.third.weight[:, : a + b], model.third.bias) * architecture["scale"]
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(running(x, architecture), expected, rtol=0, atol=1e-12)


def padded_sum(layer, x, joint):
    """Return the mixture as it is defined: what each width gives, padded, by its weight."""
    total = 0
    for in_features, out_features, weight in joint:
        bias = None if layer.bias is None else layer.bias[:out_features]
        y = F.linear(x[..., :in_features], layer.weight[:out_features, :in_features], bias)
        total = total + weight * F.pad(y, (0, layer.out_features - out_features))
    return total


# What decides the two widths -> functions of the choices or values a and b.
CASES = {
    "independent": (lambda a, b: a, lambda a, b: b),
    "together": (lambda a, b: 2 * a, lambda a, b: a + b),
    "of one alone": (lambda a, b: 3, lambda a, b: a * b),
}


def layer_of(case, bias=True):
    a, b = (ValueChoice(values, label=label) for label, values in WIDTHS.items())
    torch.manual_seed(0)
    return supernet.nn.Linear(*(width(a, b) for width in CASES[case]), bias).double()


def joint_of(case, weights):
    pairs = [(k, m, va, vb) for k, va in enumerate(WIDTHS["a"]) for m, vb in enumerate(WIDTHS["b"])]
    ins, outs = CASES[case]
    return [(ins(va, vb), outs(va, vb), weights["a"][k] * weights["b"][m]) for k, m, va, vb in pairs]


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5), st.sampled_from(sorted(CASES)), st.booleans())
def test_a_mixture_is_the_sum_of_what_each_width_gives_padded_with_zeros(numbers, case, bias):
    numbers = torch.tensor(numbers, dtype=torch.float64)
    plan, layer = {"a": numbers[:3], "b": numbers[3:]}, layer_of(case, bias)
    x = double((2, layer.in_features))
    expected = padded_sum(layer, x, joint_of(case, plan))
    running = Supernet(layer)
    torch.testing.assert_close(running(x, plan), expected, rtol=0, atol=1e-10)
    with running.following(plan):  # as the base of all such modules has it, one width after another
        torch.testing.assert_close(Mutable.mixed(layer, x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_a_mixture_has_the_gradients_of_its_definition(case):
    layer = layer_of(case)
    running, x = Supernet(layer), double((2, layer.in_features)).requires_grad_()
    weights = double((5,), seed=1).requires_grad_()

    def mixture(weights, x, *_):
        return running(x, {"a": weights[:3], "b": weights[3:]})

    assert torch.autograd.gradcheck(mixture, (weights, x, layer.weight, layer.bias))


def test_of_two_gates_the_detached_one_gives_an_output_and_its_weight_a_gradient_but_its_rows_none():
    a = ValueChoice([1, 4], label="a")
    layer = supernet.nn.Linear(2, a).double()
    running, x = Supernet(layer), double((3, 2))
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64, requires_grad=True)
    output = running(x, {"a": Selection((1, 4), weights, detached=1)})
    torch.testing.assert_close(output, padded_sum(layer, x, [(2, 1, 1.0), (2, 4, 0.25)]))
    output.sum().backward()
    torch.testing.assert_close(weights.grad[1], F.linear(x, layer.weight, layer.bias).sum())
    assert layer.weight.grad[0].abs().sum() > 0
    assert torch.equal(layer.weight.grad[0], x.sum(0))  # of the active one alone, whose weight is 1
    assert not layer.weight.grad[1:].any() and not layer.bias.grad[1:].any()


def test_weights_that_two_layers_share_stay_one_parameter_where_they_take_the_same_part():
    a = ValueChoice([2, 4], label="a")

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = supernet.nn.Linear(3, a), supernet.nn.Linear(3, a)
            self.two.weight = self.one.weight
            self.other = supernet.nn.Linear(3, 4, bias=False)
            self.other.weight = self.one.weight  # always the whole

        def forward(self, x):
            return self.one(x) + self.two(x)

    model = Tied()
    narrow, wide = freeze(model, {"a": 2}), freeze(model, {"a": 4})
    assert narrow.one.weight is narrow.two.weight and narrow.one.weight.shape == (2, 3)
    assert narrow.other.weight.shape == (4, 3)
    assert wide.one.weight is wide.two.weight is wide.other.weight
    assert wide.one.weight is not model.one.weight


def test_a_frozen_network_holds_no_more_memory_than_its_own_weights():
    a = ValueChoice([2, 4], label="a")
    model = nn.Sequential(supernet.nn.Linear(3, a), supernet.nn.BatchNorm1d(a), supernet.nn.Linear(a, 3))
    network = freeze(model, {"a": 2})
    for name, tensor in network.state_dict().items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


def test_a_layer_in_a_candidate_is_decided_only_where_that_is_chosen():
    a = ValueChoice([2, 4], label="a")
    model = nn.Sequential(
        LayerChoice({"skip": nn.Identity(), "deep": nn.Sequential(supernet.nn.Linear(3, a), supernet.nn.Linear(a, 3))})
    )
    space = SearchSpace(model)
    assert list(space.enumerate()) == [{"0": "skip"}, {"0": "deep", "a": 2}, {"0": "deep", "a": 4}]
    assert freeze(model, {"0": "deep", "a": 2})[0][1].in_features == 2


def test_forms_and_what_takes_no_gradient_go_along_into_the_frozen_layer():
    layer = supernet.nn.Linear(3, ValueChoice([2, 4], label="a"))
    layer.weight.requires_grad_(False)
    layer.eval()
    frozen = freeze(nn.Sequential(layer), {"a": 2})[0]
    assert not frozen.training and not frozen.weight.requires_grad and frozen.bias.requires_grad


def test_a_constructor_that_follows_an_architecture_gives_the_layer_of_torch():
    with fixed_architecture({"a": 2}):
        layer = supernet.nn.Linear(3, 2 * ValueChoice([2, 4], label="a"))
    assert type(layer) is nn.Linear and layer.out_features == 4
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None


def test_a_layer_of_plain_numbers_runs_as_it_is_and_is_frozen_to_that_of_torch():
    layer = supernet.nn.Linear(3, 2)
    assert torch.equal(layer(torch.ones(1, 3)), F.linear(torch.ones(1, 3), layer.weight, layer.bias))
    assert type(freeze(nn.Sequential(layer), {})[0]) is nn.Linear


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "wide", True])
def test_what_is_no_width_is_refused_by_its_name_and_value(wrong):
    with pytest.raises(ChoiceError, match=rf"out_features is a whole number above 0.*{wrong!r}"):
        supernet.nn.Linear(3, ValueChoice([4, wrong], label="a"))
    with pytest.raises(ChoiceError, match="out_features"):
        supernet.nn.Linear(3, ValueChoice([3, 4], label="a") / 2)


def test_a_layer_that_nobody_has_decided_says_what_to_do():
    with pytest.raises(UnresolvedChoiceError, match="freeze"):
        supernet.nn.Linear(3, ValueChoice([2, 4], label="a"))(torch.ones(1, 3))


def test_many_choices_that_one_number_depends_on_are_not_mixed_but_run_as_a_path():
    total = sum((ValueChoice([1, 2], label=str(i)) for i in range(17)), start=0)
    with pytest.raises(ChoiceError, match="17 choices"):
        Sizes(width=total).largest("width")


class Scale(Mutable):
    """A module of a user's own, mixed by the base's definition."""

    def __init__(self, width):
        super().__init__()
        self.sizes = Sizes(width=width)
        self.weight = nn.Parameter(torch.arange(1.0, 1 + self.sizes.largest("width")))

    def run(self, sizes, x):
        return x[..., : sizes["width"]] * self.weight[: sizes["width"]]

    def frozen(self, decisions):
        scale = Scale(self.sizes.under(decisions)["width"])
        scale.weight = nn.Parameter(self.weight.detach()[: scale.sizes["width"]])
        return scale


def test_a_module_of_ones_own_runs_by_path_mixture_and_gates():
    x, weights = torch.ones(1, 3), torch.tensor([0.25, 0.5])
    model = nn.Sequential(Scale(ValueChoice([2, 3], label="w")))
    assert freeze(model, {"w": 2})(x).tolist() == [[1, 2]]
    running = Supernet(model)
    assert running(x, {"w": 2}).tolist() == [[1, 2]]
    assert running(x, {"w": weights}).tolist() == [[0.75, 1.5, 1.5]]
    running(x, {"w": Selection((2, 3), weights, detached=1)}).sum().backward()
    assert model[0].weight.grad.tolist() == [0.25, 0.25, 0]
