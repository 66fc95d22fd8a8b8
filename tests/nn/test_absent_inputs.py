"""InputChoice(absent="zeros"): inputs that are not chosen count as zeros of their shape."""

import pickle
from itertools import combinations

import pytest
import torch
from torch import nn

from supernet import InputChoice, SearchSpace, freeze
from supernet.execution import InputSlot, Plan

WIDTHS = {"sum": (2, 2, 2), "mean": (2, 2, 2), "concat": (1, 2, 3), "none": (1, 2, 3)}
SETS = [list(chosen) for count in range(4) for chosen in combinations(range(3), count)]


def reduced(reduction, tensors):
    match reduction:
        case "sum":
            return torch.stack(tensors).sum(0)
        case "mean":
            return torch.stack(tensors).mean(0)
        case "concat":
            return torch.cat(tensors, 1)
    return tensors


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("reduction", list(WIDTHS))
def test_each_set_of_inputs_is_reduced_as_all_are_with_zeros_in_the_absent_ones_places(reduction, named):
    names = ["a", "b", "c"] if named else None
    model = nn.Sequential(InputChoice(3, None, reduction, absent="zeros", choose_from=names, label="join"))
    SearchSpace(model)
    tensors = [torch.randn(4, width, 5, dtype=torch.float64) for width in WIDTHS[reduction]]
    inputs = dict(zip(names, tensors, strict=True)) if named else tensors
    for chosen in SETS:
        expected = reduced(reduction, [t * (i in chosen) for i, t in enumerate(tensors)])
        network = pickle.loads(pickle.dumps(freeze(model, {"join": chosen})))
        torch.testing.assert_close(network(inputs), expected)
        torch.testing.assert_close(InputSlot(model[0], Plan(join=chosen))(inputs), expected)
        assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"torch"}


def test_zeros_are_of_their_input_s_dtype_and_memory_format_and_have_no_gradient():
    choice = InputChoice(2, None, "none", absent="zeros", label="join")
    image = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    zeros, _ = choice.resolve([1])([image, image])
    assert zeros.dtype == torch.bfloat16
    assert zeros.is_contiguous(memory_format=torch.channels_last)
    assert not zeros.requires_grad


def test_what_is_omitted_by_default_is_as_it_was():
    tensors = [torch.ones(2, 1), torch.full((2, 1), 2.0)]
    assert InputChoice(2, None, label="j").resolve([])(tensors) is None
    assert InputChoice(2, None, "concat", label="j").resolve([1])(tensors).shape == (2, 1)
    assert InputChoice(2, None, "mean", label="j").resolve([1])(tensors).tolist() == [[2.0], [2.0]]
    assert "absent" not in repr(InputChoice(2))
    assert "absent='zeros'" in repr(InputChoice(2, absent="zeros"))
