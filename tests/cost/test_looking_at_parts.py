"""Few networks are looked at until it is known which choices each part depends on."""

from unittest.mock import patch

import torch
from torch import nn

from supernet import LayerChoice, SearchSpace, ValueChoice
from supernet.cost import LayerCost, Parts
from supernet.cost.recording import Recorder


class Gated(nn.Module):
    """What has a column more where the last of many choices is "wide"."""

    def __init__(self, count: int) -> None:
        super().__init__()
        gates = (LayerChoice({"id": nn.Identity(), "relu": nn.ReLU()}, label=f"gate{i}") for i in range(count))
        self.gates = nn.ModuleList(gates)
        self.wide = LayerChoice({"narrow": nn.Identity(), "wide": nn.ConstantPad1d((0, 1), 0.0)}, label="wide")

    def forward(self, x):
        for gate in self.gates:
            x = gate(x)
        return self.wide(x)


def test_what_makes_a_difference_is_found_by_halving_for_all_parts_by_the_same_networks():
    parts = Parts(nn.Sequential(Gated(31), *(nn.Softplus() for _ in range(20))), torch.ones(1, 1, 4))
    behind = [str(i) for i in range(1, 21)]
    for path in behind:
        parts.scopes[path], parts._forms[path] = (), {}
    gates = [f"gate{i}" for i in range(31)]
    parts._record({**dict.fromkeys(gates, "id"), "wide": "narrow"})
    with patch.object(Recorder, "record", autospec=True, side_effect=Recorder.record) as recorded:
        parts._record({**dict.fromkeys(gates, "relu"), "wide": "wide"})
    assert {parts.scopes[path] for path in behind} == {("wide",)}
    assert recorded.call_count == 1 + 5  # itself, and log2(32) between the two


def test_a_label_that_is_always_reached_depends_on_no_other_wherever_it_stands_too():
    width = ValueChoice([1, 2], label="width")
    inner = LayerChoice({"in": nn.ModuleList([width]), "out": nn.Identity()}, label="op")
    assert SearchSpace(nn.ModuleList([inner])).around("width") == ("op",)
    assert SearchSpace(nn.ModuleList([inner, width])).around("width") == ()


class Marked(torch.Tensor):
    """A tensor of a type of its own, of which nothing is remembered."""


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x.as_subclass(Marked)), self.linear(torch.cat([x, x]).as_subclass(Marked))


def test_each_call_of_a_layer_counts_with_its_own_shapes_whatever_it_is_given():
    model = Twice()
    cost = LayerCost(model, torch.ones(2, 3), {nn.Linear: lambda layer, shape: float(shape[0])})
    assert cost.of({}) == 2 + 4
