"""BatchNorm's running statistics computed anew for a frozen network: the plain average over batches."""

import copy

import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from supernet import (
    DartsTrainer,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    accuracy,
    evaluate,
    freeze,
    recalibrate,
)
from supernet.errors import DataError, UnresolvedChoiceError


class Scaled(nn.Module):
    def __init__(self, factor, shift):
        super().__init__()
        self.conv, self.factor, self.shift = nn.Conv2d(1, 4, 3, padding=1), factor, shift

    def forward(self, x):
        return self.conv(x) * self.factor + self.shift


def plain(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4, momentum=0.3), nn.Dropout(0.5), norm(4), nn.Flatten())
    for bn in (network[1], network[3]):
        bn.running_mean.uniform_(1, 2)
        bn.running_var.uniform_(3, 4)
    return network.append(nn.Linear(64, 2))


def data(count=64):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 1, 6, 6, generator=generator) * 3 + 1, torch.arange(count) % 2)


def averages(network, batches):
    """Mean and unbiased variance of each batch by hand, layer by layer in float64, averaged over the batches."""
    network = copy.deepcopy(network).double().eval()
    found = []
    for X in batches:
        for position, module in enumerate(network):
            if position in (1, 3):
                X = X.double() if position == 1 else X
                mean, var = X.mean((0, 2, 3)), X.var((0, 2, 3))
                found.append((position, mean, var))
                biased = X.var((0, 2, 3), unbiased=False)
                shape = (1, -1, 1, 1)
                X = (X - mean.view(shape)) / (biased.view(shape) + module.eps).sqrt()
                X = X * module.weight.view(shape) + module.bias.view(shape)
            else:
                X = module(X.double())
    return {
        position: [torch.stack([f[i] for f in found if f[0] == position]).mean(0) for i in (1, 2)]
        for position in (1, 3)
    }


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_the_plain_average_over_batches(norm, training):
    network = plain(norm).train(training)
    expected = averages(network, data().tensors[0].split(16))
    before = copy.deepcopy(network)
    random = torch.get_rng_state()
    assert recalibrate(network, DataLoader(data(), 16)) is network
    for position, (mean, var) in expected.items():
        assert torch.allclose(network[position].running_mean.double(), mean, atol=1e-5)
        assert torch.allclose(network[position].running_var.double(), var, rtol=1e-5)
        assert network[position].momentum == before[position].momentum
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    parameters = zip(network.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(p, q) and p.grad is None for p, q in parameters)
    assert [vars(m).keys() for m in network.modules()] == [vars(m).keys() for m in before.modules()]


def test_statistics_of_a_norm_in_eval_form_stay():
    network = plain()
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    recalibrate(network, data())
    assert torch.equal(network[1].running_mean, before["1.running_mean"])
    assert not torch.equal(network[3].running_mean, before["3.running_mean"])


class Breaks(nn.Module):
    def forward(self, x):
        if (x == 7).any():
            raise ValueError("seven")
        return x


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


def test_after_an_error_all_is_as_it_was():
    broken = data()
    broken.tensors[0][40] = 7
    network = nn.Sequential(*plain(), Breaks())
    network.insert(0, Breaks())
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="seven"):
        recalibrate(network, DataLoader(broken, 16))
    with pytest.raises(DataError, match="gives no batch"):
        recalibrate(network, Nothing())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and network[2].momentum == 0.3
    with pytest.raises(UnresolvedChoiceError):
        recalibrate(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="a")), data())


def test_batches_of_other_forms_are_run_by_forward_fn():
    network, twin = plain(), plain()
    recalibrate(twin, DataLoader(data(), 16))
    loader = DataLoader(data(), 16, collate_fn=lambda samples: {"image": torch.stack([x for x, _ in samples])})
    recalibrate(network, loader, forward_fn=lambda model, batch: model(batch["image"]))
    assert torch.equal(network[3].running_var, twin[3].running_var)


def paths_of_unequal_scales():
    torch.manual_seed(0)
    X, y = torch.randn(400, 1, 6, 6), torch.randint(2, (400,))
    X[y == 1, 0, :3] += 1.0
    train, valid = TensorDataset(X[:200], y[:200]), TensorDataset(X[200:], y[200:])
    choice = LayerChoice({"small": Scaled(0.3, 2.0), "large": Scaled(5.0, -2.0)}, label="a")
    model = nn.Sequential(choice, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return model, train, valid


def test_a_frozen_path_measures_what_the_trainer_measured_once_it_is_recalibrated():
    model, train, valid = paths_of_unequal_scales()
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
    trainer = SinglePathTrainer(
        model,
        nn.CrossEntropyLoss(),
        accuracy,
        optimizer,
        8,
        train,
        valid_dataset=valid,
        batch_size=20,
        num_evaluations=2,
    )
    trainer.fit()
    mixed, loss = [], nn.CrossEntropyLoss()
    for name in ("small", "large"):
        expected = trainer.evaluate({"a": name})
        found = evaluate(freeze(model, {"a": name}, recalibrate=DataLoader(train, 20)), loss, accuracy, valid)
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.02)
        mixed.append(evaluate(freeze(model, {"a": name}), loss, accuracy, valid)["accuracy"])
    assert min(mixed) < 0.7  # as they come, by statistics of both paths


@pytest.mark.parametrize("trainer_class", [SinglePathTrainer, RandomTrainer, ProxylessTrainer, DartsTrainer])
def test_a_run_directory_has_the_network_that_the_trainer_measures(trainer_class, tmp_path):
    model, train, valid = paths_of_unequal_scales()
    optimizer, loss = SGD(model.parameters(), 0.05, momentum=0.9), nn.CrossEntropyLoss()
    its_own = {SinglePathTrainer: {"num_evaluations": 2}, RandomTrainer: {"num_samples": 2}}.get(trainer_class, {})
    options = {"valid_dataset": valid, "batch_size": 20, "run_dir": tmp_path, **its_own}
    trainer = trainer_class(model, loss, accuracy, optimizer, 2, train, **options)
    trainer.fit()
    architecture = trainer.export()
    network = freeze(paths_of_unequal_scales()[0], architecture)
    load_model(network, tmp_path / "network.safetensors")
    expected = trainer.evaluate(architecture)
    assert evaluate(network, loss, accuracy, valid) == pytest.approx(expected, rel=1e-5)
    assert evaluate(freeze(model, architecture), loss, accuracy, valid) != pytest.approx(expected, rel=1e-3)


def test_a_run_directory_has_a_network_also_where_it_cannot_be_recalibrated(tmp_path, caplog):
    model, train, valid = paths_of_unequal_scales()

    def in_training_form_only(model, batch):
        assert model.training
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    trainer = DartsTrainer(
        *(model, None, None, SGD(model.parameters(), 0.05), 1, train),
        loss_fn=in_training_form_only,
        valid_dataset=valid,
        run_dir=tmp_path,
    )
    trainer.fit()
    network = freeze(paths_of_unequal_scales()[0], trainer.export())
    load_model(network, tmp_path / "network.safetensors")
    assert torch.equal(network[1].running_mean, model[1].running_mean)
    assert "the network's running statistics are those of the whole supernet" in caplog.text
