"""Processes that differ all end with an error that says in what; those that wait in vain, with one that says for whom.

Real processes; what only compares runs one after another in the same two.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import programs
from supernet import DartsTrainer, LayerChoice
from supernet.processes.messages import _difference, is_about_processes

SCRIPT = Path(__file__).with_name("searches_that_end.py")

REFUSED = {
    "seed": "seed is 0 in process 0, 1 in process 1",
    "learning rate": "optimizer[0].lr is 0.1 in process 0, 0.2 in process 1",
    "epochs": "num_epochs is 2 in process 0, 3 in process 1",
    "length": "the number of samples in the training part is 32 in process 0, 30 in process 1",
    "samples": "the digest of some samples in the training part is",
    "space": "the space is",
    "shape": "weight '0.weight' is [[4, 4], \"torch.float32\", true] in process 0, [[3, 4],",
    "metrics": "metrics is",
    "no run_dir": 'run_dir is "given" in process 0, nothing in process 1',
    "own run_dir": "run_dir is not one directory that all processes see",
    "metric names": '["loss", "of process 0"] in process 0, ["loss", "of process 1"] in process 1',
    "diverges": "diverged in epoch 1: the digest of the weight '0.weight' is",
    "learning rate moves": "diverged in epoch 1: the learning rate of group 0 is 0.1 in process 0, 0.5 in process 1",
    "constraint": "evaluate different architectures",
}
ALIKE = ("initial weights", "buffers of any dtype", "clock", "score", "callbacks in one")

ENDED = {
    "hangs": (
        "process 0 has waited 3 seconds in step 3 of epoch 1 for the gradients, or what else a step shares: process 1 "
        "is alive, in step 3 of epoch 1"
    ),
    "is killed": "process 1 has ended or is stopped",
    "raises": "process 1 has ended: ValueError: broken on purpose",
}
ENDED_TOO = {
    "leaves": "process 1 has ended: SystemExit: 0",
    "dies": "process 1 has ended or is stopped",
    "is stopped": "process 1 has ended or is stopped",
    "shorter": "has waited 3 seconds",
    "skips a step": "has waited 3 seconds",
}
IN_THE_FIRST = {
    "full disk": "process 0 has ended: OSError: [Errno 28] No space left on device",
    "callback raises": "process 0 has ended: ZeroDivisionError: division by zero",
    "callback of all": "Hook.epoch_ended runs in the first process only, but what it calls takes all of them",
}


def outcomes_of(modes, directory):
    """Run searches in two processes; return mode -> the outcome in each process that has lived to tell."""
    programs.run(SCRIPT, ",".join(modes), directory, processes=2, check=False)
    return told(directory)


def told(directory):
    outcomes = [json.loads(path.read_text()) for path in sorted(directory.glob("process-*.json"))]
    return {mode: [of_one[mode] for of_one in outcomes if mode in of_one] for mode in outcomes[0]}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return outcomes_of([*REFUSED, *ALIKE], tmp_path_factory.mktemp("compared"))


@pytest.mark.parametrize("mode", REFUSED)
def test_what_differs_is_an_error_in_all_processes_that_says_which_has_which(compared, mode):
    errors = [outcome["error"] for outcome in compared[mode]]
    assert len(errors) == 2
    assert errors[0] == errors[1]
    assert errors[0].startswith("TrainingError: ")
    assert REFUSED[mode] in errors[0]


def test_where_functions_differ_or_weights_are_made_without_a_seed_the_first_process_decides(compared):
    for mode in ALIKE:
        first, second = compared[mode]
        assert first["error"] is None, first["error"]
        assert all(first[name] == second[name] for name in ("stopped", "architecture", "losses", "buffers")), mode
    assert compared["clock"][1]["stopped"] == "late"
    assert compared["initial weights"][1]["losses"] == compared["callbacks in one"][1]["losses"]


@pytest.mark.parametrize(
    "mode", [*ENDED, *(pytest.param(mode, marks=pytest.mark.slow) for mode in (*ENDED_TOO, *IN_THE_FIRST))]
)
def test_a_process_that_waits_in_vain_ends_with_an_error_that_says_for_whom(tmp_path, mode):
    outcomes = outcomes_of([mode], tmp_path)[mode]
    who = outcomes[-1 if mode in IN_THE_FIRST else 0]  # whoever waits
    assert who["error"].startswith("TrainingError: ")
    assert {**ENDED, **ENDED_TOO, **IN_THE_FIRST}[mode] in who["error"]
    if mode in ("hangs", "shorter", "skips a step"):  # the other one hears of it, even where it hangs
        assert outcomes[1]["error"].startswith("TrainingError: process 0 has ended") or mode != "hangs"
        assert len(outcomes) == 2


@pytest.mark.slow
def test_processes_that_fabric_has_launched_end_as_those_of_torchrun(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), "hangs", str(tmp_path)], timeout=120, check=False)
    first, second = told(tmp_path)["hangs"]
    assert ENDED["hangs"] in first["error"]
    assert second["error"].startswith("TrainingError: process 0 ")


def test_a_signal_to_one_process_ends_all_with_a_checkpoint_of_the_same_step(tmp_path):
    outcomes = outcomes_of(["signal"], tmp_path)["signal"]
    assert [outcome["error"] for outcome in outcomes] == ["SystemExit: 143"] * 2
    assert len(list((tmp_path / "signal" / "checkpoints").iterdir())) == 1


def test_a_difference_names_few_processes_and_shortens_long_values():
    values = ["x" * 200] + [None] * 20
    assert _difference("it", ["same"] * 3) == ""
    text = _difference("it", values)
    assert "in process 0, nothing in processes 1, 2, 3, 4, 5, 6, 7, 8, ..." in text
    assert len(text) < 200


def test_a_timeout_that_cannot_be_is_refused():
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a"))
    with pytest.raises(RuntimeError, match=r"process_timeout is a number from 0\.1 to 1e\+06, not 0"):
        DartsTrainer(
            model,
            nn.functional.cross_entropy,
            None,
            torch.optim.SGD(model.parameters(), 0.1),
            1,
            torch.utils.data.TensorDataset(torch.zeros(8, 2), torch.zeros(8).long()),
            process_timeout=0,
        )


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1",
        "Application timeout caused pair closure",
        "NCCL communicator was aborted on rank 1",
        "timed out waiting for a key",
    ],
)
def test_what_torch_says_of_a_peer_that_is_gone_is_known(text):
    assert is_about_processes(RuntimeError(text))
    assert not is_about_processes(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
