"""`supernet rerun` has read what it compares with before it runs a command, which may remove that."""

import json
import sys
from pathlib import Path

import pytest

from supernet.cli import main
from supernet.training.command import digests, parsed

# It stands for a search: at the end its run directory is where a rerun has it made, as a copy of the first.
SCRIPT = """
import os, pathlib, shutil
shutil.rmtree("runs/x")
made = pathlib.Path(os.environ["SUPERNET_RERUN"], *pathlib.Path("runs/x").resolve().parts[1:])
shutil.copytree("copy", made)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    described = {"format": "supernet/run", "version": 1, "status": "finished", "command": command, "processes": 1}
    described |= {"directory": str(tmp_path), "script": digests(parsed(command), tmp_path), "result": {"weights": "a"}}
    for directory in (tmp_path / "runs" / "x", tmp_path / "copy"):
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(json.dumps(described))
        (directory / "metrics.jsonl").touch()
    return tmp_path / "runs" / "x"


def test_a_script_that_removes_its_run_directory_first_is_compared_all_the_same(run, capfd):
    assert main(["rerun", str(run)]) == 0
    printed = capfd.readouterr().out
    assert not run.exists()
    assert f"note: the command has removed {run}; its result was read before" in printed
    assert f"the same as {run}: architecture, metrics and weights, bit for bit" in printed


def test_what_is_removed_and_made_anew_is_compared_as_it_was(run, capfd):
    made = json.loads((run / "run.json").read_text())
    Path(run.parents[1], "copy", "run.json").write_text(json.dumps({**made, "result": {"weights": "b"}}))
    assert main(["rerun", str(run)]) == 1
    assert "weights differ" in capfd.readouterr().out


def test_nothing_is_run_where_there_is_nothing_to_compare_with(run, capfd):
    (run / "metrics.jsonl").unlink()
    assert main(["rerun", str(run)]) == 1
    assert "metrics.jsonl cannot be read" in capfd.readouterr().err
    assert run.exists()
