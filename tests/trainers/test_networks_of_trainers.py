"""A trainer's network is what it measures, and training goes on from its weights or from new ones."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, EnasTrainer, LayerChoice, SinglePathTrainer, accuracy, evaluate, freeze, train
from supernet.errors import ArchitectureError


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), factor

    def forward(self, x):
        return self.linear(x) * self.factor + self.factor


def new_model():
    torch.manual_seed(0)
    choice = LayerChoice({"small": Scaled(0.3), "large": Scaled(5.0)}, label="a")
    return nn.Sequential(choice, nn.BatchNorm1d(4), nn.Linear(4, 2))


def data(seed):
    X = torch.randn(120, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(X, (X[:, 0] > 0).long())


ITS_OWN = {
    SinglePathTrainer: {"num_evaluations": 2},
    EnasTrainer: {"reward_function": accuracy, "num_samples": 2},
    DartsTrainer: {},
}


def searched(kind):
    model = new_model()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"valid_dataset": data(1), "batch_size": 20, **ITS_OWN[kind]}
    task = {"loss": nn.CrossEntropyLoss(), "metrics": accuracy, "num_epochs": 2, "dataset": data(0)}
    trainer = kind(model, optimizer=optimizer, **task, **options)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("kind", ITS_OWN)
def test_a_trainers_network_is_what_it_measures(kind):
    trainer = searched(kind)
    before = copy.deepcopy(trainer.model.state_dict())
    for architecture in ({"a": "small"}, {"a": "large"}):
        network = trainer.network(architecture)
        measured = evaluate(network, nn.CrossEntropyLoss(), accuracy, data(1))
        expected = trainer.evaluate(architecture)  # of ENAS the reward too
        assert measured == pytest.approx({name: expected[name] for name in measured}, rel=1e-5)
        # The statistics are of this path: by hand, of all that the trainer trains on, batch by batch.
        X = data(0).tensors[0]
        mean = network[0](X).mean(0)
        assert torch.allclose(network[1].running_mean, mean, atol=1e-5)
    found = trainer.network()
    assert torch.equal(found[2].weight, trainer.model[2].weight)
    assert type(found[0]) is Scaled and found[0].factor == (0.3 if trainer.export() == {"a": "small"} else 5.0)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    with pytest.raises(ArchitectureError, match="has no candidate 'huge'"):
        trainer.network({"a": "huge"})


def trained(network):
    optimizer = SGD(network.parameters(), 0.05)
    return train(network, nn.CrossEntropyLoss(), accuracy, optimizer, 1, data(0), batch_size=20)


def test_training_goes_on_from_the_weights_of_the_supernet_or_from_new_ones():
    trainer = searched(SinglePathTrainer)
    architecture = trainer.export()
    before = copy.deepcopy(trainer.model.state_dict())
    inherited, new = trainer.network(), freeze(new_model(), architecture)
    assert torch.equal(inherited[2].weight, trainer.model[2].weight)
    assert torch.equal(new[2].weight, new_model()[2].weight)
    assert not torch.equal(inherited[2].weight, new[2].weight)
    at_first = evaluate(inherited, nn.CrossEntropyLoss(), accuracy, data(1))["loss"]
    assert at_first < evaluate(new, nn.CrossEntropyLoss(), accuracy, data(1))["loss"]
    for network in (inherited, new):
        weight = network[2].weight.detach().clone()
        trained(network)
        assert not torch.equal(network[2].weight, weight)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_one_step_from_inherited_weights_is_the_step_of_sgd():
    network = searched(SinglePathTrainer).network()
    X, y = data(0).tensors
    twin = copy.deepcopy(network).train()
    loss = nn.CrossEntropyLoss()(twin(X), y)
    (gradient,) = torch.autograd.grad(loss, [twin[2].weight])
    expected = twin[2].weight - 0.05 * gradient
    train(network, nn.CrossEntropyLoss(), None, SGD(network.parameters(), 0.05), 1, data(0), batch_size=120)
    assert torch.allclose(network[2].weight, expected, atol=1e-6)
