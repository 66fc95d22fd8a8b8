"""What candidates may return, and how it comes out of a mixture."""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from supernet import LayerChoice
from supernet.errors import ChoiceError
from supernet.execution import LayerSlot, Plan, replace_layer_choice
from supernet.execution.slot import weighted_sum

WEIGHTS = torch.tensor([0.25, 0.75])
A, B = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 10.0])
MIXTURE = torch.tensor([4.0, 8.0])


class ModelOutput(OrderedDict):
    """As language models return: its keys are attributes."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclasses.dataclass
class Record:
    state: torch.Tensor
    attention: Any = None
    derived: Any = dataclasses.field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    state: torch.Tensor

    def __post_init__(self):
        assert isinstance(self.state, torch.Tensor)


class Tagged(list):
    tag = None


Pair = namedtuple("Pair", "state name")


def tagged(x):
    result = Tagged([x])
    result.tag = "kept"
    return result


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda x: ModelOutput(state=x), lambda out: out.state),
        (lambda x: ModelOutput(inner=ModelOutput(state=x)), lambda out: out.inner.state),
        (lambda x: UserDict(state=x), lambda out: out["state"]),
        (lambda x: MappingProxyType({"state": x}), lambda out: out["state"]),
        (lambda x: Record(x), lambda out: out.state),
        (FrozenRecord, lambda out: out.state),
        (lambda x: Pair(x, "b"), lambda out: out.state),
        (lambda x: [Record((x, None))], lambda out: out[0].state[0]),
        (tagged, lambda out: out[0] if out.tag == "kept" else None),
        (lambda x: torch.max(x[:, None], 1), lambda out: out.values),
    ],
)
def test_a_mixture_has_the_type_of_its_candidates_outputs(make, read):
    out = weighted_sum({"a": make(A), "b": make(B)}, WEIGHTS, "op")
    assert type(out) is type(make(A))
    torch.testing.assert_close(read(out), MIXTURE)


def test_outputs_are_left_as_they_are():
    first, second = Record(A), Record(B)
    weighted_sum({"a": first, "b": second}, WEIGHTS, "op")
    assert first.state is A
    assert second.state is B


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([3, 5]),
        torch.tensor([True, False]),
        torch.tensor([1, 2], dtype=torch.uint8),
        3,
        float("nan"),
        "relu",
        None,
        torch.float16,
        torch.Size([2, 3]),
    ],
)
def test_what_cannot_be_weighted_comes_out_as_it_is_where_all_candidates_agree(value):
    twin = value.clone() if isinstance(value, torch.Tensor) else value
    state, out = weighted_sum({"a": (A, value), "b": (B, twin)}, WEIGHTS, "op")
    torch.testing.assert_close(state, MIXTURE)
    assert type(out) is type(value)
    if isinstance(value, torch.Tensor):
        assert out.dtype == value.dtype
        assert torch.equal(out, value)
    else:
        assert out is value or out == value


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (torch.tensor([3, 5]), torch.tensor([3, 6]), r"torch.int64 \[3, 5\], 'b' gives torch.int64 \[3, 6\]"),
        (torch.tensor([True]), torch.tensor([False]), "torch.bool"),
        (torch.tensor([1.0]), torch.tensor([1]), r"torch.float32 \[1.0\], 'b' gives torch.int64 \[1\]"),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32), "torch.int32"),
        (3, 4, "'a' gives 3, 'b' gives 4"),
        ("x", "y", "'a' gives 'x', 'b' gives 'y'"),
        (np.zeros(2), np.zeros(2), "array"),
        (torch.Size([2]), torch.Size([3]), "'a' gives 2, 'b' gives 3"),
    ],
)
def test_what_cannot_be_weighted_and_differs_is_refused_by_name(first, second, match):
    for wrap in (lambda v: (A, v), lambda v: Record(A, {"k": v})):
        with pytest.raises(ChoiceError, match=f"choice 'op' hold what cannot be mixed.*{match}"):
            weighted_sum({"a": wrap(first), "b": wrap(second)}, WEIGHTS, "op")


def test_records_of_different_types_differ():
    with pytest.raises(ChoiceError, match=r"choice 'op' differ in shape.*Record.*FrozenRecord"):
        weighted_sum({"a": Record(A), "b": FrozenRecord(B)}, WEIGHTS, "op")


def test_complex_outputs_are_mixed_with_the_gradient_of_their_weights():
    """d|sum_k p_k z_k|^2 / dp_k = 2 Re(conj(m) z_k)."""
    z = torch.randn(2, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    p = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    m = weighted_sum({"a": z[0], "b": z[1]}, p, "op")
    assert torch.equal(m, 0.25 * z[0] + 0.75 * z[1])
    m.abs().square().sum().backward()
    torch.testing.assert_close(p.grad, 2 * (m.detach().conj() * z).real.sum(1))


class Lengths(nn.Module):
    """Gives lengths and a mask beside its features, as speech encoders do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        lengths = torch.tensor([5, 2])
        return self.linear(x), lengths, torch.arange(5) < lengths[:, None]


@pytest.mark.parametrize("lean", [False, True])
def test_lengths_and_masks_of_a_mixture_can_index(lean):
    torch.manual_seed(0)
    model, plan = nn.Sequential(LayerChoice([Lengths(), Lengths()], label="op")), Plan(op=WEIGHTS)
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan, lean))
    features, lengths, mask = model(torch.randn(2, 5, 3))
    packed = pack_padded_sequence(features, lengths, batch_first=True)
    assert features[mask].shape == (7, 3)
    out = weighted_sum({"a": packed, "b": packed}, WEIGHTS, "op")
    assert type(out) is PackedSequence
    torch.testing.assert_close(out.data, packed.data)
    assert torch.equal(out.batch_sizes, packed.batch_sizes)
