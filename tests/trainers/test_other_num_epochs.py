"""A search that goes on with another `num_epochs` says what of it follows the progress, which jumps there."""

import logging

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import LayerChoice
from supernet.relaxations import Relaxation, Softmax
from supernet.trainers import BilevelTrainer


class Hardening(Relaxation):
    """One-hot weights, of which the gradient alone follows the progress."""

    def plan(self, progress):
        plan = {}
        for label, logits_K in self.logits.items():
            soft_K = torch.softmax(logits_K / (1.1 - progress), -1)
            plan[label] = nn.functional.one_hot(soft_K.argmax(), len(soft_K)).to(soft_K) + soft_K - soft_K.detach()
        return plan


def fading(relaxation, plan, progress):
    return (1 - progress) * sum(p_K.square().sum() for p_K in plan.values())


def steady(relaxation, plan, progress):
    return sum(p_K.square().sum() for p_K in plan.values())


def make(run_dir, num_epochs, **options):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="op"), nn.Linear(2, 2))
    X = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    data, optimizer = TensorDataset(X, (X[:, 0] > 0).long()), SGD(model.parameters(), 0.1)
    options = {"batch_size": 4, "progress": False, "device": "cpu", "run_dir": run_dir, **options}
    return BilevelTrainer(model, nn.functional.cross_entropy, None, optimizer, num_epochs, data, **options)


@pytest.mark.parametrize(
    ("options", "num_epochs", "named"),
    [
        ({"relaxation": Hardening}, 2, "Hardening"),
        ({"relaxation": Softmax, "terms": [steady, fading]}, 2, "fading"),
        ({"relaxation": Softmax, "terms": [steady]}, 2, None),
        ({"relaxation": Hardening, "terms": [fading]}, 1, None),
    ],
)
def test_what_follows_progress_is_named_where_a_search_goes_on_with_another_number_of_epochs(
    options, num_epochs, named, tmp_path, caplog
):
    make(tmp_path, 1, **options).fit()
    again = make(tmp_path, num_epochs, **options)
    with caplog.at_level(logging.WARNING, logger="supernet"):
        again.fit(resume="auto")
    warned = [record.getMessage() for record in caplog.records if "num_epochs was" in record.getMessage()]
    assert len(warned) == (named is not None)
    assert all(f"num_epochs was 1 and is 2, so the progress that {named} of BilevelTrainer" in line for line in warned)
