"""Training and eval form: what a user has put into eval form stays so, and all comes back in the form it had."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    evaluate,
    freeze,
    restore,
    train,
)
from supernet.errors import NonFiniteError


class KeepsEvalForm(nn.Sequential):
    def train(self, mode=True):
        return super().train(False)


class Net(nn.Module):
    def __init__(self, backbone=nn.Sequential):
        super().__init__()
        self.backbone = backbone(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.backbone[1].running_mean.uniform_(1, 2)
        self.backbone[1].running_var.uniform_(3, 4)
        self.backbone.requires_grad_(False)
        normed = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.op = LayerChoice({"normed": normed, "conv": nn.Conv2d(4, 4, 1)}, label="op")
        self.pick = InputChoice(2, 1, label="pick")
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.op(self.backbone(x)))
        return self.fc(self.pick([x, x.relu()]).mean((2, 3)))


def loss(output, y):
    return nn.functional.cross_entropy(output, y)


def data(count=32):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 2)


def reward(output, y):
    return -loss(output, y)


TRAINERS = {
    "darts": (DartsTrainer, {}),
    "second order": (DartsTrainer, {"unrolled": True}),
    "lean": (DartsTrainer, {"memory": "lean"}),
    "proxyless": (ProxylessTrainer, {}),
    "single path": (SinglePathTrainer, {"num_evaluations": 2}),
    "random": (RandomTrainer, {"num_samples": 2, "num_finalists": 1}),
    "enas": (EnasTrainer, {"reward_function": reward, "num_samples": 2}),
}


def trainer_of(kind, model, **options):
    trainer_class, its_own = TRAINERS[kind]
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    options = {"num_epochs": 1, "dataset": data(), "batch_size": 8, "loss": loss, **options}
    return trainer_class(model, metrics=None, optimizer=optimizer, **its_own, **options)


def forms(model):
    return {name: module.training for name, module in model.named_modules()}


def statistics(norm):
    return [buffer.clone() for buffer in norm.buffers()]


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("backbone", [nn.Sequential, KeepsEvalForm])
def test_a_search_moves_no_statistic_of_a_part_that_is_in_eval_form(kind, backbone):
    torch.manual_seed(0)
    model = Net(backbone)
    if backbone is nn.Sequential:
        model.backbone.eval()
    before, inner = statistics(model.backbone[1]), statistics(model.norm)
    trainer = trainer_of(kind, model)
    seen = []
    model.backbone.register_forward_hook(lambda module, args, output: seen.append(module.training))
    trainer.fit()
    assert not any(seen) and same(before, statistics(model.backbone[1]))
    assert not same(inner, statistics(model.norm))


@pytest.mark.parametrize("kind", ["single path", "random", "enas"])
def test_evaluating_leaves_frozen_statistics_and_measures_the_network_that_has_them(kind):
    """The twin: the plain network, its other BatchNorms averaged by hand over the training part, in eval form."""
    torch.manual_seed(0)
    model = Net()
    model.backbone.eval()
    trainer = trainer_of(kind, model, valid_dataset=data(20))
    trainer.fit()
    path = {"op": "normed", "pick": [1]}
    network = freeze(model, path)
    norms = [network.op[1], network.norm]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for X, _ in trainer._recalibration_part.batches(0):
            network(X)
        X, y = data(20).tensors
        expected = float(loss(network.eval()(X), y))
    assert trainer.evaluate(path)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("whole", [True, False])
def test_each_module_comes_back_in_the_form_it_had(kind, whole):
    torch.manual_seed(0)
    model = Net().train(whole)
    model.backbone.train(not whole)
    model.backbone[1].train(whole)
    model.op["normed"].train(not whole)
    model.pick.train(not whole)
    before = forms(model)
    trainer = trainer_of(kind, model)
    network = freeze(model, {"op": "normed", "pick": 0})
    trainer.fit()
    for frozen in (network, freeze(model, {"op": "normed", "pick": 0})):
        found = forms(frozen)
        assert found.pop("op.1") == before["op.normed.1"] and found.pop("op.0") == before["op.normed.0"]
        assert found.pop("op") == before["op.normed"]
        assert found.items() <= before.items()
    assert forms(restore(model)) == before


def test_each_module_comes_back_in_the_form_it_had_after_an_error():
    model = Net()
    model.backbone.eval()
    before = forms(model)
    with pytest.raises(ZeroDivisionError):
        trainer_of("darts", model, loss=lambda output, y: 1 / 0)
    assert forms(model) == before
    factor = [1.0]
    trainer = trainer_of("darts", model, loss=lambda output, y: loss(output, y) * factor[0])
    factor[0] = torch.inf
    with pytest.raises(NonFiniteError):
        trainer.fit()
    assert forms(restore(model)) == before


def test_a_model_that_is_in_eval_form_as_a_whole_is_trained_as_a_whole():
    torch.manual_seed(0)
    model, twin = Net(), Net()
    twin.load_state_dict(model.state_dict())
    for net in (model, twin.eval()):
        trainer_of("darts", net).fit()
    assert not twin.training and model.training
    assert same([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()])


@pytest.mark.parametrize("before_the_trainer", [True, False])
def test_a_part_put_into_eval_form_before_or_after_the_trainer_was_made_stays_so(before_the_trainer):
    model = Net()
    if before_the_trainer:
        model.backbone.eval()
    trainer = trainer_of("darts", model)
    if before_the_trainer:
        model.eval()  # to look at its outputs, say
    else:
        model.backbone.eval()
    before, forms_before = statistics(model.backbone[1]), forms(model)
    trainer.fit()
    assert same(before, statistics(model.backbone[1]))
    assert forms(model) == forms_before


def plain():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2))
    network[1].running_mean.uniform_(1, 2)
    return network


@pytest.mark.parametrize("keeps", [False, True])
def test_training_a_network_leaves_parts_that_are_in_eval_form_so(keeps):
    network = nn.ModuleDict({"backbone": plain()[:3], "fc": nn.Linear(64, 2)})
    network["backbone"].eval()
    if keeps:
        network["backbone"] = KeepsEvalForm(*network["backbone"])
    network = nn.Sequential(network["backbone"], nn.Flatten(), network["fc"])
    before, forms_before = statistics(network[0][1]), forms(network)
    train(network, loss, None, SGD(network.parameters(), 0.1), 1, data(), batch_size=8, progress=False)
    assert same(before, statistics(network[0][1])) and forms(network) == forms_before


def test_measuring_a_network_leaves_each_module_in_its_form_and_moves_nothing():
    network = plain()
    network[1].eval()
    twin = copy.deepcopy(network).eval()
    before, forms_before = copy.deepcopy(network.state_dict()), forms(network)
    X, y = data(23).tensors
    expected = float(loss(twin(X), y).detach())
    assert evaluate(network, loss, None, data(23), batch_size=5)["loss"] == pytest.approx(expected, rel=1e-5)
    assert forms(network) == forms_before
    assert same(before.values(), network.state_dict().values())
