"""Candidates that change their input in place: each sees it as it was, in whatever way the choice runs."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from ways import take_way

from supernet import DartsTrainer, LayerChoice, ProxylessTrainer, SinglePathTrainer, freeze, replace_layer_choice
from supernet.errors import ChoiceError
from supernet.execution import LayerSlot, Plan, Selection
from supernet.execution.fast.shared import one_pass
from supernet.execution.fast.tracing import trace_of

C = 3


class Own(nn.Module):
    """A candidate with a forward of the test's."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(C, 1, 1).double())
        self.function = function

    def forward(self, *args, **kwargs):
        return self.weight * self.function(*args, **kwargs)


def first_set_to_zero(x):
    x[:, 0] = 0
    return x.sin()


KINDS = {
    "relu": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(C, C, 1)),
    "hardtanh": lambda: nn.Sequential(nn.ReLU6(inplace=True), nn.BatchNorm2d(C)),
    "functional": lambda: Own(lambda x: F.elu(x, inplace=True)),
    "method": lambda: Own(lambda x: x.mul_(3)),
    "through a view": lambda: Own(first_set_to_zero),
    "skip": nn.Identity,
    "conv": lambda: nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)),
    "keeps its input": lambda: Own(lambda x: x * x),
}


def made(names):
    torch.manual_seed(0)
    candidates = {name: KINDS[name]().double() for name in names}
    model = nn.Sequential(LayerChoice(candidates, label="op"))
    return model, copy.deepcopy(candidates)


@pytest.mark.parametrize("how", ["plain", "fast", "lean"])
@pytest.mark.parametrize(
    "names", [*itertools.permutations(["relu", "skip", "keeps its input"]), list(KINDS), list(KINDS)[::-1]], ids=str
)
def test_a_mixture_and_its_gradients_are_those_of_candidates_that_each_have_the_input_alone(names, how):
    model, reference = made(names)
    plan = Plan()
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan, lean=how == "lean"))
    take_way(model, fast=how != "plain")
    leaf = torch.randn(4, C, 5, 5, dtype=torch.float64)
    p = torch.rand(len(names), dtype=torch.float64).softmax(0)
    for training in (True, True, False, False):
        model.train(training)
        x, q, y, r = (t.clone().requires_grad_() for t in (leaf, p, leaf, p))
        plan["op"] = q
        given = x.sigmoid()  # which holds its result for its gradient
        with one_pass():
            output = model(given)
        assert torch.equal(given, leaf.sigmoid())
        expected = sum(r[k] * o.train(training)(y.sigmoid().clone()) for k, o in enumerate(reference.values()))
        torch.testing.assert_close(output, expected)
        weights = torch.randn_like(output)
        ours = torch.autograd.grad((output * weights).sum(), [x, q, *model.parameters()])
        of_reference = [w for o in reference.values() for w in o.parameters()]
        theirs = torch.autograd.grad((expected * weights).sum(), [y, r, *of_reference])
        torch.testing.assert_close(ours, theirs)


def takes_by_name(mask, *, x):
    return x.mul_(mask)


def takes_a_structure(batch):
    batch["x"][0].add_(1)
    return batch["x"][0] * batch["mask"]


def puts_another_in(batch):
    batch["x"] = (batch["x"][0].sin(),)
    return batch["x"][0] * batch["mask"]


def takes_out(batch):
    return batch.pop("x")[0].cos()


def reads(batch):
    return batch["x"][0] + batch["mask"]


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("functions", "call"),
    [
        ((takes_by_name, lambda mask, x: x + mask, takes_by_name), lambda op, x, mask: op(mask, x=x)),
        (
            (takes_a_structure, puts_another_in, reads, takes_out, reads),
            lambda op, x, mask: op({"x": (x,), "mask": mask}),
        ),
        ((lambda a, b: a.add_(b), lambda a, b: a * b), lambda op, x, mask: op(x, x)),
    ],
    ids=["keywords", "structures", "one tensor twice"],
)
def test_arguments_of_any_structure_are_left_as_they_were(functions, call, lean):
    torch.manual_seed(0)
    candidates = {f"o{k}": Own(function) for k, function in enumerate(functions)}
    model, reference = nn.Sequential(LayerChoice(candidates, label="op")), copy.deepcopy(candidates)
    p = torch.rand(len(candidates), dtype=torch.float64)
    plan = Plan(op=p)
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan, lean))
    leaf, mask = torch.randn(2, C, 4, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    for _ in range(3):
        x, y = leaf.clone().requires_grad_(), leaf.clone().requires_grad_()
        output = call(model[0], x.exp(), mask)
        expected = sum(q * call(o, y.exp().clone(), mask.clone()) for q, o in zip(p, reference.values(), strict=True))
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(
            torch.autograd.grad(output.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), y)
        )


def test_what_works_in_place_from_some_time_on_is_an_error_by_name_and_right_from_then_on():
    grown = []
    late = Own(lambda x: x.add_(1) if grown else x + 1)
    model = nn.Sequential(LayerChoice({"skip": nn.Identity(), "late": late}, label="op"))
    plan = Plan(op=torch.tensor([0.5, 0.5], dtype=torch.float64))
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    expected = 0.5 * x + 0.5 * late.weight * (x + 1)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x), expected)
    grown.append(True)
    with pytest.raises(ChoiceError, match="candidate 'late' of choice 'op' has changed its input in place"):
        model(x.clone())
    torch.testing.assert_close(model(x), expected)


def test_candidates_that_leave_their_input_alone_get_the_input_itself():
    seen = []
    candidates = [Own(lambda x: seen.append(x) or x + 1), Own(lambda x: seen.append(x) or x.relu_())]
    plan = Plan(op=torch.tensor([0.5, 0.5], dtype=torch.float64))
    model = nn.Sequential(LayerChoice(candidates, label="op"))
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    for _ in range(2):
        model(x)
    first, second = seen[2:]
    assert first is x
    assert second is not x


@pytest.mark.parametrize("names", [["relu", "skip"], ["skip", "relu"], ["method", "keeps its input"]], ids=str)
def test_gates_see_each_output_as_if_alone_and_the_active_one_changes_the_input_as_it_does_alone(names):
    """dL/dg_j = <dL/dm, o_j(x)>; all else is that of the active candidate alone."""
    model, reference = made(names)
    plan = Plan()
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    leaf = torch.randn(2, C, 4, 4, dtype=torch.float64)
    for active, other in [names, names[::-1], names]:
        x, y = leaf.clone().requires_grad_(), leaf.clone().requires_grad_()
        g = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        plan["op"] = Selection((active, other), g, detached=1)
        given, alone = x.exp() + 0, y.exp() + 0
        output = model(given)
        expected = reference[active](alone)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(given, alone)  # as the frozen network goes on with it
        weights = torch.randn_like(output)
        of_x, of_g = torch.autograd.grad(((output + given) * weights).sum(), [x, g])
        torch.testing.assert_close(of_x, torch.autograd.grad(((expected + alone) * weights).sum(), y)[0])
        with torch.no_grad():
            each = [reference[name](leaf.exp()) for name in (active, other)]
        torch.testing.assert_close(of_g, torch.stack([(weights * o).sum() for o in each]))


@pytest.mark.parametrize("kind", ["mixed", "gated"])
def test_a_nested_choice_that_works_in_place_leaves_the_outer_ones_input_alone(kind):
    torch.manual_seed(0)
    inner = LayerChoice({"method": KINDS["method"](), "twice": Own(lambda x: 2 * x)}, label="inner")
    outer = LayerChoice({"deep": nn.Sequential(inner, nn.Tanh()), "skip": nn.Identity()}, label="outer")
    model, plan = nn.Sequential(outer), Plan()
    method, double = (copy.deepcopy(inner[name]) for name in ("method", "twice"))
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for name, one in [("twice", double), ("method", method), ("twice", double), ("method", method)]:
        if kind == "mixed":
            plan.update(inner=half, outer=half)
            expected = 0.5 * torch.tanh(0.5 * method(x.clone()) + 0.5 * double(x)) + 0.5 * x
        else:
            gate = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
            plan.update(inner=name, outer=Selection(("skip", "deep"), gate, detached=1))
            expected = x
        output = model(x)
        torch.testing.assert_close(output, expected)
        if kind == "gated":
            (of_gate,) = torch.autograd.grad(output.sum(), gate)
            torch.testing.assert_close(of_gate, torch.stack([x.sum(), torch.tanh(one(x.clone())).sum()]))


class Residual(nn.Module):
    """What comes after the choice reads the choice's input again, or does not."""

    def __init__(self, is_residual, inplace=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3)
        relu = nn.ReLU(inplace=inplace)
        self.op = LayerChoice({"skip": nn.Identity(), "conv": nn.Sequential(relu, nn.Conv2d(4, 4, 1))}, label="op")
        self.fc = nn.Linear(4, 2)
        self.is_residual = is_residual

    def forward(self, x):
        x = self.stem(x)
        y = self.op(x)
        return self.fc((x + y if self.is_residual else y).mean((2, 3)))


DATA = TensorDataset(torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)


def trainer(kind, model, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return kind(model, nn.CrossEntropyLoss(), None, optimizer, 1, DATA, batch_size=4, **options)


def test_a_mixture_of_which_the_frozen_network_would_differ_is_refused_at_construction():
    model = Residual(is_residual=True)
    with pytest.raises(ChoiceError, match="candidate 'conv' of choice 'op' changes its input in place, and the model"):
        trainer(DartsTrainer, model)
    assert isinstance(model.op, LayerChoice)
    trainer(DartsTrainer, Residual(is_residual=True, inplace=False))


@pytest.mark.parametrize(
    ("kind", "is_residual"), [(DartsTrainer, False), (SinglePathTrainer, True), (ProxylessTrainer, True)]
)
def test_what_is_searched_is_what_freeze_gives(kind, is_residual):
    model = Residual(is_residual)
    search = trainer(kind, model)
    X = DATA.tensors[0]
    for k, name in enumerate(["skip", "conv"]):
        decided = name if kind is not DartsTrainer else torch.eye(2)[k]
        if kind is ProxylessTrainer:
            decided = Selection((name, {"skip": "conv", "conv": "skip"}[name]), torch.tensor([1.0, 0.0]), 1)
        torch.testing.assert_close(search.forward(X, {"op": decided}), freeze(model, {"op": name})(X))


def test_from_its_first_step_on_a_search_copies_for_those_alone_that_work_in_place():
    """What a trial finds out, the first step after a resume knows: its sums are added up in the same order."""
    seen = {"keeps": set(), "changes": set()}

    def noting(name, function):
        def noted(x):
            if torch.is_grad_enabled():
                seen[name].add(type(x.grad_fn).__name__)
            return function(x)

        return noted

    model = Residual(is_residual=False)
    keeps, changes = Own(noting("keeps", lambda x: x * x[:, :1])), Own(noting("changes", lambda x: x.mul_(2)))
    keeps.weight, changes.weight = (nn.Parameter(torch.ones(4, 1, 1)) for _ in range(2))
    model.op = LayerChoice({"keeps": keeps, "changes": changes}, label="op")
    trainer(DartsTrainer, model).fit()
    assert seen == {"keeps": {"ConvolutionBackward0", "NoneType"}, "changes": {"CloneBackward0", "NoneType"}}


def test_candidates_read_for_the_fast_way_never_work_in_place():
    for name in ("relu", "hardtanh", "functional", "method", "through a view"):
        assert trace_of(KINDS[name](), {}).runs_as_it_is
