"""Regions under `torch.utils.checkpoint` are computed again by the plan of their own pass, whichever came after it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from supernet import InputChoice, LayerChoice, Supernet

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()


class Net(nn.Module):
    """Runs choices of layers and inputs, in as many regions, one inside the other, as it is told."""

    def __init__(self, depth):
        super().__init__()
        torch.manual_seed(0)
        self.depth = depth
        deep = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.op = LayerChoice({"deep": deep, "other": nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())}, label="op")
        self.join = InputChoice(2, 1, label="join")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inside(x, self.depth))

    def inside(self, x, depth):
        if depth:
            return checkpoint(self.inside, x, depth - 1, use_reentrant=False)
        h = self.op(torch.sin(x))
        return self.join([torch.tanh(h), torch.exp(h)])


def plans(kind):
    if kind == "paths":
        return [{"op": "deep", "join": [0]}, {"op": "other", "join": [1]}], []
    alphas = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in ([0.0, 1.0], [2.0, 0.5])]
    return [{"op": torch.softmax(a, 0), "join": torch.softmax(-a, 0)} for a in alphas], alphas


def gradients(depth, kind, together):
    search = Supernet(Net(depth).double())
    for plan in plans(kind)[0]:
        search(X, plan)  # what is tried is tried by now
    given, alphas = plans(kind)
    if together:
        sum(k * search(X, plan).square().sum() for k, plan in enumerate(given, 1)).backward()
    else:
        for k, plan in enumerate(given, 1):
            (k * search(X, plan).square().sum()).backward()
    assert not search._plan.of_regions
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in [*alphas, *search.parameters()]]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["paths", "mixtures"])
def test_one_backward_pass_through_several_forward_passes_gives_the_sum_of_their_gradients(kind, depth):
    expected = gradients(0, kind, together=False)
    torch.testing.assert_close(gradients(depth, kind, together=False), expected)
    torch.testing.assert_close(gradients(depth, kind, together=True), expected)
    assert all(gradient.any() for gradient in expected)
