"""Checkpoints from when attributes were scanned, written in mid-epoch, bring all back that trainers name now."""

import shutil
from pathlib import Path

import pytest
import torch
from searches import search

from supernet.files.checkpoint import read_checkpoint

CHECKPOINTS = Path(__file__).parent / "checkpoints"


class Resumed(Exception):
    pass


@pytest.mark.parametrize("kind", ["enas", "proxyless"])
def test_what_is_named_now_comes_back_from_attributes_of_version_1(kind, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-000000000004.safetensors"
    shutil.copy(CHECKPOINTS / f"{kind}.safetensors", path)
    saved = read_checkpoint(path)["of_the_algorithm"]
    trainer = search(kind, num_epochs=2)

    def train_epoch():
        raise Resumed

    trainer.train_epoch = train_epoch
    with pytest.raises(Resumed):
        trainer.fit(resume=tmp_path)
    named = trainer.stateful()
    assert named.keys() - {"relaxation"} <= saved.keys()
    assert trainer.step > 0
    for name, value in named.items():
        if isinstance(value, torch.Generator):
            assert torch.equal(value.get_state(), saved[name])
        elif name == "relaxation":
            assert all(torch.equal(alpha, saved["alphas"][label]) for label, alpha in value.logits.items())
            assert torch.equal(value.generator.get_state(), saved["generator"])
            assert value.drawn == saved["_drawn"]
        elif hasattr(value, "state_dict"):
            state = {key: inner for key, inner in value.state_dict().items() if key != "_extra_state"}
            torch.testing.assert_close(state, dict(saved[name]), rtol=0, atol=0)
        else:
            assert value == saved[name], name
