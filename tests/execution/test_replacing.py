"""Putting modules in the place of choices, and the choices back."""

import copy

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace, freeze, replace_input_choice, replace_layer_choice, restore
from supernet.errors import AlreadyReplacedError, ReplacementError, SpaceError


class First(nn.Module):
    """Runs the first candidate, and holds all."""

    def __init__(self, choice):
        super().__init__()
        self.ops = nn.ModuleDict(choice.named_children())

    def forward(self, x):
        return next(iter(self.ops.values()))(x)


class Sum(nn.Module):
    def __init__(self, choice):
        super().__init__()

    def forward(self, inputs):
        return sum(inputs)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = nn.Linear(2, 2)
        self.skip = InputChoice(2, None)

    def forward(self, x):
        return self.skip([x, self.op(x)])


def nested():
    """Three deep, with an input choice inside a candidate, and one module in two places."""
    inner = LayerChoice({"x": nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.ReLU()])), "y": nn.Linear(2, 2)})
    outer = LayerChoice({"a": nn.Sequential(inner, Residual()), "b": inner})
    return nn.Sequential(outer, LayerChoice([nn.Linear(2, 2)], label="last"))


def snapshot(model):
    return dict(model.named_modules(remove_duplicate=False)), {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    modules, state = snapshot(model)
    return modules == before[0] and all(torch.equal(value, before[1][name]) for name, value in state.items())


def test_modules_come_in_order_of_occurrence_outer_before_inner():
    made = []

    def init(choice):
        made.append(choice.label)
        return First(choice)

    given = [("before", nn.Identity())]
    modules = replace_layer_choice(nested(), init, given)
    assert modules is given
    assert [label for label, _ in modules[1:]] == ["0", "0.a.0", "0.a.0.x.0", "last"]
    assert made == ["last", "0.a.0.x.0", "0.a.0", "0"]
    assert all(isinstance(module, First) for _, module in modules[1:])


def test_what_init_fn_sees_can_run_already():
    seen = []

    def init(choice):
        if choice.label == "0.a.0":
            seen.append(choice["x"](torch.ones(1, 2)).shape)
        return First(choice)

    replace_layer_choice(nested(), init)
    assert seen == [(1, 2)]


def test_a_module_in_two_places_is_replaced_by_one():
    model = nested()
    outer = replace_layer_choice(model, First)[0][1]
    assert outer.ops["a"][0] is outer.ops["b"]
    shared = LayerChoice([nn.ReLU()])
    twice = nn.ModuleDict({"one": shared, "two": nn.Sequential(shared)})
    modules = replace_layer_choice(twice, First)
    assert len(modules) == 1
    assert twice["one"] is twice["two"][0] is modules[0][1]


def test_both_kinds_are_replaced_in_either_order_and_the_model_runs():
    for first, second in [(True, False), (False, True)]:
        model = nested()
        for layers in (first, second):
            if layers:
                replace_layer_choice(model, First)
            else:
                replace_input_choice(model, Sum)
        assert model(torch.ones(1, 2)).shape == (1, 2)
        assert not [m for m in model.modules() if isinstance(m, LayerChoice | InputChoice)]


class JoinOf(nn.Module):
    """Calls its input choice, which stands directly inside a layer choice."""

    def __init__(self):
        super().__init__()
        self.how = LayerChoice({"one": InputChoice(2, 1), "both": InputChoice(2, 2)})

    def forward(self, x):
        return self.how([x, x])


def test_a_candidate_that_is_an_input_choice_is_replaced_inside_what_replaced_the_layer_choice():
    model = JoinOf()
    replace_layer_choice(model, First)
    replace_input_choice(model, Sum)
    assert torch.equal(model(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(freeze(model, {"how": "one", "how.one": [1]})(torch.ones(2)), torch.ones(2))
    restore(model)
    assert [type(m) for m in model.how] == [InputChoice, InputChoice]


@pytest.mark.parametrize("failing", ["0", "0.a.0.x.0", "0.a.0", "last"])
def test_the_model_is_as_it_was_where_init_fn_raises(failing):
    model = nested()
    before, given = snapshot(model), []

    def init(choice):
        if choice.label == failing:
            raise KeyError("mine")
        return First(choice)

    with pytest.raises(KeyError, match="mine"):
        replace_layer_choice(model, init, given)
    assert same(model, before)
    assert given == []
    assert not [m for m in model.modules() if [name for name in vars(m) if "replaced" in name]]


def test_init_fn_that_returns_no_module_is_refused():
    model = nested()
    before = snapshot(model)
    with pytest.raises(ReplacementError, match=r"init_fn returned None for choice 'last'.*return an nn\.Module"):
        replace_layer_choice(model, lambda choice: None)
    assert same(model, before)


@pytest.mark.parametrize("copied", [False, True])
def test_restore_puts_back_the_choices_with_the_weights_as_trained(copied):
    model = nested()
    before = snapshot(model)
    replace_layer_choice(model, First)
    replace_input_choice(model, Sum)
    if copied:
        model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert restore(model) is model
    modules, state = snapshot(model)
    assert list(modules) == list(before[0])
    assert copied or modules == before[0]
    assert list(state) == list(before[1])
    assert all(torch.equal(value, before[1][name] + 1) for name, value in state.items())
    replace_layer_choice(model, First)  # and again


def test_restore_of_a_model_as_written_changes_nothing():
    model = nested()
    before = snapshot(model)
    restore(model)
    assert same(model, before)


def test_a_candidate_itself_or_any_module_may_stand_in_the_place():
    model = nested()
    before = snapshot(model)
    replace_layer_choice(model, lambda choice: choice[0])
    replace_input_choice(model, lambda choice: nn.Identity())
    list(SearchSpace(model).enumerate())
    restore(model)
    assert same(model, before)


def test_replacing_what_has_been_replaced_is_refused():
    model = nested()
    replace_layer_choice(model, First)
    with pytest.raises(AlreadyReplacedError, match=r"each LayerChoice .* replaced already; restore\(model\)"):
        replace_layer_choice(model, First)
    replace_input_choice(model, Sum)


def test_a_model_without_choices_has_nothing_to_replace():
    assert replace_layer_choice(nn.Linear(1, 1), First) == []


def test_a_root_that_is_itself_a_choice_is_refused():
    with pytest.raises(ReplacementError, match=r"the model itself is .* wrap it in nn\.Sequential"):
        replace_layer_choice(LayerChoice([nn.ReLU()], label="op"), First)


def test_labels_that_mean_two_things_are_refused_before_anything_is_replaced():
    model = nn.Sequential(LayerChoice([nn.ReLU()], label="x"), LayerChoice([nn.ReLU(), nn.Tanh()], label="x"))
    with pytest.raises(SpaceError, match="share the label 'x'"):
        replace_layer_choice(model, First)
    assert isinstance(model[0], LayerChoice)


def test_restore_warns_where_trained_copies_are_lost(caplog):
    model = nn.Sequential(LayerChoice([nn.Linear(1, 1)], label="op"))
    replace_layer_choice(model, lambda choice: copy.deepcopy(choice[0]))
    restore(model)
    assert "choice 'op' does not hold candidate '0' itself" in caplog.text
