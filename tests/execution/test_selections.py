"""What a plan selects of a choice: one, some or all of its options, some of them for their outputs only."""

import warnings

import pytest
import torch
from torch import nn

import supernet.execution
from supernet import InputChoice, LayerChoice
from supernet.errors import ChoiceError
from supernet.execution import InputSlot, LayerSlot, Plan, Selection


def new_slot(plan, **options):
    torch.manual_seed(0)
    choice = LayerChoice({name: nn.Linear(3, 3) for name in "abcd"}, label="op").double()
    return LayerSlot(choice, plan, **options)


def weights(*numbers):
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("entry", ["c", Selection(("c",)), Selection((2,))])
def test_one_option_alone_is_that_candidate_itself(entry):
    slot = new_slot(Plan(op=entry))
    assert torch.equal(slot(X), slot["c"](X))


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("active", [("b", "d"), (3, 1), ("a", "b", "c"), (0, 1, 2, 3)])
def test_some_options_are_a_mixture_of_these_alone(active, lean):
    given = weights(*(0.1 * (k + 1) for k in range(len(active))))
    slot = new_slot(Plan(op=Selection(active, given)), lean=lean)
    candidates = [slot[option] for option in active]
    output = slot(X)
    torch.testing.assert_close(output, sum(w * candidate(X) for w, candidate in zip(given, candidates, strict=True)))
    output.square().sum().backward()
    direct = torch.autograd.grad(
        sum(w * candidate(X) for w, candidate in zip(given, candidates, strict=True)).square().sum(), given
    )[0]
    torch.testing.assert_close(given.grad, direct)
    assert [c.weight.grad is not None for c in slot] == [c in candidates for c in slot]


def test_all_options_by_their_positions_are_what_weights_alone_are():
    plan, given = Plan(), weights(0.1, 0.2, 0.3, 0.4)
    slot = new_slot(plan)
    outputs = []
    for slot.fast in (True, False):
        for entry in (given, Selection((0, 1, 2, 3), given)):
            plan["op"] = entry
            outputs.append(slot(X))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_the_last_may_be_detached_behind_several_that_are_not():
    """Their outputs count for the gradients of the weights, and nothing inside them gets one."""
    given = weights(0.7, 0.3, 0.0)
    slot = new_slot(Plan(op=Selection(("d", "a", "b"), given, detached=1)))
    output = slot(X)
    torch.testing.assert_close(output, 0.7 * slot["d"](X) + 0.3 * slot["a"](X))
    output.sum().backward()
    torch.testing.assert_close(given.grad, torch.stack([slot[name](X).sum() for name in "dab"]).detach())
    assert [slot[name].weight.grad is not None for name in "abcd"] == [True, False, False, True]
    with torch.no_grad():
        torch.testing.assert_close(slot(X), 0.7 * slot["d"](X) + 0.3 * slot["a"](X))


def test_some_inputs_are_a_mixture_of_these_alone_and_sets_of_them_are_reduced_first():
    inputs = [X, X + 1, X.exp()]
    given = weights(0.25, 0.75)
    slot = InputSlot(InputChoice(3, 1, label="i"), Plan(i=Selection((2, 0), given)))
    torch.testing.assert_close(slot(inputs), 0.25 * X.exp() + 0.75 * X)
    slot = InputSlot(InputChoice(3, 2, label="i"), Plan(i=Selection(([0, 1], [1, 2]), given)))
    torch.testing.assert_close(slot(inputs), 0.25 * (X + X + 1) + 0.75 * (X + 1 + X.exp()))


def test_sets_of_inputs_have_a_weight_each():
    slot = InputSlot(InputChoice(3, 2, label="i"), Plan(i=Selection(([0, 1], [1, 2]), weights(0.2, 0.3, 0.5), 1)))
    with pytest.raises(
        ChoiceError, match="choice 'i' is to run 2 options by 3 weights; let the plan have one for each"
    ):
        slot([X, X, X])


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (Selection(("a", "e"), torch.ones(2)), "the plan selects 'a', 'e' of choice 'op'; it has: a, b, c, d"),
        (Selection((0, 4), torch.ones(2)), "the plan selects 0, 4 of choice 'op'"),
        (Selection(("a",), torch.ones(2)), "choice 'op' is to run 1 options by 2 weights"),
        (torch.ones(5), "the plan selects 0, 1, 2, 3, 4 of choice 'op'"),
    ],
)
def test_what_there_is_not_is_refused_by_name(entry, match):
    with pytest.raises(ChoiceError, match=match):
        new_slot(Plan(op=entry))(X)


def test_former_names_are_the_slots_with_a_warning():
    for name in ("PathLayer", "MixedLayer", "GatedLayer"):
        with pytest.warns(DeprecationWarning, match=f"{name} is called LayerSlot now"):
            assert getattr(supernet.execution, name) is LayerSlot
    for name in ("PathInput", "MixedInput", "GatedInput"):
        with pytest.warns(DeprecationWarning, match=f"{name} is called InputSlot now"):
            assert getattr(supernet.execution, name) is InputSlot
    with pytest.warns(DeprecationWarning, match=r"Gates is Selection\(active, weights, detached\) now"):
        gates = supernet.execution.Gates
    assert gates(("a", "b"), None) == Selection(("a", "b"), None, 1)
    with warnings.catch_warnings(), pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = supernet.execution.Other
