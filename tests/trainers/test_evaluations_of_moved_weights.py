"""A trainer's evaluations are of the weights as they are, whoever has moved them."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import LayerChoice, RandomTrainer


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x):
        return x * self.factor + self.shift


def make(**options):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice({"good": Scaled(1.0), "bad": Scaled(3.0)}, label="op"))
    x = torch.randn(16, 1)
    options = {"batch_size": 8, "num_samples": 20, "progress": False, "device": "cpu", **options}
    return RandomTrainer(model, nn.MSELoss(), None, SGD(model.parameters(), 1e-6), 1, TensorDataset(x, x), **options)


GOOD, BAD = {"op": "good"}, {"op": "bad"}


@pytest.mark.parametrize("name", ["factor", "shift"])
def test_what_was_evaluated_is_evaluated_again_once_a_user_has_moved_weights_or_buffers(name):
    trainer = make()
    before = trainer.evaluated([GOOD, BAD])
    moved = next(t for n, t in trainer.model.state_dict().items() if n.endswith(f"good.{name}"))
    moved.add_(2.0)
    after = trainer.evaluated([GOOD, BAD])
    assert after == [trainer.evaluate(GOOD), trainer.evaluate(BAD)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_what_was_exported_is_searched_again_once_a_user_has_moved_weights():
    trainer = make()
    trainer.fit()
    assert trainer.export() == GOOD
    state = trainer.model.state_dict()
    factors = {n: t for n, t in state.items() if n.endswith(".factor")}
    with torch.no_grad():
        for name, factor in factors.items():
            factor.fill_(3.0 if "good" in name else 1.0)
    assert trainer.export() == BAD


def test_nothing_is_evaluated_twice_while_weights_stay(monkeypatch):
    trainer, calls = make(), []
    inner = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda path, **options: calls.append(path) or inner(path, **options))
    first = trainer.evaluated([GOOD, BAD])
    assert trainer.evaluated([BAD, GOOD]) == first[::-1]
    assert calls == [GOOD, BAD]


def test_a_checkpoint_s_evaluations_are_not_forgotten_where_a_search_goes_on(tmp_path, monkeypatch):
    make(run_dir=tmp_path).fit()
    again, calls = make(run_dir=tmp_path), []
    monkeypatch.setattr(again, "evaluate", lambda path, **options: calls.append(path))
    again.fit(resume="auto")
    assert again.export() == GOOD
    assert again.evaluations
    assert calls == []
