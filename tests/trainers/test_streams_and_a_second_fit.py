"""`fit()` again on one trainer whose stream keeps what nobody can bring back: no other result in silence."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from supernet import DartsTrainer, LayerChoice
from supernet.errors import TrainingError
from supernet.trainers import Callback


class Counting(IterableDataset):
    """Gives other samples in each epoch, by a count of its own."""

    def __init__(self):
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        generator = torch.Generator().manual_seed(self.epochs)
        for _ in range(12):
            x = torch.randn(4, generator=generator)
            yield x, (x.sum() > 0).long()


class Repeating(Counting):
    """Gives the same in each epoch."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            x = torch.randn(4, generator=generator)
            yield x, (x.sum() > 0).long()


class Interrupting(Callback):
    def __init__(self, at):
        self.at = at

    def step_ended(self, trainer):
        if trainer.global_step == self.at:
            self.at = None
            os.kill(os.getpid(), signal.SIGINT)


def new_trainer(stream, at=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(4, 4), nn.Tanh()], label="a"), nn.Linear(4, 2))
    return DartsTrainer(
        model,
        nn.CrossEntropyLoss(),
        None,
        torch.optim.SGD(model.parameters(), 0.1),
        3,
        DataLoader(stream(), batch_size=3),
        valid_dataset=DataLoader(stream(), batch_size=3),
        callbacks=[Interrupting(at)],
        progress=False,
        device="cpu",
        **options,
    )


def state(trainer):
    return torch.cat([p.detach().flatten() for p in (*trainer.model.parameters(), *trainer.alphas.values())])


@pytest.mark.parametrize("at", [1, 6, 8])
def test_one_that_nothing_brings_back_is_refused_by_the_trainer_that_has_read_it_and_not_by_a_new_one(tmp_path, at):
    whole = new_trainer(Counting)
    whole.fit()
    left = new_trainer(Counting, at, run_dir=tmp_path / "run")
    with pytest.raises(SystemExit):
        left.fit()
    for again in ({}, {"resume": "auto"}):
        with pytest.raises(
            TrainingError, match="Counting keeps something from round to round, and this trainer has read"
        ):
            left.fit(**again)
    new = new_trainer(Counting, run_dir=tmp_path / "run")
    new.fit(resume="auto")
    assert torch.equal(state(new), state(whole))


@pytest.mark.parametrize("at", [1, 6, 8])
def test_one_that_keeps_nothing_goes_on_exactly(at):
    whole, left = new_trainer(Repeating), new_trainer(Repeating, at)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        left.fit()
    left.fit()
    assert torch.equal(state(left), state(whole))
