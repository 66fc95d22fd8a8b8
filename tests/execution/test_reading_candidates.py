"""A model's own code reads its candidates while a search runs as it does before."""

import copy

import pytest
import torch
from torch import nn

from supernet import LayerChoice, SearchSpace, replace_layer_choice, restore
from supernet.execution import LayerSlot, Plan
from supernet.retiarii.oneshot.pytorch.darts import DartsLayerChoice
from supernet.retiarii.oneshot.pytorch.random import PathSamplingLayerChoice


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"conv": nn.Linear(4, 2), "deep": nn.Linear(4, 2), "skip": nn.Identity()})

    def penalty(self):
        return sum(c.weight.abs().sum() for c in self.op if hasattr(c, "weight"))


def reading(op, penalty):
    unknown = []
    for index, kind in [("none", KeyError), (3, IndexError)]:
        with pytest.raises(kind) as error:
            op[index]
        unknown.append(str(error.value).partition(" (")[0].removeprefix('"LayerChoice').removeprefix('"choice'))
    return [
        *(len(op), op.names, op.label, op.key, bool(op), unknown),
        *("conv" in op, "none" in op, 0 in op),
        *(list(op), op["deep"], op[0], op[-1], op[1:], op[:0], op.conv, op.skip),
        *(dict(op.named_children()), penalty().item()),
    ]


@pytest.mark.parametrize("kind", [LayerSlot, DartsLayerChoice, PathSamplingLayerChoice])
def test_what_stands_in_a_choices_place_reads_as_the_choice(kind):
    torch.manual_seed(0)
    model = Net()
    SearchSpace(model)
    expected = reading(model.op, model.penalty)
    replace_layer_choice(model, lambda choice: kind(choice, Plan()))
    assert isinstance(model.op, kind)
    assert reading(model.op, model.penalty) == expected
    assert len(copy.deepcopy(model).op) == 3
    assert reading(restore(model).op, model.penalty) == expected
