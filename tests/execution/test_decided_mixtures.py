"""A mixture whose plan holds a decision."""

import copy

import pytest
import torch
from torch import nn

from supernet import LayerChoice
from supernet.execution import LayerSlot, Plan, replace_layer_choice
from supernet.space import freeze


def nested():
    torch.manual_seed(0)
    inner = LayerChoice({"linear": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)}, label="inner")
    outer = LayerChoice({"deep": nn.Sequential(nn.Linear(3, 3), inner), "flat": nn.BatchNorm1d(3)}, label="outer")
    return nn.Sequential(outer)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    "architecture", [{"outer": "deep", "inner": "norm"}, {"outer": "deep", "inner": "linear"}, {"outer": "flat"}]
)
def test_a_decided_mixture_is_the_frozen_network_and_leaves_the_other_candidates_alone(architecture, lean):
    model = nested()
    frozen = freeze(copy.deepcopy(model), architecture)
    plan = Plan(architecture)
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan, lean))
    x = torch.randn(4, 3)
    out, expected = model(x), frozen(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    moved = [p for p in model.parameters() if p.grad is not None]
    assert len(moved) == len(list(frozen.parameters()))
    for p, q in zip(moved, frozen.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    counted = {name for name, b in model.named_buffers() if name.endswith("num_batches_tracked") and b == 1}
    assert len(counted) == len([b for name, b in frozen.named_buffers() if name.endswith("num_batches_tracked")])
