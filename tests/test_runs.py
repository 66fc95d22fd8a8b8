"""Runs side by side: rows, the table, and one run of several run again."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from searches import search
from torch import nn
from torch.utils.data import TensorDataset

from supernet import load_runs, train
from supernet.cli import main
from supernet.errors import FileFormatError
from supernet.runs import print_runs
from supernet.training.run_directory import RERUN, RERUN_ONLY


@pytest.fixture(autouse=True, scope="module")
def _without_pictures():
    with pytest.MonkeyPatch.context() as patch:
        for plot in ("plot_architecture", "plot_probabilities"):
            patch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one search, one of another rate in a folder of its own, and one of another trainer."""
    runs = tmp_path_factory.mktemp("runs")
    for name, kind, options in [
        ("darts-0", "first order", {"seed": 0}),
        ("darts-1", "first order", {"seed": 1}),
        ("more/fast", "first order", {"arc_learning_rate": 0.1}),
        ("path", "path", {}),
    ]:
        search(kind, runs / name, num_epochs=2, batch_size=12, **options).fit()
    (runs / "notes").mkdir()
    return runs


def test_a_row_says_what_the_files_of_its_run_say(runs):
    rows = {Path(row["run"]).name: row for row in load_runs(f"{runs}/*")}
    assert list(rows) == ["darts-0", "darts-1", "fast", "path"]
    row = rows["darts-1"]
    assert (row["trainer"], row["seed"], row["status"], row["epochs"]) == ("DartsTrainer", 1, "finished", 2)
    last = json.loads((runs / "darts-1" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: row[name] for name in last if name.startswith(("train_", "valid_"))} == {
        name: value for name, value in last.items() if name.startswith(("train_", "valid_"))
    }
    assert row["architecture"] == json.loads((runs / "darts-1" / "architecture.json").read_text())["architecture"]
    assert row["seconds"] == json.loads((runs / "darts-1" / "run.json").read_text())["seconds"]
    assert rows["fast"]["options"]["arc_learning_rate"] == 0.1


@pytest.mark.parametrize("many", [str, lambda runs: [runs / "path", runs / "darts-0", runs / "more", runs / "darts-1"]])
def test_runs_are_found_below_directories_and_in_several_of_them(runs, many):
    assert load_runs(many(runs)) == load_runs(f"{runs}/**/")


def test_a_run_that_has_not_ended_has_what_there_is_of_it(runs, tmp_path):
    shutil.copytree(runs / "darts-0", tmp_path / "killed")
    description = json.loads((tmp_path / "killed" / "run.json").read_text())
    del description["digest"]  # as whoever changes it on purpose does
    description |= {"status": "running", "seconds": 0.0}
    (tmp_path / "killed" / "run.json").write_text(json.dumps(description))
    (tmp_path / "killed" / "architecture.json").unlink()
    first, second = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "killed" / "metrics.jsonl").write_text(f"{first}\n{second[:20]}")  # killed as it was written
    (row,) = load_runs(tmp_path / "killed")
    assert (row["status"], row["epochs"], row["architecture"]) == ("killed", 1, None)
    assert row["seconds"] == json.loads(first)["cost"]["seconds"]


def test_where_there_is_no_run_or_a_broken_one_an_error_names_it(runs, tmp_path):
    for path in (tmp_path, tmp_path / "mistyped", f"{tmp_path}/*", runs / "notes"):
        with pytest.raises(FileFormatError, match="there is no run in"):
            load_runs([runs, path])
    shutil.copytree(runs / "path", tmp_path / "broken")
    (tmp_path / "broken" / "architecture.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"broken/architecture\.json is not a whole JSON file"):
        load_runs(tmp_path)


def printed(rows):
    file = io.StringIO()
    print_runs(rows, Console(file=file, width=300))
    return file.getvalue()


def test_the_table_shows_each_run_what_differs_and_means_over_seeds(runs):
    rows = load_runs(runs)
    text = printed(rows)
    heading = text.splitlines()[1]
    assert "arc_learning_rate" in heading
    assert "valid_loss" in heading
    assert "precision" not in heading  # all runs have the same
    means = text[text.index("mean ± deviation") :]
    first, second = (row["valid_loss"] for row in rows[:2])
    mean, deviation = (first + second) / 2, abs(first - second) / 2**0.5
    assert f"{mean:.4g} ± {deviation:.2g}" in means
    assert "mean ± deviation" not in printed(rows[1:])  # there are no two of one kind


def test_the_command_prints_the_table_or_says_what_is_wrong(runs, tmp_path, capsys, monkeypatch):
    assert main(["runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert all(row["run"] in out for row in load_runs(runs))
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 1
    assert "there is no run in runs" in capsys.readouterr().err


# --- one of several runs, run again ------------------------------------------------------------------------

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from searches import search
torch.set_num_threads(1)
import supernet.training.run_directory as files
files.plot_architecture = files.plot_probabilities = lambda *_: []
for seed in range(3):
    trainer = search("single path", f"runs/seed{{seed}}", num_epochs=1, batch_size=12, seed=seed)
    inner = trainer.train_model_weight
    def train_model_weight(*batch):
        print("step of", seed)
        inner(*batch)
    trainer.train_model_weight = train_model_weight
    trainer.fit()
    print("found", seed, trainer.export())
"""


@pytest.mark.slow
def test_one_run_of_a_script_is_run_again_alone(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent / "trainers")))
    command = [sys.executable, "script.py"]
    first = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    capfd.readouterr()
    assert main(["rerun", str(tmp_path / "runs" / "seed1"), "--into", str(tmp_path / "again")]) == 0
    again = capfd.readouterr().out
    assert "the same as" in again
    assert "step of 1" in again
    assert "step of 0" not in again
    assert "seed2" not in again
    (found,) = [line for line in first.splitlines() if line.startswith("found 0")]
    assert found in again  # what a later run may depend on is as it was
    assert [path.parent.name for path in (tmp_path / "again").rglob("run.json")] == ["seed1"]


def test_a_run_that_has_become_another_search_is_run_again_with_it(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    search("first order", "runs/one", num_epochs=1, batch_size=12).fit()
    monkeypatch.setenv(RERUN, str(tmp_path / "again"))
    monkeypatch.setenv(RERUN_ONLY, str(tmp_path / "runs" / "two"))
    same = search("first order", "runs/one", num_epochs=1, batch_size=12)
    same.fit()
    assert len(same.history) == 1
    assert not (tmp_path / "again").exists()
    other = search("first order", "runs/one", num_epochs=1, batch_size=12, seed=1)
    other.fit()
    assert "seed was 0, is 1" in caplog.text
    assert len(list((tmp_path / "again").rglob("run.json"))) == 1
    with pytest.raises(SystemExit) as ended:
        search("first order", "runs/two", num_epochs=1, batch_size=12).fit()
    assert ended.value.code == 0


def test_trainings_of_different_networks_are_no_seeds_of_one(tmp_path):
    data = TensorDataset(torch.randn(8, 2), torch.randint(2, (8,)))
    for name, layer in (("relu", nn.ReLU()), ("tanh", nn.Tanh())):
        for seed in (0, 1):
            network = nn.Sequential(nn.Linear(2, 2), layer)
            optimizer = torch.optim.SGD(network.parameters(), 0.1)
            options = {"seed": seed, "run_dir": tmp_path / f"{name}{seed}"}
            train(network, nn.functional.cross_entropy, None, optimizer, 1, data, **options)
    rows = load_runs(tmp_path)
    networks = [row["options"]["network"] for row in rows]
    assert networks[0] == networks[1] != networks[2] == networks[3]
    assert "network" in printed(rows).splitlines()[1]
