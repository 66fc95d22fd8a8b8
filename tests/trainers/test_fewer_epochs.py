"""A run that has gone further than it is asked for is not returned as if it had been asked for."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import train
from supernet.errors import TrainingError

DATA = TensorDataset(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)


def trained(run_dir, epochs):
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    optimizer = SGD(network.parameters(), 0.1)
    records = train(
        *(network, nn.functional.cross_entropy, None, optimizer, epochs, DATA),
        batch_size=4,
        run_dir=run_dir,
        resume="auto",
    )
    return records, network.weight.detach().clone()


def test_fewer_epochs_than_a_run_has_done_are_refused_by_name_and_more_go_on(tmp_path):
    records, weight = trained(tmp_path, 3)
    with pytest.raises(TrainingError, match=r"is in epoch 3 already, and num_epochs is 1: .*give num_epochs=3 or more"):
        trained(tmp_path, 1)
    again, same = trained(tmp_path, 3)
    assert (again, same.tolist()) == (records, weight.tolist())
    assert len(trained(tmp_path, 4)[0]) == 4
