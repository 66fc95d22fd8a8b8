"""Retiarii's modules in the place of an InputChoice whose number of inputs is not fixed."""

import pytest
import torch

from supernet.retiarii.nn.pytorch import InputChoice
from supernet.retiarii.oneshot.pytorch.darts import DartsInputChoice
from supernet.retiarii.oneshot.pytorch.proxyless import ProxylessInputChoice


def test_a_mixture_with_an_alpha_of_its_own_chooses_each_input_on_its_own():
    module = DartsInputChoice(InputChoice(3, n_chosen=None, label="join"))
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([2.0, -1.0, 0.5]))
    tensors = [torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([100.0])]
    expected = (torch.sigmoid(module.alpha) * torch.cat(tensors)).sum()
    assert module(tensors).item() == pytest.approx(expected.item())
    assert module.export() == [0, 2]
    with torch.no_grad():
        module.alpha.fill_(-1)
    assert module.export() == []


def test_gates_of_their_own_stand_between_all_sets_within_the_bounds():
    module = ProxylessInputChoice(InputChoice(3, n_chosen=(1, 2), label="join"))
    assert module.decisions == [[0], [1], [2], [0, 1], [0, 2], [1, 2]]
    assert module.alpha.shape == (6,)


def test_absent_inputs_are_zeros_where_asked_for():
    decided = InputChoice(2, n_chosen=None, reduction="concat", absent="zeros", label="join").resolve([1])
    one = torch.ones(1, 1)
    assert decided({"left": one, "right": one}).tolist() == [[0.0, 1.0]]
