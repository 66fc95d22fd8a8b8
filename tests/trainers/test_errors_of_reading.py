"""What cannot be read for a moment is neither broken nor gone: an error says so, and all files stay."""

import errno
import json
import math
import os
import types
from pathlib import Path

import pytest
import torch
from searches import result, search

from supernet.errors import FileFormatError, TrainingError
from supernet.files import checkpoint, safetensors_file
from supernet.files.encoding import decoded, encoded
from supernet.space.files import read_json, write_json
from supernet.trainers import Checkpointing
from supernet.training.run_directory import RunDirectory

ALONE = types.SimpleNamespace(rank=0, first=lambda what, value: value)


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path):
    """A directory with checkpoints of steps 1 to 3."""
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.write_checkpoint({"step": step, "w": torch.ones(99)}, step, 3, None)
    return RunDirectory(tmp_path)


def failing_once(monkeypatch, owner, name, error, concerns=lambda argument: True):
    inner, left = getattr(owner, name), [error]

    def failing(*arguments, **options):
        if left and concerns(arguments[0]):
            raise left.pop()
        return inner(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


ERRORS = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), PermissionError(errno.EACCES, "no")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: errno.errorcode[error.errno])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_gone_on_from_later(tmp_path, monkeypatch, error):
    monkeypatch.setattr("supernet.trainers.SupernetTrainer._write_plots", lambda self, run: None)
    whole = search("first order", num_epochs=3)
    whole.fit()
    search("first order", tmp_path, num_epochs=2).fit()
    before = names(tmp_path)
    failing_once(monkeypatch, Path, "open", error, lambda path: path.name == before[-1])
    again = search("first order", tmp_path, num_epochs=3)
    with pytest.raises(TrainingError, match=rf"{before[-1]} cannot be read now: .* try again once it can be"):
        again.fit(resume="auto")
    assert names(tmp_path) == before
    again.fit(resume="auto")
    assert again.history[:2] == search_history(tmp_path)[:2]
    assert result(again) == result(whole)


def search_history(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "digest"} for line in lines]


def test_a_directory_that_cannot_be_read_for_a_moment_is_not_an_empty_one(run, tmp_path, monkeypatch):
    failing_once(monkeypatch, os, "scandir", PermissionError(errno.EACCES, "no"))
    with pytest.raises(TrainingError, match=r"checkpoints cannot be read now"):
        run.newest_checkpoint()
    assert run.newest_checkpoint().name == names(tmp_path)[-1]


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("CUDA out of memory")], ids=str)
@pytest.mark.parametrize("module", [checkpoint, safetensors_file])
def test_without_memory_for_a_checkpoint_no_older_one_is_taken(run, tmp_path, monkeypatch, module, error):
    failing_once(monkeypatch, module, {checkpoint: "decoded", safetensors_file: "_memory"}[module], error)
    with pytest.raises(type(error)):
        run.newest_whole_checkpoint(ALONE)
    assert run.newest_whole_checkpoint(ALONE)[1]["step"] == 3


def test_memory_that_torch_does_not_get_on_the_cpu_is_a_memory_error():
    with pytest.raises(MemoryError, match="no memory of"):
        safetensors_file._memory(2**62)


def test_a_table_is_not_wrong_where_its_device_has_no_memory(monkeypatch):
    failing_once(monkeypatch, torch.Tensor, "to", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        decoded(encoded({"w": torch.ones(3)}, "state"))


def test_another_process_says_which_file_it_cannot_read(run, monkeypatch):
    other = types.SimpleNamespace(rank=1, first=lambda what, value: "step-000000000002.safetensors")
    failing_once(monkeypatch, Path, "open", ERRORS[0])
    with pytest.raises(TrainingError, match=r"step-000000000002\.safetensors cannot be read now"):
        run.newest_whole_checkpoint(other)


def test_only_what_was_found_broken_is_removed_of_later_steps(run, tmp_path):
    (tmp_path / "checkpoints" / "step-000000000003.safetensors").write_bytes(b"")
    run.write_checkpoint({"step": 2}, 2, 3, None)
    assert len(names(tmp_path)) == 3
    assert run.newest_whole_checkpoint(ALONE)[1]["step"] == 2
    run.write_checkpoint({"step": 2}, 2, 3, None)
    assert names(tmp_path) == ["step-000000000001.safetensors", "step-000000000002.safetensors"]


# --- what else a directory holds ---------------------------------------------------------------------------


def test_a_directory_is_free_again_where_what_a_dead_process_left_cannot_be_removed(tmp_path, monkeypatch):
    (tmp_path / ".run.json.7.tmp").touch()
    failing_once(monkeypatch, Path, "unlink", PermissionError(errno.EACCES, "no"))
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    left = r"\.run\.json\.7\.tmp, which a process has left, cannot be removed"
    with pytest.raises(TrainingError, match=left), first.locked():
        pass
    with second.locked():
        assert not (tmp_path / ".run.json.7.tmp").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"directory": f"/scratch/{'0af' * 9}/me", "seconds": 1.0},
        {"directory": "/home/me", "seconds": 1.0, "result": {}, "stopped": f"by the rule of {'0af' * 9}"},
        {"seconds": 1.0, "error": f"ValueError: {'0af' * 9}"},
    ],
    ids=["directory", "stopped", "error"],
)
def test_a_text_that_looks_like_a_digest_is_none_in_a_file_from_before_there_were_digests(tmp_path, content):
    content = {"format": "it", "version": 1, **content}
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "run.json", "it", 1, "is none") == content


def test_a_digest_whose_name_is_damaged_is_noticed(tmp_path):
    write_json(tmp_path / "run.json", "it", 1, {"directory": "/home/me"})
    text = (tmp_path / "run.json").read_text()
    for name in ("", "dig", "digesu", "Digest", "di", "gest", "digestdigest"):
        (tmp_path / "run.json").write_text(text.replace("digest", name))
        with pytest.raises(FileFormatError, match=f"a digest by the name '{name}'"):
            read_json(tmp_path / "run.json", "it", 1, "is none")


@pytest.mark.parametrize(
    "given",
    [
        {"keep_last": None},
        {"keep_last": 0},
        {"keep_last": 1.5},
        {"every_epochs": math.nan},
        {"every_epochs": 2.5},
        {"every_epochs": 0},
        {"every_steps": 2.0},
        {"every_steps": True},
        {"every_minutes": math.nan},
        {"every_minutes": -1},
        {"every_minutes": "1"},
    ],
    ids=str,
)
def test_when_to_write_checkpoints_is_a_number_of_its_kind_or_refused(given):
    (name,) = given
    with pytest.raises(TrainingError, match=rf"{name} is a .*number from \d on, not"):
        Checkpointing(**given)
