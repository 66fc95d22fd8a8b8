"""Multiply-accumulates are those of all products, whatever operators torch makes of them and wherever they run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet import LayerChoice, SearchSpace
from supernet.cost import Limits, Macs, Parameters
from supernet.errors import CostError

B, T, D, H = 2, 3, 16, 2  # batch, steps, features, heads


class Model(nn.Module):
    """Runs a function of its layer and its input."""

    def __init__(self, run: Callable[[nn.Module, Tensor], object], layer: nn.Module) -> None:
        super().__init__()
        self.run, self.layer = run, layer
        self.op = LayerChoice({"same": nn.Identity(), "tanh": nn.Tanh()}, label="op")

    def forward(self, x: Tensor) -> object:
        return self.run(self.layer, self.op(x))


class NeedsValues(Model):
    def forward(self, x: Tensor) -> object:
        assert x.detach().numpy().size  # which a tensor on the device "meta" has not: a TypeError
        return super().forward(x)


def attention(_: nn.Module, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (H, D // H)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads)


LAYERS = {
    "matrix @ vector": (lambda _, x: x @ x[0, 0], nn.Identity(), B * T * D),
    "addmv": (lambda _, x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), nn.Identity(), T * D),
    "dot": (lambda _, x: torch.dot(x[0, 0], x[0, 1]), nn.Identity(), D),
    "addbmm": (lambda _, x: torch.addbmm(x[0, :, :T], x, x.mT), nn.Identity(), B * T * D * T),
    "bilinear": (lambda bilinear, x: bilinear(x, x), nn.Bilinear(D, D, 4), B * T * 4 * D * D),
    "LSTM": (lambda lstm, x: lstm(x)[0], nn.LSTM(D, 8, 2, batch_first=True), B * T * 4 * 8 * (D + 8 + 8 + 8)),
    "GRU": (lambda gru, x: gru(x)[0], nn.GRU(D, 8, batch_first=True), B * T * 3 * 8 * (D + 8)),
    "attention": (attention, nn.Identity(), 2 * B * T * T * D),
    "MultiheadAttention": (
        lambda layer, x: layer(x, x, x, need_weights=False)[0],
        nn.MultiheadAttention(D, H, batch_first=True).requires_grad_(False),
        4 * B * T * D * D + 2 * B * T * T * D,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", [Model, NeedsValues])
def test_each_product_counts_on_any_device(kind, name):
    run, layer, expected = LAYERS[name]
    model = kind(run, layer)
    assert Macs(model, torch.ones(B, T, D)).of({"op": "tanh"}) == expected
    assert SearchSpace(model).summary(model, torch.ones(B, T, D)).largest.macs == expected


def test_the_fast_way_of_attention_is_as_it_was_after_counting():
    assert torch.backends.mha.get_fastpath_enabled()
    Macs(Model(*LAYERS["attention"][:2]), torch.ones(B, T, D))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_does_not_run_on_the_example_is_told_with_the_architecture():
    model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "short": nn.Linear(3, 4)}, label="op"))
    assert Parameters(model).of({"op": "short"}) == 16
    message = r"Sequential does not run on the example under \{'op': '(linear|short)'\}: RuntimeError: .*; give what"
    for example in (torch.ones(1, 4), torch.ones(1, 3), torch.ones(1, 9), {"no_such": torch.ones(1)}):
        with pytest.raises(CostError, match=message.replace("RuntimeError", "(RuntimeError|TypeError)")):
            Limits(model, {"macs": 100}, example=example)
