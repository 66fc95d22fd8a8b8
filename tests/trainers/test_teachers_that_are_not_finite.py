"""A loss that is not finite because of what a teacher gives is told as the teacher's, not as the learning rate's."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, Distillation, LayerChoice, SinglePathTrainer, WithLogits, store_logits
from supernet.errors import DataError, FileFormatError, NonFiniteError
from supernet.files.safetensors_file import read_safetensors, write_safetensors

OF_OLD = "the learning rate may be too high, or the data may hold such values"


def data(X=None):
    X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) if X is None else X
    return TensorDataset(X, torch.arange(16) % 3)


def taught(distillation, dataset=None, trainer_class=SinglePathTrainer, loss=cross_entropy, **options):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "tanh": nn.Tanh()}, label="op"), nn.Linear(4, 3))
    its_own = {"num_evaluations": 2, "population": 2} if trainer_class is SinglePathTrainer else {}
    optimizer = SGD(model.parameters(), 0.1)
    return trainer_class(
        model, loss, None, optimizer, 1, data() if dataset is None else dataset, batch_size=4, device="cpu",
        progress=False, distillation=distillation, **its_own, **options,
    )  # fmt: skip


def teacher(value=math.nan):
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.bias[0] = value
    return network


@pytest.mark.parametrize("options", [{}, {"on_nonfinite": "skip"}])
@pytest.mark.parametrize("trainer_class", [SinglePathTrainer, DartsTrainer])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_is_not_finite_is_named(trainer_class, value, options):
    with pytest.raises(NonFiniteError, match="so is what the teacher Linear gives for a batch that is finite") as told:
        taught(Distillation(teacher(value)), trainer_class=trainer_class, **options).fit()
    assert OF_OLD not in str(told.value)


def test_a_teacher_is_found_out_where_the_step_does_not_wait_for_the_device():
    trainer = taught(Distillation(teacher()))
    for X, y in trainer.train_part.batches(0):
        trainer._note_unless_finite(trainer.loss_of(trainer.forward(X, trainer.sample()), y))
    with pytest.raises(NonFiniteError, match=r"in epoch 1, step 1; so is what the teacher Linear gives"):
        trainer._check_noted()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_neither_stored_nor_read(tmp_path, value):
    path, X = tmp_path / "logits.safetensors", torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    store_logits(teacher(-math.inf), data(X), path)  # a class that is ruled out
    metadata, tensors = read_safetensors(path)
    X[3] = X[5] = value
    with pytest.raises(DataError, match=r"the teacher Linear gives NaN or infinity for sample 3 and 1 more"):
        store_logits(nn.Linear(4, 3), data(X), path)
    assert torch.equal(WithLogits(data(), path)[15][1].output, tensors["logits"][15])  # the former is still there
    tensors["logits"][7, 1] = value
    write_safetensors(path, tensors, {"samples": metadata["samples"]})
    with pytest.raises(FileFormatError, match=r"logits.safetensors has NaN or infinity for sample 7 and 0 more"):
        WithLogits(data(), path)


@pytest.mark.parametrize("trainer_class", [SinglePathTrainer, DartsTrainer])
def test_a_distillation_loss_that_is_not_finite_is_named(trainer_class):
    def broken(output, of_teacher):
        return (output - of_teacher).square().mean() * math.nan

    with pytest.raises(NonFiniteError, match=r"so is the loss of the distillation, .*broken") as told:
        taught(Distillation(nn.Linear(4, 3), loss=broken), trainer_class=trainer_class).fit()
    assert OF_OLD not in str(told.value)


def test_a_teacher_is_not_blamed_for_the_data_the_loss_or_classes_that_it_rules_out():
    with_nan = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    with_nan[:, 0] = math.nan

    def broken(output, target):
        return cross_entropy(output, target) * math.nan

    ruled_out = Distillation(teacher(-math.inf))
    taught(ruled_out).fit()
    for of_others in (
        taught(Distillation(nn.Linear(4, 3)), data(with_nan)),
        taught(Distillation(nn.Linear(4, 3)), loss=broken),
        taught(ruled_out, loss=broken),
    ):
        with pytest.raises(NonFiniteError, match=OF_OLD):
            of_others.fit()
