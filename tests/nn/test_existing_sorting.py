"""Channels in the order of their importance: the network computes the same, and its first channels are the best."""

import copy

import pytest
import torch
from tests.nn.test_existing_networks import NETWORKS, made
from tests.nn.test_existing_transformers import NETWORKS as TRANSFORMERS
from tests.nn.test_existing_transformers import made as made_transformer
from torch import nn
from torch.nn import functional as F

from supernet import ValueChoice, choose, elastic, freeze, restore, sort_channels
from supernet.errors import ChoiceError
from supernet.nn.existing.tracing import tensors_in


def trained(name):
    model, x = made(name) if name in NETWORKS else made_transformer(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval(), x


def output(model, x):
    return next(tensors_in(model(x))).detach()


@pytest.mark.parametrize("name", [*NETWORKS, *TRANSFORMERS])
def test_sorting_leaves_the_output_as_it_was(name):
    model, x = trained(name)
    expected = output(model, x)
    before = copy.deepcopy(model.state_dict())
    sort_channels(model, example=x)
    torch.testing.assert_close(output(model, x), expected, atol=1e-5, rtol=0)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    elastic(model, ratios=[0.5, 1.0], example=x)
    sort_channels(model, [x, x])  # on data, and where it is elastic
    restore(model, original=True)
    torch.testing.assert_close(output(model, x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_data", [False, True])
def test_the_first_channels_are_those_that_the_next_layer_takes_most_of(has_data):
    """By hand: sums of absolute weights 3, 1, 2; times the mean absolute inputs 1, 10, 2."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0], [-10.0], [2.0]])
    model[1].weight.data = torch.tensor([[1.0, 0.5, 1.0], [-2.0, 0.5, 1.0]])
    x = torch.tensor([[1.0], [-1.0]])
    if has_data:
        sort_channels(model, [x, x])
    else:
        sort_channels(model, example=x)
    order = [-10.0, 2.0, 1.0] if has_data else [1.0, 2.0, -10.0]
    assert model[0].weight.flatten().tolist() == order


def test_half_of_a_trained_network_is_better_after_sorting():
    """A regression that 4 of 16 hidden features are enough for, on 5 seeds."""
    before, after = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(256, 8)
        y = torch.tanh(x @ torch.randn(8, 4)) @ torch.randn(4, 2)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        sorted_model = sort_channels(copy.deepcopy(model), [x])
        for each, losses in ((model, before), (sorted_model, after)):
            elastic(each, {"0": {"out_features": [8, 16]}}, example=x)
            losses.append(F.mse_loss(freeze(each, {"0.out_features": 8})(x), y).item())
    assert sum(a < b for a, b in zip(after, before, strict=True)) == 5


def test_ties_of_weights_are_sorted_once():
    model, x = trained("gpt2")
    sort_channels(model, example=x)
    assert model.lm_head.weight is model.transformer.wte.weight


class OrderMatters(nn.Module):
    """Takes the first three channels by their numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        return self.second(x * torch.arange(6).to(x))


def test_a_model_whose_channels_have_an_order_is_refused_and_left_as_it_was():
    torch.manual_seed(0)
    model, x = OrderMatters(), torch.randn(3, 2)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ChoiceError, match=r"the order of channels matters to this model.*'first'"):
        sort_channels(model, example=x)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_sorted_is_refused():
    with pytest.raises(ChoiceError, match="needs data, or an example"):
        sort_channels(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="needs data, or an example"):
        sort_channels(nn.Linear(2, 2), [])
    model = choose(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "1", {"tanh": nn.Tanh})
    with pytest.raises(ChoiceError, match="call sort_channels before choose"):
        sort_channels(model, example=torch.ones(1, 2))


def test_the_widest_of_an_elastic_model_is_what_is_sorted():
    model, x = trained("resnet18")
    expected = output(model, x)
    elastic(model, ratios=[0.5, 1.0], example=x)
    sort_channels(model, example=x)
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    network = freeze(model, {label: max(candidates) for label, candidates in labels.items()})
    torch.testing.assert_close(output(network, x), expected, atol=1e-5, rtol=0)
