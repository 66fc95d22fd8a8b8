"""A kind of choice that a user defines runs in every trainer, and what is exported is what was trained."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kinds_of_choice import Several
from supernet import (
    DartsTrainer,
    EnasTrainer,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    accuracy,
    freeze,
)
from supernet.errors import ChoiceError
from supernet.execution import ChoiceSlot, Plan, Selection, replace_other_choices, restore
from supernet.nn import Choice, Domain


class Depth(Choice):
    """The first 1, 2 or 3 of three blocks, one after another, and a weight of its own."""

    def __init__(self, *blocks, label=None):
        super().__init__(label)
        self.blocks = nn.ModuleList(blocks)
        self.scale = nn.Parameter(torch.ones(4))

    def domain(self):
        return Domain(str(self.label), ("one", "two", "three"), values=(1, 2, 3), noun="depth")

    def branches(self):
        return [list(self.blocks)[:depth] for depth in (1, 2, 3)]

    def resolve(self, decision):
        return Scaled(list(self.blocks)[: self.domain().normalized(decision)], self.scale)


class Scaled(nn.Module):
    def __init__(self, blocks, scale):
        super().__init__()
        self.blocks, self.scale = nn.Sequential(*blocks), scale

    def forward(self, x):
        return self.blocks(x) * self.scale


def layers(label):
    return LayerChoice({"linear": nn.Linear(4, 4), "tanh": nn.Tanh()}, label=label)


def new_model(of_sets=True):
    torch.manual_seed(0)
    inner = Depth(nn.Linear(4, 4), nn.Dropout(0.3), nn.ReLU(), label="inner depth")
    depth = Depth(nn.Linear(4, 4), layers("second"), LayerChoice([inner, nn.Identity()], label="third"), label="depth")
    subset = [Several(layers("part"), nn.Tanh(), nn.ReLU(), label="subset")] if of_sets else []
    return nn.Sequential(depth, *subset, nn.Linear(4, 2))


def reward(output, target):
    return accuracy(output, target).item()


KINDS = {
    "darts": (DartsTrainer, {}, {}),
    "second order": (DartsTrainer, {"unrolled": True}, {}),
    "lean": (DartsTrainer, {"memory": "lean"}, {}),
    "proxyless": (ProxylessTrainer, {}, {}),
    "single path": (SinglePathTrainer, {"num_evaluations": 6, "population": 4, "num_parents": 2}, {}),
    "random": (RandomTrainer, {"num_samples": 4}, {}),
    "enas": (EnasTrainer, {"num_samples": 3}, {"reward_function": reward}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_searches_it_and_exports_what_it_has_trained(kind, tmp_path):
    cls, options, further = KINDS[kind]
    model = new_model(of_sets=cls is not DartsTrainer)
    keys = list(model.state_dict())
    X = torch.randn(48, 4)
    data = TensorDataset(X, (X.sum(1) > 0).long())

    def trainer(model, **more):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return cls(
            model, nn.CrossEntropyLoss(), accuracy, optimizer=optimizer, num_epochs=2, dataset=data, batch_size=8,
            progress=False, run_dir=tmp_path, **options, **further, **more,
        )  # fmt: skip

    before = {name: value.clone() for name, value in model.state_dict().items()}
    searched = trainer(model)
    assert list(model.state_dict()) == keys
    searched.fit()
    assert any(not torch.equal(model.state_dict()[name], before[name]) for name in keys)
    architecture = searched.export()
    assert architecture["depth"] in (1, 2, 3)
    measured = searched.evaluate(architecture)
    network = freeze(model, architecture)
    inputs, targets = map(
        torch.stack, zip(*searched.valid_part.unsharded(shuffle=False).loader.dataset.dataset, strict=True)
    )
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network.eval()(inputs), targets)
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    restore(model)
    assert list(model.state_dict()) == keys
    again = trainer(new_model(of_sets=cls is not DartsTrainer))
    again.fit(resume="auto")  # finished: all of its state comes back
    assert again.export() == architecture


def slotted(model):
    plan = Plan()
    replace_other_choices(model, lambda choice: ChoiceSlot(choice, plan))
    return plan


def test_weights_of_the_options_give_the_weighted_sum_of_what_each_becomes():
    torch.manual_seed(1)
    model = nn.Sequential(Depth(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), label="d")).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        networks = [freeze(model, {"d": depth}) for depth in (1, 2, 3)]
        expected = sum(p * network(x) for p, network in zip((0.2, 0.3, 0.5), networks, strict=True))
    plan = slotted(model)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    plan["d"] = weights
    output = model(x)
    torch.testing.assert_close(output, expected)
    gradient = torch.autograd.grad(output.sum(), weights)[0]
    torch.testing.assert_close(gradient, torch.stack([network(x).sum() for network in networks]).detach())


def test_gates_let_the_active_one_through_and_know_the_others_outputs():
    torch.manual_seed(1)
    model = nn.Sequential(Depth(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), label="d")).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        one, three = (freeze(model, {"d": depth})(x) for depth in (1, 3))
    plan = slotted(model)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    plan["d"] = Selection((3, 1), weights, detached=1)
    output = model(x)
    assert torch.equal(output, three)
    gradient = torch.autograd.grad(output.sum(), weights, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.stack([three.sum(), one.sum()]))
    output.sum().backward()
    assert model[0].blocks[2].weight.grad is not None


def test_what_the_choice_makes_follows_train_and_eval_and_a_copy_has_its_own():
    model = nn.Sequential(Depth(nn.Identity(), nn.Dropout(0.5), nn.Identity(), label="d"))
    plan = slotted(model)
    plan["d"] = 3
    x = torch.ones(100, 4)
    assert not torch.equal(model(x), x)
    model.eval()
    assert torch.equal(model(x), x)
    assert not model[0].resolved(3).training
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[0].scale.fill_(2)
    other[0].plan["d"] = 3
    assert torch.equal(other(x), x)
    assert torch.equal(model(x), 2 * x)


def test_a_set_that_no_mixture_is_known_of_is_refused_by_its_name():
    model = new_model()
    X = torch.randn(32, 4)
    with pytest.raises(ChoiceError, match=r"choice 'subset' takes 1 to 2 of 3 parts .*, of which no mixture is known"):
        DartsTrainer(
            model, nn.CrossEntropyLoss(), None, torch.optim.SGD(model.parameters(), 0.1), 1,
            TensorDataset(X, (X.sum(1) > 0).long()), batch_size=8,
        )  # fmt: skip
    assert isinstance(model[1], Several)


@pytest.mark.parametrize(
    ("model", "entry", "match"),
    [
        (lambda: Depth(nn.Tanh(), nn.Tanh(), nn.Tanh(), label="c"), torch.ones(4), "is to run 3 options by 4 weights"),
        (
            lambda: Depth(nn.Tanh(), nn.Tanh(), nn.Tanh(), label="c"),
            Selection((1, 2), torch.ones(3), 1),
            "is to run 2 options by 3 weights",
        ),
        (lambda: Several(nn.Tanh(), nn.ReLU(), nn.Tanh(), label="c"), torch.ones(3), "of which no mixture is known"),
    ],
)
def test_weights_that_a_plan_comes_to_have_later_are_refused_by_name(model, entry, match):
    model = nn.Sequential(model())
    slotted(model)["c"] = entry
    with pytest.raises(ChoiceError, match=match):
        model(torch.randn(2, 4))


class Width(Choice):
    def domain(self):
        return Domain(str(self.label), ("narrow", "wide"), values=(4, 8))

    def resolve(self, decision):
        width = self.domain().normalized(decision)
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4))


@pytest.mark.parametrize("kind", [DartsTrainer, RandomTrainer])
def test_weights_that_no_search_could_train_are_refused_when_the_trainer_is_made(kind):
    model, X = nn.Sequential(Width(label="w"), nn.Linear(4, 2)), torch.randn(32, 4)
    with pytest.raises(ChoiceError, match=r"choice 'w' makes new weights in resolve\(\) \(0.weight, 0.bias"):
        kind(
            model, nn.CrossEntropyLoss(), None, optimizer=torch.optim.SGD(model.parameters(), 0.1), num_epochs=1,
            dataset=TensorDataset(X, (X.sum(1) > 0).long()), batch_size=8,
        )  # fmt: skip
    assert isinstance(model[0], Width)
