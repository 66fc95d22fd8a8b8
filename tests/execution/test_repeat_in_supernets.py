"""A Repeat in a supernet: paths, mixtures of depths in which each block runs once, and gates."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import supernet
from supernet import LayerChoice, Repeat, SearchSpace, Supernet, ValueChoice, freeze
from supernet.errors import ChoiceError
from supernet.execution import Selection
from supernet.nn import Choice, Domain
from supernet.testing import check_choice


class Counted(nn.Module):
    """A block that counts how often it runs, with a norm whose statistics move."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.runs = nn.Linear(4, 4), nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.runs += 1
        return torch.tanh(self.norm(self.linear(x)))


def batch(seed=0):
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def after_each_depth(blocks, x):
    """Return [x_0, x_1, ...], each block run once."""
    outputs = [x]
    for block in blocks:
        outputs.append(block(outputs[-1]))
    return outputs


DEPTHS = {
    "a range": (lambda: (0, 3), [0, 1, 2, 3]),
    "without the input": (lambda: range(1, 4), [1, 2, 3]),
    "in another order": (lambda: ValueChoice([3, 1], label="d"), [3, 1]),
    "an expression": (lambda: ValueChoice.min(ValueChoice([1, 2, 4], label="d"), 3), [1, 2, 3]),
    "the same for two": (lambda: ValueChoice([2, 3], label="d") // 2, [1, 1]),
}


def label_of(depth):
    return {} if isinstance(depth, supernet.nn.Value) else {"label": "d"}


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("training", [True, False])
def test_a_mixture_is_the_sum_of_what_comes_out_after_each_depth_and_each_block_runs_once(name, training):
    torch.manual_seed(1)
    make, depths = DEPTHS[name]
    depth = make()
    model = nn.Sequential(Repeat(Counted, depth, **label_of(depth)), nn.Linear(4, 2)).double().train(training)
    twin = copy.deepcopy(model)
    weights = torch.rand(len(depths), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = Supernet(model, (batch(), {"d": weights}))
    for block in model[0].children():
        block.runs = 0
    output = mixed(batch(), {"d": weights})
    blocks = list(twin[0].children())
    outputs = after_each_depth(blocks, batch())
    torch.testing.assert_close(output, twin[1](sum(w * outputs[d] for w, d in zip(weights, depths, strict=True))))
    assert [block.runs for block in model[0].children()] == [1] * max(depths)
    found, expected = mixed.state_dict(), twin.state_dict()  # BatchNorm's statistics among them
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_gradients_of_a_mixture_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(Repeat(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), (0, 3), label="d")).double()
    mixed = Supernet(model)
    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    mixed(batch(), {"d": weights.detach()})

    def run(weights, x, *parameters):
        with mixed.following({"d": weights}):
            return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (weights, batch().requires_grad_(), *parameters))


def test_gates_give_the_active_ones_output_and_no_gradient_beyond_it():
    torch.manual_seed(0)
    model = nn.Sequential(Repeat(nn.Linear(4, 4), (1, 3), label="d")).double()
    outputs = after_each_depth(list(copy.deepcopy(model)[0].children()), batch())
    gated = Supernet(model, (batch(), {"d": 1}))
    for active, other in [(1, 3), (3, 1), (2, 3)]:
        model.zero_grad()
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        output = gated(batch(), {"d": Selection((active, other), weights, detached=1)})
        torch.testing.assert_close(output, outputs[active])
        output.sum().backward()
        torch.testing.assert_close(weights.grad, torch.stack([outputs[active].sum(), outputs[other].sum()]).detach())
        assert [block.weight.grad is not None for block in model[0].children()] == [i < active for i in range(3)]
    with torch.no_grad():
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(gated(batch(), {"d": Selection((2, 3), weights, detached=1)}), outputs[2])


@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2**31), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_path_computes_what_its_frozen_network_does(low, more, seed, training):
    high = low + more
    torch.manual_seed(seed % 1000)

    def block(position):
        width = ValueChoice([2, 3, 6], label=f"width{position}")
        inner = LayerChoice([nn.BatchNorm1d(4), Repeat(nn.Linear(4, 4), (0, 2)), nn.Tanh()])
        return nn.Sequential(supernet.nn.Linear(4, width), nn.Tanh(), supernet.nn.Linear(width, 4), inner)

    model = nn.Sequential(Repeat(block, (low, high), label="d"), nn.Linear(4, 2)).double().train(training)
    space = SearchSpace(model)
    architecture = space.sample(torch.Generator().manual_seed(seed))
    network = freeze(model, architecture)
    found = Supernet(model)(batch(), architecture)
    torch.testing.assert_close(found, network(batch()), rtol=1e-10, atol=1e-10)
    restored = freeze(model, architecture)  # of what stands in the choices' places, with the statistics moved once
    for name, value in network.state_dict().items():
        torch.testing.assert_close(restored.state_dict()[name], value)


def test_blocks_that_work_in_place_do_not_change_what_is_weighted():
    torch.manual_seed(0)

    def block():
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))

    model = nn.Sequential(nn.Linear(4, 4), Repeat(block, (0, 3), label="d")).double()
    networks = [freeze(model, {"d": depth}) for depth in range(4)]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    expected = sum(w * network(batch()) for w, network in zip(weights, networks, strict=True))
    torch.testing.assert_close(Supernet(model)(batch(), {"d": weights}), expected)


def test_a_mixture_of_blocks_that_hold_choices_mixes_these_in_each_block():
    torch.manual_seed(0)

    def block(position):
        width = ValueChoice([1, 4], label=f"width{position}")
        return nn.Sequential(
            supernet.nn.Linear(4, width),
            LayerChoice({"tanh": nn.Tanh(), "skip": nn.Identity()}, label=f"op{position}"),
            supernet.nn.Linear(width, 4),
        )

    model = nn.Sequential(Repeat(block, (1, 2), label="d")).double()
    blocks = copy.deepcopy(list(model[0].children()))
    plan = {
        "d": torch.tensor([0.7, 0.3], dtype=torch.float64),
        **{f"op{i}": torch.tensor([0.6, 0.4], dtype=torch.float64) for i in range(2)},
        **{f"width{i}": torch.tensor([0.2, 0.8], dtype=torch.float64) for i in range(2)},
    }

    def mixed(block, x):
        up, _, down = block
        mask = torch.tensor([1.0, 0.8, 0.8, 0.8], dtype=torch.float64)  # 0.2 of the first feature, 0.8 of all four
        hidden = nn.functional.linear(x, up.weight * mask[:, None], up.bias * mask)
        return nn.functional.linear(0.6 * torch.tanh(hidden) + 0.4 * hidden, down.weight * mask, down.bias)

    first = mixed(blocks[0], batch())
    expected = 0.7 * first + 0.3 * mixed(blocks[1], first)
    torch.testing.assert_close(Supernet(model)(batch(), plan), expected)


class Ladder(Choice):
    """A user's own kind that is a sequence, and one that only says so."""

    is_sequence = True

    def __init__(self, *blocks, starts=(0, 0, 0)):
        super().__init__("ladder")
        self.blocks, self.starts = nn.ModuleList(blocks), starts

    def domain(self):
        return Domain("ladder", ("low", "middle", "high"))

    def branches(self):
        return [list(self.blocks)[start : k + 1] for k, start in enumerate(self.starts)]

    def resolve(self, decision):
        return nn.Sequential(*self.branches()[self.domain().positions(decision)[0]])


def test_a_kind_of_ones_own_that_is_a_sequence_runs_each_module_once():
    model = nn.Sequential(Ladder(*(Counted() for _ in range(3)))).double()
    outputs = after_each_depth(copy.deepcopy(list(model[0].blocks)), batch())
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixed = Supernet(model, (batch(), {"ladder": weights}))
    for block in model[0].blocks:
        block.runs = 0
    found = mixed(batch(), {"ladder": weights})
    torch.testing.assert_close(found, sum(w * x for w, x in zip(weights, outputs[1:], strict=True)))
    assert [block.runs for block in model[0].blocks] == [1, 1, 1]


def test_one_that_is_no_sequence_but_says_so_is_refused():
    model = nn.Sequential(Ladder(*(Counted() for _ in range(3)), starts=(0, 1, 0)))
    with pytest.raises(ChoiceError, match="choice 'ladder' is a sequence, so each branch is to be a beginning"):
        Supernet(model)
    assert isinstance(model[0], Ladder)


class Halving(Ladder):
    def resolve(self, decision):
        return nn.Sequential(super().resolve(decision), nn.Threshold(-9.0, 0.0), nn.Hardtanh(-0.1, 0.1))


def test_the_contract_of_choices_says_where_a_sequence_resolves_to_more_than_its_branches():
    check_choice(lambda: Ladder(*(Counted() for _ in range(3))), batch().float())
    with pytest.raises(AssertionError, match="a sequence, mixed, gives the weighted sum of what its decisions give"):
        check_choice(lambda: Halving(*(Counted() for _ in range(3))), batch().float())


def test_a_mixture_of_depths_whose_outputs_differ_in_shape_is_refused_by_name():
    model = nn.Sequential(Repeat([nn.Linear(4, 4), nn.Linear(4, 6)], (1, 2), label="d"))
    with pytest.raises(
        ChoiceError, match=r"outputs of choice 'd' differ in shape.*'1' gives \(2, 4\), '2' gives \(2, 6\)"
    ):
        Supernet(model)(torch.ones(2, 4), {"d": torch.tensor([0.5, 0.5])})


def test_explain_says_that_each_block_runs_once():
    model = nn.Sequential(Repeat(nn.Linear(4, 4), (1, 2), label="d"))
    mixed = Supernet(model, (torch.ones(2, 4), {"d": torch.tensor([0.5, 0.5])}))
    assert "each module runs once" in mixed.explain()
