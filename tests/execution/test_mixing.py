"""A mixture of outputs of any structure."""

import pytest
import torch
from torch import nn

from supernet import LayerChoice, SearchSpace
from supernet.errors import ChoiceError, UnresolvedChoiceError
from supernet.execution import InputSlot, LayerSlot, Plan
from supernet.execution.slot import weighted_sum
from supernet.nn import InputChoice

WEIGHTS = torch.tensor([0.2, 0.8])


def test_every_tensor_of_a_structure_is_mixed_and_none_stays_none():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    first, second = (a, {"k": [b, None]}), (b, {"k": [a, None]})
    left, right = weighted_sum({"a": first, "b": second}, WEIGHTS, "op")
    torch.testing.assert_close(left, 0.2 * a + 0.8 * b)
    torch.testing.assert_close(right["k"][0], 0.2 * b + 0.8 * a)
    assert right["k"][1] is None


def test_candidates_that_take_and_return_several_things_are_mixed():
    choice = LayerChoice([nn.MultiheadAttention(4, heads, batch_first=True) for heads in (1, 2)], label="op")
    plan = Plan(op=WEIGHTS)
    x = torch.randn(2, 5, 4)
    output, weights = LayerSlot(choice, plan)(x, x, x, need_weights=False)
    torch.testing.assert_close(output, 0.2 * choice[0](x, x, x)[0] + 0.8 * choice[1](x, x, x)[0])
    assert weights is None


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3)}, r"'op' differ in shape.*'a' gives \(2,\), 'b' gives \(3,\)"),
        ({"a": torch.ones(2), "b": (torch.ones(2),)}, r"'b' gives \[\(2,\)\]"),
        ({"a": torch.ones(2), "b": None}, "'b' gives NoneType"),
        ({"a": "x", "b": "y"}, "'op' hold what cannot be mixed"),
    ],
)
def test_what_cannot_be_mixed_is_refused(outputs, match):
    with pytest.raises(ChoiceError, match=match):
        weighted_sum(outputs, WEIGHTS, "op")


def test_inputs_come_as_the_choice_says():
    plan = Plan(join=WEIGHTS)
    listed, named = (InputChoice(2, label="join"), InputChoice(choose_from=["l", "r"], label="join"))
    one, two = torch.ones(1), torch.full((1,), 2.0)
    assert InputSlot(listed, plan)([one, two]).item() == pytest.approx(1.8)
    assert InputSlot(named, plan)({"r": two, "l": one, "unused": one}).item() == pytest.approx(1.8)
    with pytest.raises(ChoiceError, match="'join' is called with a list of 2, not 3 tensors"):
        InputSlot(listed, plan)([one] * 3)
    with pytest.raises(ChoiceError, match="'join' is called with a dict of l, r"):
        InputSlot(named, plan)([one, two])


def test_a_taken_over_model_without_a_plan_says_what_to_do():
    choice = LayerChoice([nn.ReLU()])
    SearchSpace(nn.Sequential(choice))
    with pytest.raises(
        UnresolvedChoiceError, match=r"choice '0' has no plan.*freeze\(model, architecture\), or restore"
    ):
        LayerSlot(choice, Plan())(torch.ones(1))
