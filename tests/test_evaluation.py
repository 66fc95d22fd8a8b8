"""Training and measuring single networks."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from supernet import LayerChoice, accuracy, evaluate, train
from supernet.errors import DataError, NonFiniteError, TrainingError, UnresolvedChoiceError

LOSS = nn.functional.cross_entropy


def points(count=50):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(count, 3, generator=generator)
    return TensorDataset(X, (X[:, 0] > 0).long())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


def trained(seed=0, **options):
    net = network()
    history = train(net, LOSS, accuracy, SGD(net.parameters(), 0.1), 5, points(), batch_size=16, seed=seed, **options)
    return net, history


def test_a_network_is_trained_and_measured():
    net, history = trained()
    assert len(history) == 5
    assert history[-1]["loss"] < history[0]["loss"]
    assert evaluate(net, LOSS, accuracy, points())["accuracy"] > 0.85


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    (first, _), (again, _), (other, _) = trained(0), trained(0), trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_measuring_is_a_mean_over_all_samples_in_eval_form_whatever_the_batches():
    net, data = network().train(), points()
    X, y = data[:]
    measured = evaluate(net, LOSS, accuracy, data, batch_size=7)
    assert net.training
    with torch.no_grad():
        expected = LOSS(net.eval()(X), y)
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx(accuracy(net(X), y).item())
    assert evaluate(net, None, accuracy, DataLoader(data, 9)) == {"accuracy": pytest.approx(measured["accuracy"])}


def test_accuracy_counts_positions_too():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # (1, 2 classes, 2 positions)
    assert accuracy(logits, torch.tensor([[1, 1]])) == 0.5


def test_a_network_with_choices_is_refused():
    net = nn.Sequential(LayerChoice([nn.Linear(3, 2)], label="op"))
    with pytest.raises(UnresolvedChoiceError, match=r"choices \(op\).* freeze\(model, architecture\)"):
        train(net, LOSS, None, SGD(net.parameters(), 0.1), 1, points())
    with pytest.raises(UnresolvedChoiceError, match=r"freeze\(model, architecture\)"):
        evaluate(net, LOSS, None, points())


def test_bad_arguments_are_refused():
    net = network()
    optimizer = SGD(net.parameters(), 0.1)
    with pytest.raises(TrainingError, match="num_epochs is a whole number from 1 on, not 0"):
        train(net, LOSS, None, optimizer, 0, points())
    with pytest.raises(TrainingError, match=r"lacks parameters of the model or the loss: 0\.weight"):
        train(net, LOSS, None, SGD(network().parameters(), 0.1), 1, points())
    with pytest.raises(DataError, match="TensorDataset is empty"):
        train(net, LOSS, None, optimizer, 1, points(0))
    with pytest.raises(NonFiniteError, match="epoch 1"):
        train(net, lambda o, y: LOSS(o, y) * float("inf"), None, optimizer, 1, points())
