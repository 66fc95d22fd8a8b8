"""The contract of trainers plants errors, and says nothing alarming of a correct trainer."""

import logging

import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice
from supernet.testing.trainers import _check_whole_after_errors_while_building


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        convs = {f"c{size}": nn.Conv2d(3, 4, size, padding=size // 2) for size in (1, 3, 5)}
        self.a = LayerChoice(convs, label="a")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.a(x).mean((2, 3)))


def make(**config):
    torch.manual_seed(0)
    net, X = Net(), torch.randn(32, 3, 6, 6)
    data = TensorDataset(X, (X.sum((1, 2, 3)) > 0).long())
    return DartsTrainer(
        net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), 0.05), 2, data, batch_size=8, **config
    )


def test_a_planted_error_is_not_reported_as_a_fault_of_the_model(caplog):
    with caplog.at_level(logging.INFO, "supernet"):
        _check_whole_after_errors_while_building(make)
        make()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
    assert "run the fast way" in caplog.text  # all else is said as before
    assert logging.getLogger("supernet").filters == []
