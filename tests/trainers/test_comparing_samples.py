"""Samples are read to compare them between processes: not where that moves a state, and not at each fit."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset, Subset

from supernet.data.loaders import loader_of
from supernet.training.agreement import some_samples


class Counting(Dataset):
    def __init__(self):
        self.count = 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.count += 1
        return torch.tensor(index), torch.tensor(0)


class Stateful(Counting):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def read(dataset):
    part = SimpleNamespace(loader=loader_of(dataset, batch_size=2, workers=0, seed=0))
    trainer = SimpleNamespace(train_part=part, valid_part=part, seed=0, device=torch.device("cpu"))
    return some_samples(trainer)["the digest of some samples in the training part"]


@pytest.mark.parametrize("wrapped", [lambda dataset: dataset, lambda dataset: Subset(dataset, [1, 2, 3])])
def test_samples_of_a_dataset_that_keeps_a_state_are_not_read_to_compare_them(wrapped):
    stateful, plain = Stateful(), Counting()
    assert read(wrapped(stateful)) is None
    assert stateful.count == 0
    assert read(wrapped(plain)) is not None
    assert plain.count > 0
