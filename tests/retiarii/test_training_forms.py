"""Training and eval form in Retiarii's own loop."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet.retiarii.nn.pytorch as rnn
from supernet.retiarii.oneshot.pytorch import DartsTrainer


class OwnLoss(DartsTrainer):
    def _logits_and_loss(self, X, y):
        logits = self.model(X)
        return logits, self.loss(logits, y)


@pytest.mark.parametrize("whole", [True, False])
def test_parts_in_eval_form_stay_so_and_all_comes_back_in_the_form_it_had(whole):
    torch.manual_seed(0)
    op = rnn.LayerChoice([nn.Linear(3, 2), nn.Linear(3, 2)], label="op")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), op)
    if whole:
        model[0].eval()
    else:
        model.eval()
    data = TensorDataset(torch.randn(16, 3) + 1, torch.arange(16) % 2)
    optimizer = SGD(model.parameters(), 0.1)
    trainer = OwnLoss(model, nn.functional.cross_entropy, None, optimizer, 1, data, batch_size=4, workers=0)
    before = [module.training for module in model.modules()]
    trainer.fit()
    assert [module.training for module in model.modules()] == before
    assert bool(model[0].running_mean.any()) is not whole
    assert model[1].running_mean.any()
