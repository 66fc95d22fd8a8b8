"""A run's directory: broken checkpoints, files of others, strays, modes, and what is on the disk when."""

import enum
import errno
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from searches import result, search

from supernet.errors import FileFormatError, TrainingError
from supernet.files import safetensors_file
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.files.encoding import UnknownClassError
from supernet.space import files
from supernet.training.health import peak_memory
from supernet.training.run_directory import RunDirectory


class Level(enum.Enum):
    LOW = 1


ALONE = types.SimpleNamespace(rank=0, first=lambda what, value: value)


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def flip_a_bit(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path):
    """A directory with checkpoints of steps 1 to 3."""
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.write_checkpoint({"step": step, "w": torch.ones(99)}, step, 3, None)
    return run


# --- broken checkpoints ------------------------------------------------------------------------------------


def test_a_search_whose_newest_checkpoint_is_broken_goes_on_from_the_older_one_and_ends_the_same(
    tmp_path, caplog, monkeypatch
):
    for plot in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])
    trainer = search("first order", tmp_path, num_epochs=2)
    trainer.fit()
    older, newest = sorted((tmp_path / "checkpoints").iterdir())
    flip_a_bit(newest)
    again = search("first order", tmp_path, num_epochs=2)
    with caplog.at_level(logging.WARNING, "supernet"):
        again.fit(resume="auto")
    (warning,) = [record.message for record in caplog.records if "goes on from" in record.message]
    assert warning.startswith(f"goes on from {older}, since no newer checkpoint is whole: {newest} ")
    assert "the file has been changed, or was damaged" in warning
    assert result(again) == result(trainer)
    assert read_checkpoint(newest)["epoch"] == 2


@pytest.mark.parametrize("broken", [(3,), (3, 2)])
def test_the_newest_whole_checkpoint_is_taken(run, broken, tmp_path, caplog):
    for step in broken:
        flip_a_bit(tmp_path / "checkpoints" / f"step-{step:012d}.safetensors")
    path, state = run.newest_whole_checkpoint(ALONE)
    assert state["step"] == 3 - len(broken)
    assert path.name == f"step-{state['step']:012d}.safetensors"
    assert all(f"step-{step:012d}" in caplog.text for step in broken)


def test_where_no_checkpoint_is_whole_an_error_names_the_newest(run, tmp_path):
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        FileFormatError, match=r"no checkpoint is whole to go on from: .*step-000000000003\.safet.* nor"
    ):
        run.newest_whole_checkpoint(ALONE)


def test_a_broken_checkpoint_of_a_later_step_is_not_counted_among_the_last_ones(run, tmp_path):
    flip_a_bit(tmp_path / "checkpoints" / "step-000000000003.safetensors")
    run.newest_whole_checkpoint(ALONE)
    run.write_checkpoint({"step": 2}, 2, 1, None)
    assert names(tmp_path) == ["step-000000000002.safetensors"]


def test_a_whole_checkpoint_with_a_class_that_may_not_be_made_is_no_reason_for_an_older_one(run):
    run.write_checkpoint({"it": Level.LOW}, 4, 9, None)
    with pytest.raises(UnknownClassError, match=r"step-000000000004\.safetensors: it holds something of the class"):
        run.newest_whole_checkpoint(ALONE)
    assert run.newest_whole_checkpoint(ALONE, [Level])[1]["it"] is Level.LOW


def test_other_processes_read_what_the_first_one_has_chosen(run, tmp_path):
    other = types.SimpleNamespace(rank=1, first=lambda what, value: "step-000000000002.safetensors")
    assert run.newest_whole_checkpoint(other)[1]["step"] == 2
    none = types.SimpleNamespace(rank=1, first=lambda what, value: None)
    assert run.newest_whole_checkpoint(none) is None
    (tmp_path / "checkpoints" / "step-000000000002.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"process 1 does not see .*step-000000000002"):
        run.newest_whole_checkpoint(other)


# --- files of others, and strays ---------------------------------------------------------------------------


def test_files_in_checkpoints_that_are_not_ours_are_neither_read_nor_counted_nor_deleted(tmp_path):
    others = ["best.safetensors", "zzz.safetensors", "step-9.safetensors", "step-000000000099.safetensors.bak", "notes"]
    (tmp_path / "checkpoints" / "step-000000000098.safetensors").mkdir(parents=True)  # of a version to come, perhaps
    for name in others:
        (tmp_path / "checkpoints" / name).write_text("mine")
    run = RunDirectory(tmp_path)
    run.check_empty()
    assert run.newest_whole_checkpoint(ALONE) is None
    for step in (1, 2, 3):
        run.write_checkpoint({"step": step}, step, 1, None)
    assert names(tmp_path) == sorted([*others, "step-000000000003.safetensors", "step-000000000098.safetensors"])
    assert all((tmp_path / "checkpoints" / name).read_text() == "mine" for name in others)
    assert run.newest_whole_checkpoint(ALONE)[1]["step"] == 3


def test_whoever_takes_the_lock_removes_what_dead_processes_have_left_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    strays = [
        *("checkpoints/.step-000000000003.safetensors.123.tmp", "checkpoints/.step-000000000003.safetensors.tmp"),
        *(".run.json.7.tmp", ".metrics.jsonl.7.tmp", ".architecture.json.7.tmp", ".network.safetensors.7.tmp"),
        *(".network.safetensors.tmp", ".processes-0123456789abcdef"),
    ]
    others = [".mine.tmp", "checkpoints/.notes.1.tmp", ".run.json.bak", "run.json.7.tmp"]
    for name in strays + others:
        (tmp_path / name).touch()
    with RunDirectory(tmp_path).locked():
        assert not any((tmp_path / name).exists() for name in strays)
        assert all((tmp_path / name).exists() for name in others)
        (tmp_path / strays[0]).touch()  # of the one that runs here now
        with pytest.raises(TrainingError, match="in use by another live process"), RunDirectory(tmp_path).locked():
            pass
        assert (tmp_path / strays[0]).exists()


def test_a_worker_that_outlives_its_run_does_not_keep_the_directory(tmp_path):
    script = f"""
import os, sys, time
from supernet.training.run_directory import RunDirectory
with RunDirectory({str(tmp_path)!r}).locked():
    if os.fork() == 0:
        print("forked", flush=True)
        time.sleep(30)
        os._exit(0)
    time.sleep(0.5)
    os._exit(1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "forked\n"
        process.wait(timeout=30)
        with RunDirectory(tmp_path).locked():
            pass
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()


# --- modes and the disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_all_files_of_a_run_have_the_mode_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        search("first order", tmp_path / "run", num_epochs=1).fit()
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("run/**/*")}
    assert {name for name in modes if Path(name).suffix} >= {
        "run/run.json",
        "run/network.safetensors",
        "run/metrics.jsonl",
    }
    assert modes.pop("run/checkpoints") == 0o777 & ~umask
    assert set(modes.values()) == {0o666 & ~umask}


def test_a_file_takes_its_name_after_its_bytes_are_on_the_disk_and_before_the_directory_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        order.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def replaced(self, target):
        order.append("name")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    for write in (lambda path: files.write_atomically(path, "x"), lambda path: write_checkpoint(path, {})):
        order.clear()
        write(tmp_path / "it")
        assert order == ["file", "name", "directory"]


def test_a_directory_is_not_brought_to_the_disk_where_the_system_cannot(tmp_path, monkeypatch):
    fsync = os.fsync

    def refusing(number):
        def refuse(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        return refuse

    monkeypatch.setattr("os.fsync", refusing(errno.EINVAL))  # as some file systems say
    files.write_atomically(tmp_path / "it", "x")
    monkeypatch.setattr("os.fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "it", "y")
    opened = []
    monkeypatch.setattr("supernet.space.files._IS_WINDOWS", True)
    monkeypatch.setattr("os.open", lambda path, *_: opened.append(path))
    files.write_atomically(tmp_path / "it", "z")
    assert opened == []
    assert (tmp_path / "it").read_text() == "z"


def test_a_checkpoint_whose_header_would_be_too_large_is_refused_before_anything_is_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_LARGEST_HEADER", 5000)
    with pytest.raises(TrainingError, match=r"would have 101 tensors, whose header of .* is more than the 5,000"):
        run.write_checkpoint({"many": list(torch.ones(100))}, 4, 1, None)
    assert names(tmp_path) == [f"step-{step:012d}.safetensors" for step in (1, 2, 3)]
    run.write_checkpoint({"many": list(range(100_000))}, 4, 1, None)  # what is no tensor does not count
    assert len(read_checkpoint(tmp_path / "checkpoints" / "step-000000000004.safetensors")["many"]) == 100_000


def test_memory_is_in_mebibytes_on_every_system(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=3 * 2**20))
    for platform, expected in (("linux", 3 * 2**10), ("darwin", 3)):
        monkeypatch.setattr("sys.platform", platform)
        assert peak_memory(torch.device("cpu")) == expected
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory(torch.device("cpu")) != peak_memory(torch.device("cpu"))
