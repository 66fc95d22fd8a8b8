"""torch's kernels are asked for no gradient of a tensor that is not there: CPU's give zeros then, CUDA's raise."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from supernet import LayerChoice, Supernet
from supernet.execution.fast.weighted_sum import _index
from supernet.hub.darts import darts_candidates

aten = torch.ops.aten


class Asked(TorchDispatchMode):
    """Notes whether gradients of weight and bias were asked for, and whether there was a weight."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.native_batch_norm_backward.default:
            self.norms.append((args[2] is not None, args[-1][1:]))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("affine", [True, False])
def test_of_a_norm_without_weight_only_the_gradient_of_the_input_is_asked_for(affine):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice(darts_candidates(4, affine=affine), label="op"))
    running, x = Supernet(model), torch.randn(2, 4, 6, 6, requires_grad=True)
    weights = torch.full((len(model[0]),), 0.1, requires_grad=True)
    with Asked() as asked:
        running(x, {"op": weights}).square().sum().backward()
    assert asked.norms and all(wanted == [has_weight] * 2 for has_weight, wanted in asked.norms)
    # The last norms are folded into the sum, whose weights are theirs.
    assert {has_weight for has_weight, _ in asked.norms} == ({True} if affine else {True, False})


def test_a_norm_with_a_bias_alone_has_the_gradients_that_it_has_outside():
    def candidate():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        norm.weight = None
        return nn.Sequential(norm, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    x, weights = torch.randn(2, 4, 6, 6).double(), torch.tensor([0.4, 0.6]).double().requires_grad_()
    model = nn.Sequential(LayerChoice([candidate(), nn.Identity()], label="op")).double()
    plain = candidate().double()
    found = Supernet(model)(x, {"op": weights})
    expected = weights[0] * plain(x) + weights[1] * x
    gradients = [
        torch.autograd.grad(output.square().sum(), [weights, *module.parameters()])
        for output, module in ((found, model), (expected, plain))
    ]
    torch.testing.assert_close(*gradients)


def test_positions_that_inference_mode_asked_for_first_can_be_saved_for_a_backward_pass():
    with torch.inference_mode():
        index = _index((0, 2), torch.device("meta"))
    assert not index.is_inference()
    weights = torch.ones(3, device="meta", requires_grad=True)
    weights[index].sum().backward()
    assert weights.grad.shape == (3,)
    assert _index((0, 2), torch.device("cpu")) == [0, 2] and _index((1, 2), torch.device("cpu")) == slice(1, 3)
