"""Checkpoints of version 2 from when trainers held their alphas and generators themselves are gone on from exactly.

Each is of `search(kind, num_epochs=2, precision="64-true")` in mid-epoch: in the second for Proxyless, whose first is a
warm-up, and with rewards waiting for ENAS. Beside it stands what the search that was not interrupted ended with. The
numbers are of float64, but for alphas, so that another machine's order of sums does not matter.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from searches import search

CHECKPOINTS = Path(__file__).parent / "checkpoints" / "version-2"
OPTIONS = {"enas": {"ctrl_kwargs": {"lstm_size": 4}}}
MEASURED = {
    *(f"{part}_{name}" for part in ("train", "valid") for name in ("loss", "accuracy")),
    *("architecture_gradient_norm", "weight_gradient_norm", "reward", "probabilities", "entropy"),
}


def tensors_of(trainer):
    tensors = {f"weights.{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"alphas.{label}": alpha.detach() for label, alpha in getattr(trainer, "alphas", {}).items()}
    controller = getattr(trainer, "controller", None)
    named = () if controller is None else controller.named_parameters()
    return tensors | {f"controller.{name}": parameter.detach() for name, parameter in named}


@pytest.mark.parametrize("kind", ["first order", "second order", "proxyless", "reinforce", "enas"])
def test_a_search_that_goes_on_from_version_2_ends_as_the_uninterrupted_one_did(kind, tmp_path):
    name = kind.replace(" ", "_")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(CHECKPOINTS / f"{name}.safetensors", tmp_path / "checkpoints" / "step-000000000009.safetensors")
    trainer = search(kind, num_epochs=2, precision="64-true", **OPTIONS.get(kind, {}))
    trainer.fit(resume=tmp_path)
    with safe_open(CHECKPOINTS / f"{name}-end.safetensors", "pt") as end:
        expected, notes = {key: end.get_tensor(key) for key in [*end.keys()]}, end.metadata()
    torch.testing.assert_close(tensors_of(trainer), expected, rtol=1e-6, atol=1e-7)
    assert trainer.export() == json.loads(notes["architecture"])
    for record, was in zip(trainer.history, json.loads(notes["history"]), strict=True):
        measured = {name: record[name] for name in MEASURED & was.keys()}
        torch.testing.assert_close(measured, {name: was[name] for name in measured}, rtol=1e-6, atol=1e-7)
        assert {name: record[name] for name in was.keys() - MEASURED} == {n: was[n] for n in was.keys() - MEASURED}
