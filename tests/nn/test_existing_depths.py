"""Depths of lists of blocks in models that others wrote."""

import copy

import pytest
import torch
from tests.nn.networks_of_others import VisionTransformer
from torch import nn

from supernet import Supernet, elastic, freeze, restore
from supernet.errors import ChoiceError

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def blocks(kind=nn.Sequential):
    torch.manual_seed(0)
    return kind(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]).double()


def test_a_depth_is_the_first_blocks_alone():
    model = elastic(nn.Sequential(blocks(), nn.Linear(4, 2).double()), {"0": {"depth": [1, 3]}}, example=X)
    network = freeze(model, {"0.depth": 1})
    assert type(network[0]) is nn.Sequential
    assert len(network[0]) == 1
    expected = model[1](blocks()[0](X))
    torch.testing.assert_close(network(X), expected, atol=0, rtol=0)
    torch.testing.assert_close(Supernet(model)(X, {"0.depth": 1}), expected, atol=0, rtol=0)


def test_a_mixture_of_depths_is_the_sum_of_what_each_gives():
    original = blocks()
    outputs = [X]
    for block in original:
        outputs.append(block(outputs[-1]))
    model = elastic(nn.Sequential(copy.deepcopy(original)), {"0": {"depth": [3, 1]}}, example=X)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    output = Supernet(model)(X, {"0.depth": weights})
    torch.testing.assert_close(output, 0.3 * outputs[3] + 0.7 * outputs[1])
    (grad,) = torch.autograd.grad(output.sum(), weights)
    torch.testing.assert_close(grad, torch.stack([outputs[3].sum(), outputs[1].sum()]))


def test_the_model_itself_may_be_the_list():
    model = elastic(blocks(), {"": {"depth": [2, 3]}, "0.0": {"out_features": [2, 4]}}, example=X)
    assert len(freeze(model, {"depth": 2, "0.0.out_features": 4})) == 2


def test_a_list_that_the_models_code_runs_is_as_long_as_decided_and_has_no_mixture():
    torch.manual_seed(0)
    model, image = VisionTransformer(depth=3).eval(), torch.randn(2, 3, 16, 16)
    narrow = copy.deepcopy(model)
    del narrow.blocks[2]
    elastic(model, {"blocks": {"depth": [2, 3]}}, example=image)
    supernet = Supernet(model)
    assert torch.equal(supernet(image, {"blocks.depth": 2}), narrow(image))
    with pytest.raises(ChoiceError, match=r"choice 'blocks.depth' is mixed, but the blocks .* a trainer that samples"):
        supernet(image, {"blocks.depth": torch.tensor([0.5, 0.5])})
    network = freeze(model, {"blocks.depth": 2})
    assert type(network.blocks) is nn.ModuleList
    assert torch.equal(network(image), narrow(image))
    restore(model, original=True)
    assert len(model.blocks) == 3


class ByNumber(nn.Module):
    """Whose code counts to a number that it has written down."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(blocks())

    def forward(self, x):
        for i in range(3):
            x = self.blocks[i](x)
        return x


def test_a_number_of_blocks_that_is_written_down_is_refused():
    model = ByNumber()
    with pytest.raises(ChoiceError, match=r"does not run with blocks.depth=1: .*IndexError"):
        elastic(model, {"blocks": {"depth": [1, 3]}}, example=X)
    assert type(model.blocks) is nn.ModuleList
    assert len(model.blocks) == 3


def test_a_block_that_changes_the_width_cannot_be_the_first_to_go():
    """Without the second the head would meet another width: its depths are refused, that of others is not."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)), nn.Linear(6, 2)).double()
    with pytest.raises(ChoiceError, match=r"does not run with 0.depth=1: in '1', a Linear"):
        elastic(model, {"0": {"depth": [1, 2]}}, example=X)
    elastic(model, {"0.0": {"out_features": [2, 4]}}, example=X)
