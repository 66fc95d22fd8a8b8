"""A pass of the model itself follows the plan of the supernet's last pass, as the documentation says."""

import pytest
import torch
from torch import nn

from supernet import LayerChoice, Supernet
from supernet.errors import UnresolvedChoiceError


def test_a_pass_of_the_model_itself_follows_the_last_plan_and_before_the_first_is_an_error():
    torch.manual_seed(0)
    supernet = Supernet(nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op")))
    x = torch.randn(2, 4)
    with pytest.raises(UnresolvedChoiceError, match="choice 'op' has no plan to follow"):
        supernet.model(x)
    for name in ("linear", "skip"):
        output = supernet(x, {"op": name})
        assert torch.equal(supernet.model(x), output)
    assert "follows the plan of the last pass" in " ".join(Supernet.__doc__.split())
