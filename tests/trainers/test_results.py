"""A search that has finished is finished: nothing optional fails it, and its directory says so."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from searches import Net, search

from supernet import SearchSpace, freeze, load_architecture
from supernet.errors import TrainingError
from supernet.trainers import Callback

WITHOUT_MATPLOTLIB = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
from searches import search

trainer = search("first order", sys.argv[2], num_epochs=1)
trainer.fit()
print(trainer.export())
"""


def check_result(run_dir, trainer=None):
    """The directory holds a finished run with its architecture, and the weights that the supernet ended with."""
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    architecture = load_architecture(run_dir / "architecture.json", SearchSpace(Net()))
    network = freeze(Net(), architecture)
    load_model(network, run_dir / "network.safetensors")
    if trainer is not None:
        assert torch.equal(network.head.weight, trainer.model.head.weight)


@pytest.mark.slow
def test_a_search_finishes_where_matplotlib_is_not_installed(tmp_path):
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    check_result(tmp_path)
    assert "pip install 'supernet[plots]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["plot_architecture", "plot_probabilities"])
def test_a_search_finishes_whatever_goes_wrong_in_a_picture_and_says_so(tmp_path, monkeypatch, caplog, pictures, what):
    def broken(*arguments):
        raise ValueError("no such colour")

    monkeypatch.setattr(f"supernet.training.run_directory.{what}", broken)
    trainer = search("first order", tmp_path, num_epochs=1)
    trainer.fit()
    check_result(tmp_path, trainer)
    assert "ValueError: no such colour" in caplog.text
    other = {"plot_architecture": "probabilities", "plot_probabilities": "architecture"}[what]
    assert (tmp_path / f"{other}.png").exists()


def test_a_search_finishes_though_its_network_cannot_be_written_and_says_so(tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("cannot be copied")

    monkeypatch.setattr("supernet.files.weights.save_model", broken)
    search("first order", tmp_path, num_epochs=1).fit()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    assert load_architecture(tmp_path / "architecture.json", SearchSpace(Net()))
    assert "network.safetensors is not written: RuntimeError: cannot be copied" in caplog.text


class BreaksAtTheEnd(Callback):
    def fit_ended(self, trainer):
        raise OSError("the server is gone")


def test_a_search_finishes_whatever_goes_wrong_at_a_callbacks_end_and_says_so(tmp_path, caplog):
    ended = []

    class Ends(Callback):
        def fit_ended(self, trainer):
            ended.append(json.loads((tmp_path / "run.json").read_text())["status"])

    trainer = search("first order", tmp_path, num_epochs=1, callbacks=[Ends(), BreaksAtTheEnd(), Ends()])
    trainer.fit()
    check_result(tmp_path, trainer)
    assert ended == ["finished", "finished"]
    assert "BreaksAtTheEnd.fit_ended failed" in caplog.text
    assert "the server is gone" in caplog.text


def test_an_error_of_the_search_itself_is_what_is_raised_and_what_run_json_says(tmp_path):
    def rule(record):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        search("first order", tmp_path, callbacks=[BreaksAtTheEnd()], stop_when=[rule]).fit()
    description = json.loads((tmp_path / "run.json").read_text())
    assert description["status"] == "failed"
    assert description["error"] == "ZeroDivisionError: division by zero"


def test_a_refused_beginning_leaves_the_description_of_the_run_that_is_there(tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(TrainingError, match="holds a run already"):
        search("first order", tmp_path).fit()
    assert (tmp_path / "run.json").read_bytes() == before


# --- directories, and what is said of a run ----------------------------------------------------------------


def test_a_trainer_that_cannot_be_made_leaves_no_directory(tmp_path):
    with pytest.raises(TrainingError):
        search("first order", tmp_path / "runs" / "one", memory="none")
    with pytest.raises(ZeroDivisionError):
        search("first order", tmp_path / "runs" / "two", loss=lambda output, target: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot be made, for .*file is no directory"):
        search("first order", tmp_path / "file" / "run")


def test_a_path_to_resume_from_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        search("first order", tmp_path / "run").fit(resume=tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_a_signal_during_the_export_is_after_the_last_epoch_of_all(tmp_path, caplog):
    def trainer():
        return search("single path", tmp_path, num_epochs=2)

    first = trainer()
    evaluate = first.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    first.evaluate = interrupted
    with pytest.raises(SystemExit):
        first.fit()
    assert "after epoch 2;" in caplog.text
    with caplog.at_level(logging.INFO, logger="supernet"):
        trainer().fit(resume="auto")
    assert "after epoch 2\n" in caplog.text
