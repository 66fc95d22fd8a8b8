"""Several processes over real sockets (gloo) do what one process does."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from searches import KINDS

import programs

SCRIPT = Path(__file__).with_name("searches.py")
PLAIN = {"norm": False, "noise": False, "scheduler": None, "num_epochs": 2}


def run(processes, kind, run_dir, *arguments, options=None, check=True):
    run_dir.mkdir(parents=True, exist_ok=True)
    words = SCRIPT, kind, run_dir, *arguments, "--options", json.dumps(options or {})
    return programs.run(*words, processes=processes, check=check)


def results(run_dir, processes):
    return [load_file(run_dir / f"result-{rank}.safetensors") for rank in range(processes)]


# That loaders are shared so is tested of every trainer in one run; here the data are a dataset.
FAST = ("first order", "second order", "enas")
EACH = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", EACH)
def test_two_processes_with_half_the_batch_give_what_one_gives(tmp_path, kind):
    run(1, kind, tmp_path / "one", options={**PLAIN, "batch_size": 8})
    run(2, kind, tmp_path / "two", options={**PLAIN, "batch_size": 4})
    (one,) = results(tmp_path / "one", 1)
    first, second = results(tmp_path / "two", 2)
    assert one.keys() == first.keys()
    assert sum(name.startswith("alphas.") for name in one) == (
        3 if hasattr(KINDS[kind][0], "train_architecture") else 0
    )
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name  # ranks never diverge
        # Second order divides a difference of float32 sums, which come in another order, by 2 eps.
        tolerance = 2e-3 if kind == "second order" else 1e-5
        torch.testing.assert_close(first[name], value, rtol=tolerance, atol=tolerance)
    whole, shared = (json.loads((tmp_path / d / "result-0.json").read_text()) for d in ("one", "two"))
    assert whole["architecture"] == shared["architecture"]
    for a, b in zip(whole["history"], shared["history"], strict=True):
        for name in a:
            if name.startswith(("train_", "valid_")):  # means over all processes
                assert b[name] == pytest.approx(a[name], rel=1e-3)


def test_accumulated_gradients_over_processes_are_those_of_the_larger_batch(tmp_path):
    """A candidate drawn for each batch would differ, so the space has one path only: see `one_path` in searches.py."""
    options = {**PLAIN, "one_path": True}
    run(1, "path", tmp_path / "one", options={**options, "batch_size": 8})
    run(2, "path", tmp_path / "two", options={**options, "batch_size": 2, "accumulate": 2})
    (one,), (two, _) = results(tmp_path / "one", 1), results(tmp_path / "two", 2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_raises_brings_the_others_down_with_its_error(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(SCRIPT), "first order", str(tmp_path), "--raise-on-rank", "1"]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode != 0
    assert "ValueError: broken on purpose" in result.stderr
    assert time.monotonic() - began < 90  # not a hang


@pytest.mark.slow  # stopped processes are tested in a file of their own
def test_two_processes_resume_exactly_and_only_the_first_writes_and_prints(tmp_path):
    run(2, "path", tmp_path / "whole")
    run(2, "path", tmp_path / "parts", options={"num_epochs": 1})
    result = run(2, "path", tmp_path / "parts")
    whole, parts = (json.loads((tmp_path / d / "result-1.json").read_text()) for d in ("whole", "parts"))
    assert parts["weights"] == whole["weights"]
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 3
    assert result.stdout.split() == ["ready", "ready"] or result.stdout.split() == ["readyready"]


def test_a_checkpoint_of_another_number_of_processes_is_refused_and_says_why(tmp_path):
    run(2, "first order", tmp_path, options={"num_epochs": 1})
    result = run(1, "first order", tmp_path, check=False)
    assert "processes was 2, is 1" in result.stderr
