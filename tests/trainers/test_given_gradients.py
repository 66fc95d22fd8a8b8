"""Steps by gradients that are there already, as of second order or of a controller, are steps like all others."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, EnasTrainer, LayerChoice
from supernet.errors import NonFiniteError, TrainingError
from supernet.relaxations import Softmax
from supernet.trainers import BilevelTrainer

LOSS = nn.functional.cross_entropy


def make(kind, *reward, **options):
    torch.manual_seed(0)
    choice = LayerChoice({"linear": nn.Linear(3, 3), "tanh": nn.Sequential(nn.Linear(3, 3), nn.Tanh())}, label="op")
    model = nn.Sequential(choice, nn.Linear(3, 2))
    X = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(X, (X[:, 0] > 0).long())
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"num_epochs": 1, "batch_size": 4, "progress": False, "device": "cpu", **options}
    return kind(model, LOSS, None, *reward, optimizer, options.pop("num_epochs"), data, **options)


class Term:
    """A further loss that is 0, but NaN in some calls, the first of which is a trial."""

    def __init__(self, *bad):
        self.bad, self.calls = bad, -1

    def __call__(self, relaxation, plan, progress):
        self.calls += 1
        total = sum(p_K.square().sum() for p_K in relaxation.logits.values())
        return total * (math.nan if self.calls in self.bad else 0.0)


def with_term(*bad, **options):
    return make(BilevelTrainer, relaxation=Softmax, terms=[Term(*bad)], **options)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_step_whose_further_loss_is_nan_is_skipped_in_first_order_and_in_second(unrolled):
    trainer = with_term(1, 2, unrolled=unrolled, on_nonfinite="skip")
    trainer.fit()
    assert trainer.skipped_steps == trainer.history[0]["skipped_steps"] == 2
    assert all(torch.isfinite(alpha).all() for alpha in trainer.alphas.values())
    assert math.isfinite(trainer.history[0]["architecture_gradient_norm"])


def test_in_second_order_a_nan_stops_where_it_is_to_stop():
    trainer = with_term(1, unrolled=True)
    with pytest.raises(NonFiniteError, match=r"the term Term is not finite .* in epoch 1, step 1"):
        trainer.fit()


def test_the_norms_of_second_order_are_those_of_its_gradients():
    trainer, norms = make(DartsTrainer, unrolled=True), []
    alphas = list(trainer.alphas.values())
    trainer.architecture_optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.cat([a.grad for a in alphas]).norm()))
    )
    trainer.fit()
    assert len(norms) == 4
    assert trainer.history[0]["architecture_gradient_norm"] == pytest.approx(sum(norms) / 4, rel=1e-5)


class BrokenPolicy(EnasTrainer):
    def controller_loss(self, architecture, advantage):
        loss = super().controller_loss(architecture, advantage)
        self.calls = getattr(self, "calls", 0) + 1
        return loss * math.nan if self.calls == 2 else loss


def test_a_step_of_the_controller_whose_gradient_is_nan_is_skipped():
    trainer = make(BrokenPolicy, lambda output, y: -LOSS(output, y), ctrl_steps_aggregate=1, on_nonfinite="skip")
    trainer.fit()
    assert trainer.skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in trainer.controller.parameters())


@pytest.mark.parametrize(("clip", "moved"), [(None, 5.0), (2.5, 2.5), (10.0, 5.0)])
def test_given_gradients_are_clipped_and_their_norm_before_is_recorded(clip, moved):
    trainer, p = make(DartsTrainer), nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    trainer.apply_gradients(SGD([p], 1.0), clip=clip)
    torch.testing.assert_close(p.detach(), torch.tensor([-3.0, -4.0]) * moved / 5, atol=1e-5, rtol=1e-5)
    assert trainer.means.read()["architecture_gradient_norm"] == pytest.approx(5.0)


def test_gradients_that_a_scaler_would_take_for_its_own_are_refused():
    trainer = make(DartsTrainer)
    trainer._steps._has_scaler = True
    with pytest.raises(TrainingError, match=r"precision='16-mixed' scales the gradients .* use optimizer_step"):
        trainer.apply_gradients(trainer.architecture_optimizer)
