"""Embeddings, weights by themselves and dropout of sizes and rates that choices decide."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import supernet
from supernet import SearchSpace, Supernet, ValueChoice, fixed_architecture, freeze
from supernet.errors import ChoiceError
from supernet.execution import Selection
from supernet.nn import Mutable

ROWS, WIDTHS = [3, 5], [1, 2, 4]
INDICES = torch.tensor([[0, 2], [1, 1]])  # which all tables have


def double(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows():
    return ValueChoice(ROWS, label="rows")


def width():
    return ValueChoice(WIDTHS, label="width")


class Tokens(nn.Module):
    """A language model without layers: a table that is also the projection, positions, and dropout."""

    def __init__(self):
        super().__init__()
        self.embed = supernet.nn.Embedding(rows(), width())
        self.position = supernet.nn.Parameter((1, 2, width()))
        self.dropout = supernet.nn.Dropout(ValueChoice([0.0, 0.5], label="rate"))
        self.head = supernet.nn.Linear(width(), rows(), bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.dropout(self.embed(x) + self.position()))


def tokens():
    torch.manual_seed(0)
    model = Tokens().double()
    nn.init.normal_(model.position.weight)
    return model


@pytest.mark.parametrize("is_training", [True, False])
def test_each_path_is_the_frozen_network_with_slices_of_the_weights(is_training):
    model = tokens().train(is_training)
    running = Supernet(copy.deepcopy(model))
    for architecture in SearchSpace(model).enumerate():
        network, (n, w) = freeze(model, architecture), (architecture["rows"], architecture["width"])
        assert type(network.embed) is nn.Embedding and type(network.dropout) is nn.Dropout
        assert torch.equal(network.embed.weight, model.embed.weight[:n, :w])
        assert torch.equal(network.position.weight, model.position.weight[:, :, :w])
        rate = architecture["rate"] if is_training else 0.0
        torch.manual_seed(1)
        hidden = F.dropout(model.embed.weight[INDICES][..., :w] + model.position.weight[:, :, :w], rate)
        expected = F.linear(hidden, model.embed.weight[:n, :w])
        for compute in (network, lambda x, plan=architecture: running(x, plan)):
            torch.manual_seed(1)
            torch.testing.assert_close(compute(INDICES), expected, rtol=0, atol=1e-10)


def test_a_table_that_is_also_the_projection_stays_one_parameter():
    model = tokens()
    for architecture in SearchSpace(model).enumerate():
        network, (n, w) = freeze(model, architecture), (architecture["rows"], architecture["width"])
        assert network.head.weight is network.embed.weight
        assert sum(p.numel() for p in network.parameters()) == n * w + 2 * w


def test_a_frozen_network_with_a_weight_by_itself_is_copied_and_pickled_and_trains():
    network = freeze(tokens(), {"rows": 3, "width": 2, "rate": 0.0})
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        again(INDICES).sum().backward()
        assert again.position.weight.grad.shape == (1, 2, 2)
        assert torch.equal(again(INDICES), network(INDICES))
    assert not any("supernet" in type(module).__module__ for module in network.position.modules())


weights_of = st.lists(st.floats(-1, 1), min_size=5, max_size=5).map(lambda x: torch.tensor(x, dtype=torch.float64))


@settings(max_examples=25)
@given(weights_of)
def test_a_mixture_is_the_sum_of_what_each_size_gives_padded_with_zeros(numbers):
    plan = {"rows": numbers[:2], "width": numbers[2:]}
    table, weight = supernet.nn.Embedding(rows(), width(), padding_idx=1).double(), double(5, 4)
    table.weight.data.copy_(weight)
    vector = supernet.nn.Parameter((rows(), 2, width())).double()
    vector.weight.data.copy_(double(5, 2, 4))
    of_table, of_vector = 0, 0
    for n, of_n in zip(ROWS, plan["rows"], strict=True):
        for w, of_w in zip(WIDTHS, plan["width"], strict=True):
            padded = F.pad(weight[:n, :w], (0, 4 - w, 0, 5 - n))
            of_table = of_table + of_n * of_w * padded[INDICES]
            of_vector = of_vector + of_n * of_w * F.pad(vector.weight[:n, :, :w], (0, 4 - w, 0, 0, 0, 5 - n))
    for module, args, expected in ((table, (INDICES,), of_table), (vector, (), of_vector)):
        running = Supernet(module)
        torch.testing.assert_close(running(*args, plan), expected, rtol=0, atol=1e-10)
        with running.following(plan):
            torch.testing.assert_close(Mutable.mixed(module, *args), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_a_mixture_has_the_gradients_of_its_definition(padding_idx):
    table = supernet.nn.Embedding(rows(), width(), padding_idx).double()
    vector = supernet.nn.Parameter((rows(), width())).double()
    looking_up, giving, numbers = Supernet(table), Supernet(vector), double(5, seed=1).requires_grad_()
    indices = torch.tensor([0, 2, 2])  # not the row for padding, whose gradient is zero, and not what it would be

    def of_table(numbers, _):
        return looking_up(indices, {"rows": numbers[:2], "width": numbers[2:]})

    def of_vector(numbers, _):
        return giving({"rows": numbers[:2], "width": numbers[2:]})

    assert torch.autograd.gradcheck(of_table, (numbers, table.weight))
    assert torch.autograd.gradcheck(of_vector, (numbers, vector.weight))


@pytest.mark.parametrize("plan", [{"rows": 5, "width": 2}, {"rows": torch.ones(2), "width": torch.ones(3)}])
def test_the_row_for_padding_is_zero_and_takes_no_gradient(plan):
    table = supernet.nn.Embedding(rows(), width(), padding_idx=1)
    assert not table.weight[1].any()
    Supernet(table)(INDICES, plan).sum().backward()
    assert not table.weight.grad[1].any() and table.weight.grad[0].any()
    assert freeze(nn.Sequential(table), {"rows": 3, "width": 2})[0].padding_idx == 1


def test_of_two_gates_the_detached_one_gives_no_gradient_to_what_it_alone_has():
    table, vector = supernet.nn.Embedding(5, width()).double(), supernet.nn.Parameter((width(),)).double()
    nn.init.ones_(vector.weight)
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64, requires_grad=True)
    gates = {"width": Selection((2, 4), weights, detached=1)}
    output = Supernet(table)(INDICES, gates)
    looked_up = table.weight.detach()[INDICES]
    torch.testing.assert_close(output, F.pad(looked_up[..., :2], (0, 2)) + 0.25 * looked_up)
    (output.sum() + Supernet(vector)(gates).sum()).backward()
    torch.testing.assert_close(weights.grad[1], looked_up.sum() + 4)
    assert table.weight.grad[:, :2].any() and not table.weight.grad[:, 2:].any()
    assert torch.equal(vector.weight.grad, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))


def dropout():
    return supernet.nn.Dropout(ValueChoice([0.0, 0.25, 0.5], label="rate"))


def test_mixed_rates_give_the_weighted_sum_of_what_each_gives():
    x, weights = double(3, 4), double(3, seed=1)
    module = dropout()
    running = Supernet(module)
    torch.manual_seed(2)
    output = running(x, {"rate": weights})
    torch.manual_seed(2)
    expected = sum(w * F.dropout(x, p) for w, p in zip(weights, (0.0, 0.25, 0.5), strict=True))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    running.eval()
    torch.testing.assert_close(running(x, {"rate": weights}), weights.sum() * x, rtol=0, atol=1e-10)


def test_a_rate_that_is_decided_works_in_place_where_that_is_asked_and_a_mixture_does_not():
    module = supernet.nn.Dropout(ValueChoice([0.25, 0.5], label="rate"), inplace=True)
    running, x = Supernet(module), torch.ones(100)
    running(x, {"rate": torch.tensor([0.5, 0.5])})
    assert x.all()
    running(x, {"rate": 0.5})
    assert not x.all()
    assert freeze(nn.Sequential(module), {"rate": 0.25})[0].inplace


def test_constructors_that_follow_an_architecture_give_layers_of_torch():
    with fixed_architecture({"rows": 3, "width": 2, "rate": 0.5}):
        model = Tokens()
    assert type(model.embed) is nn.Embedding and type(model.dropout) is nn.Dropout and type(model.head) is nn.Linear
    assert model(INDICES).shape == (2, 2, 3)
    assert model.position().shape == (1, 2, 2)


@pytest.mark.parametrize("padding_idx", [3, 4, -1, 5, -6])
def test_a_row_for_padding_that_not_all_tables_have_is_refused(padding_idx):
    with pytest.raises(ChoiceError, match=f"padding_idx={padding_idx} .* both 3 and 5 rows, as num_embeddings=rows"):
        supernet.nn.Embedding(rows(), 4, padding_idx)
    supernet.nn.Embedding(5, width(), padding_idx=-1)  # one table: the same row


def test_what_needs_whole_rows_is_refused_where_sizes_are_chosen():
    with pytest.raises(ChoiceError, match="takes no max_norm"):
        supernet.nn.Embedding(5, width(), max_norm=1.0)
    with pytest.raises(ChoiceError, match="takes no sparse"):
        supernet.nn.Embedding(5, width(), sparse=True)
    plain = freeze(nn.Sequential(supernet.nn.Embedding(5, 4, max_norm=1.0, sparse=True)), {})[0]
    assert plain.max_norm == 1.0 and plain.sparse


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "half", True])
def test_what_is_no_rate_is_refused_by_its_value_and_choice(wrong):
    with pytest.raises(ChoiceError, match=f"p=rate is a number from 0 to 1, but may be {wrong!r}"):
        supernet.nn.Dropout(ValueChoice([0.5, wrong], label="rate"))
