"""What differs between a checkpoint and the search that would go on from it is said in the user's words."""

import re

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, RandomTrainer
from supernet.errors import TrainingError


def fit(
    run_dir, *, kind=DartsTrainer, labels=("a", "b"), names=("x", "y"), width=4, count=64, resume="auto", **options
):
    torch.manual_seed(0)
    choices = [LayerChoice({name: nn.Linear(4, 4) for name in names}, label=label) for label in labels]
    model = nn.Sequential(*choices, nn.Linear(4, width), nn.Linear(width, 2))
    X = torch.randn(count, 4)
    optimizer, data = SGD(model.parameters(), 0.1), TensorDataset(X, (X.sum(1) > 0).long())
    options = {"batch_size": 16, "run_dir": run_dir, "progress": False, "device": "cpu", **options}
    trainer = kind(model, nn.functional.cross_entropy, None, optimizer, 1, data, **options)
    trainer.fit(resume)


def told(run_dir, **change):
    with pytest.raises(TrainingError) as caught:
        fit(run_dir, **change)
    message = str(caught.value)
    assert not re.search("[0-9a-f]{64}", message)
    return message


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"labels": ("a", "c")}, "exact: the model had a choice 'b'; the model had no choice 'c'; make"),
        ({"names": ("x", "y", "z")}, "choice 'a' had 2 options, has 3; choice 'b' had 2 options, has 3; make"),
        ({"names": ("x", "z")}, "exact: options of the model's choices had other names, other choices around them, or"),
        ({"seed": 1}, "exact: seed was 0, is 1; make"),
        ({"count": 128}, "exact: other samples are in the training and the validation part; make"),
        ({"batch_size": 8}, "exact: batch_size was 16, is 8; make"),
        ({"width": 5}, "weights have other shapes: 2.weight is (4, 4) in it, (5, 4) here, 2.bias is"),
    ],
)
def test_what_differs_is_said_without_digests(tmp_path, change, finding):
    fit(tmp_path)
    assert finding in told(tmp_path, **change)


def test_where_the_record_knows_no_labels_the_choices_are_others(tmp_path):
    options = {"kind": RandomTrainer, "num_samples": 2}
    fit(tmp_path, **options)
    assert "exact: the choices of the model were others; make" in told(tmp_path, labels=("a", "c"), **options)


def test_a_misspelt_auto_is_said(tmp_path):
    assert told(tmp_path, resume="atuo") == "atuo holds no checkpoint to go on from; did you mean 'auto'?"
    assert told(tmp_path, resume=tmp_path / "other").endswith("other holds no checkpoint to go on from")
