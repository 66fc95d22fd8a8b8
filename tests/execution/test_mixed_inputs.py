"""What stands in an InputChoice's place where all inputs are mixed."""

import pytest
import torch

from supernet.execution import MixedInput, PathInput, Plan
from supernet.nn import InputChoice


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("named", [False, True])
def test_a_mixture_follows_a_decision_as_a_path_does(reduction, named):
    names = ["a", "b", "c"] if named else None
    choice = InputChoice(3, 2, reduction, choose_from=names, label="join")
    tensors = [torch.randn(2, 3) for _ in range(3)]
    inputs = dict(zip(names, tensors, strict=True)) if named else tensors
    for chosen in ([0, 1], [0, 2], [1, 2]):
        plan = Plan(join=chosen)
        expected = sum(tensors[i] for i in chosen) / (len(chosen) if reduction == "mean" else 1)
        torch.testing.assert_close(MixedInput(choice, plan)(inputs), expected)
        assert torch.equal(MixedInput(choice, plan)(inputs), PathInput(choice, plan)(inputs))
