"""A distillation whose loss does not depend on the model's output is refused by its first step."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, Distillation, LayerChoice, SinglePathTrainer, train
from supernet.errors import TrainingError
from supernet.trainers import Taught
from supernet.training import distillation
from supernet.training.distillation import DistilledLoss


def net():
    torch.manual_seed(0)
    return nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "tanh": nn.Tanh()}, label="op"), nn.Linear(4, 3))


def data():
    X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(X, torch.arange(16) % 3)


def taught(loss, weight=0.5, model=None, trainer_class=SinglePathTrainer, task_loss=cross_entropy, **options):
    model = net() if model is None else model
    its_own = {"num_evaluations": 2, "population": 2} if trainer_class is SinglePathTrainer else {}
    learned = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    return trainer_class(
        model, task_loss, None, SGD(learned, 0.1), 1, data(), batch_size=4, device="cpu", progress=False,
        distillation=Distillation(nn.Linear(4, 3), weight=weight, loss=loss), **its_own, **options,
    )  # fmt: skip


class Learned(nn.Module):
    """A loss with a parameter of its own, which alone has a gradient."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, of_teacher):
        return self.scale * mse_loss(output.detach(), of_teacher)


def detached(output, of_teacher):
    return mse_loss(output.detach(), of_teacher)


@pytest.mark.parametrize("loss", [detached, Learned(), lambda output, of_teacher: torch.tensor(output.sum().item())])
@pytest.mark.parametrize("trainer_class", [SinglePathTrainer, DartsTrainer])
def test_a_loss_that_gives_the_model_no_gradient_is_refused_before_a_weight_moves(loss, trainer_class):
    model = net()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"the loss of the distillation, .* gives no gradient to the model"):
        taught(loss, model=model, trainer_class=trainer_class).fit()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_the_loss_is_named_also_where_it_is_all_that_is_descended_and_where_a_network_is_trained():
    with pytest.raises(TrainingError, match=r"distillation, .*detached"):
        taught(detached, weight=1.0).fit()
    with pytest.raises(TrainingError, match=r"distillation, .*detached"):
        model = nn.Linear(4, 3)
        optimizer = SGD(model.parameters(), 0.1)
        train(
            model,
            cross_entropy,
            None,
            optimizer,
            1,
            data(),
            distillation=Distillation(nn.Linear(4, 3), loss=detached),
            progress=False,
        )


def test_an_output_that_a_loss_fn_has_detached_is_refused():
    def loss_fn(model, batch):
        X, y = batch
        output = model(X)
        return cross_entropy(output, y), output.detach(), y

    with pytest.raises(TrainingError, match="mse_loss, gives no gradient to the model"):
        taught(mse_loss, task_loss=None, loss_fn=loss_fn).fit()


def test_a_batch_of_a_path_without_parameters_says_nothing_and_the_next_one_does():
    loss = DistilledLoss(cross_entropy, Distillation(nn.Linear(4, 3), loss=detached))
    target = Taught(torch.tensor([0, 1]), torch.zeros(2, 3))
    assert not loss(torch.zeros(2, 3), target).requires_grad
    with pytest.raises(TrainingError, match="gives no gradient"):
        loss(torch.zeros(2, 3, requires_grad=True), target)


def test_a_loss_of_a_part_of_the_output_teaches():
    taught(lambda output, of_teacher: mse_loss(output[:, 0], of_teacher[:, 0])).fit()


def test_a_loss_of_features_inside_the_model_teaches():
    model, seen = nn.Sequential(nn.Linear(4, 4), *net()), []
    model[2].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    taught(lambda output, of_teacher: seen[-1].square().mean(), model=model).fit()


def test_it_is_looked_at_until_it_is_known_and_not_in_each_step(monkeypatch):
    looked, look = [], distillation._leaves_behind
    monkeypatch.setattr(distillation, "_leaves_behind", lambda tensor: looked.append(1) or look(tensor))
    taught(mse_loss).fit()
    assert len(looked) == 1
