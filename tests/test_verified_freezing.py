"""`freeze(verify=)`: a network that computes something else than the supernet is refused, with where they differ."""

import copy

import pytest
import torch
from torch import nn

import supernet
from supernet import InputChoice, LayerChoice, SearchSpace, Supernet, ValueChoice, freeze, replace_layer_choice
from supernet.errors import ReplacementError
from supernet.nn import Choice, Domain, Mutable, Repeat, Sizes


class Scale(Mutable):
    """A user's own: `wrong` lets its frozen form take other weights than `run` does."""

    def __init__(self, width, wrong=False):
        super().__init__()
        self.sizes = Sizes(width=width)
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, self.sizes.largest("width")))
        self.wrong = wrong

    def run(self, sizes, x):
        return x[..., : sizes["width"]] * self.weight[: sizes["width"]]

    def frozen(self, decisions):
        width = self.sizes.under(decisions)["width"]
        scale = Scale(width)
        part = self.weight[-width:] if self.wrong else self.weight[:width]
        scale.weight = nn.Parameter(part)
        return scale


class Net(nn.Module):
    """Choices of each kind, BatchNorm and dropout; it takes two arguments and gives a dict."""

    def __init__(self, wrong=False):
        super().__init__()
        width = ValueChoice([2, 4], label="width")
        self.rate = ValueChoice([0.1, 0.4], label="rate")
        self.first, self.scale = supernet.nn.Linear(4, width), Scale(width, wrong)
        self.second = supernet.nn.Linear(width, 4)
        self.op = LayerChoice({"norm": nn.BatchNorm1d(4), "skip": nn.Identity()}, label="op")
        self.blocks = Repeat(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)), (1, 2), label="depth")
        self.two = InputChoice(2, 1, label="in")

    def forward(self, x, shift=0.0):
        y = self.op(self.second(self.scale(self.first(x))))
        y = nn.functional.dropout(self.blocks(y), self.rate(), self.training)
        return {"y": self.two([x, y]) + shift, "name": "y"}


def new(wrong=False):
    torch.manual_seed(0)
    return Net(wrong).double()


X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)


def test_every_network_of_a_space_of_all_kinds_is_verified_and_stays_as_it_was():
    model = new()
    state = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    for number, architecture in enumerate(SearchSpace(model).enumerate()):
        batch = (X, (X, X), {"x": X, "shift": 1.0})[number % 3]
        network = freeze(model, architecture, verify=batch)
        assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_it_is_verified_whatever_stands_in_the_choices_places():
    architecture = {"width": 2, "rate": 0.1, "op": "norm", "depth": 2, "in": [1]}
    model = new()
    replace_layer_choice(model, lambda choice: nn.Sequential(*choice.children()))
    freeze(model, architecture, verify=X)
    in_supernet = Supernet(new())
    freeze(in_supernet, architecture, verify=X)
    freeze(in_supernet.model, architecture, verify=X)


def test_a_frozen_form_that_takes_other_weights_is_refused_and_its_module_named():
    architecture = {"width": 2, "rate": 0.1, "op": "skip", "depth": 1, "in": [1]}
    match = r"in training form .*'width': 2.*\['y'\] differs by up to .* module 'scale' is the first that differs"
    with pytest.raises(ReplacementError, match=match):
        freeze(new(wrong=True), architecture, verify=X)
    freeze(new(wrong=True), {**architecture, "width": 4}, verify=X)  # where it takes all, it is right


class OtherInEvalForm(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x if self.training else self.factor * x


class MadeAnew(Choice):
    """Resolves to something else each time."""

    factor = 0.0

    def domain(self):
        return Domain(str(self.label), ("a", "b"))

    def resolve(self, decision):
        self.domain().positions(decision)
        MadeAnew.factor += 1
        return OtherInEvalForm(MadeAnew.factor)


def test_a_difference_in_eval_form_alone_is_found_too():
    with pytest.raises(ReplacementError, match=r"does not compute in eval form .* module '0' is the first"):
        freeze(nn.Sequential(MadeAnew("choice")), {"choice": "a"}, verify=X)


def test_another_kind_of_output_is_named():
    class Kinds(OtherInEvalForm):
        def forward(self, x):
            return [x] * int(self.factor)

    class Kind(MadeAnew):
        def resolve(self, decision):
            super().resolve(decision)
            return Kinds(MadeAnew.factor)

    with pytest.raises(ReplacementError, match=r"the output has parts \[0.*\], in the network \[0"):
        freeze(nn.Sequential(Kind("choice")), {"choice": "a"}, verify=X)
