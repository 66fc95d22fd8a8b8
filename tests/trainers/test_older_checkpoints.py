"""Checkpoints that earlier versions of the library have written are gone on from."""

import shutil
from pathlib import Path

import pytest
import torch
from searches import search

CHECKPOINTS = Path(__file__).with_name("checkpoints")


@pytest.mark.parametrize("kind", ["first order", "single path"])
def test_a_search_goes_on_from_a_checkpoint_of_version_1_as_one_that_never_stopped(tmp_path, kind):
    """The file was written after the first epoch of that search; whole are its three epochs, as they run now."""
    file = CHECKPOINTS / f"{kind.replace(' ', '_')}-version-1.safetensors"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(file, tmp_path / "checkpoints" / "step-000000000006.safetensors")
    resumed, whole = search(kind, tmp_path), search(kind)
    resumed.fit(resume="auto")
    whole.fit()
    assert [record["epoch"] for record in resumed.history] == [1, 2, 3]
    assert resumed.export() == whole.export()
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # written on a machine that may be another one
