"""The main job, in small, and the command line."""

import io
import re
import sys
from statistics import mean

import pytest
import torch
from rich.console import Console

from supernet import SearchSpace, __version__, load_architecture
from supernet.cli import main
from supernet.errors import MissingExtraError

pytest.importorskip("sklearn", reason="the demo's data comes with scikit-learn")
from supernet.demo import Network, digits, run_demo


def test_no_test_image_is_a_training_image():
    train_set, test_set = digits()
    (X, y), (test_X, test_y) = train_set[:], test_set[:]
    assert (len(y), len(test_y)) == (1198, 599)
    assert set(y.tolist()) == set(test_y.tolist()) == set(range(10))
    known = {image.numpy().tobytes() for image in X}
    assert not [image for image in test_X if image.numpy().tobytes() in known]


def test_without_scikit_learn_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'supernet[demo]'")):
        digits()


def test_the_demo_prints_what_it_measured_and_leaves_its_runs(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=120)
    options = {"seeds": (0, 1), "num_random": 1, "search_epochs": 1, "train_epochs": 1, "channels": 4}
    rows = run_demo(**options, runs=tmp_path, console=console)
    text = out.getvalue()

    assert rows[0].name == "found by DARTS"
    assert [row.name for row in rows[1:]] == ["random 1"]
    for row in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"│ {row.name}"))
        assert f"{100 * mean(row.test_accuracy):.2f} ±" in line
        assert f"{mean(row.parameters):,.0f}" in line
        assert len(row.test_accuracy) == 2
    rank = 1 + sum(mean(rival.test_accuracy) > mean(rows[0].test_accuracy) for rival in rows[1:])
    assert f"the found one is number {rank} of 2" in text

    space = SearchSpace(Network(4))
    directory = tmp_path / "demo-1"
    assert str(directory) in text.replace("\n", "")
    for seed, architecture in enumerate(rows[0].architectures):
        run = directory / f"seed{seed}"
        assert load_architecture(run / "architecture.json", space) == architecture
        assert {"metrics.jsonl", "network.safetensors"} < {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_random_rivals_are_the_same_for_each_seed_and_trained_from_weights_of_their_own(tmp_path, monkeypatch):
    space = SearchSpace(Network(4))
    monkeypatch.setattr("supernet.demo._search", lambda *_: (space.sample(torch.Generator().manual_seed(1)), 0.5))
    options = {"num_random": 1, "search_epochs": 1, "train_epochs": 1, "channels": 4}
    console = Console(file=io.StringIO())
    one = run_demo(seeds=(0,), runs=tmp_path, console=console, **options)[1]
    two = run_demo(seeds=(1, 0), runs=tmp_path, console=console, **options)[1]
    assert one.architectures[0] == two.architectures[0] == two.architectures[1]
    assert one.test_accuracy[0] == two.test_accuracy[1]
    assert (tmp_path / "demo-2").exists()


def test_the_command_line_says_its_version_and_what_it_can_do(capsys):
    for arguments, expected in ((["--version"], __version__), (["--help"], "demo"), (["demo", "--help"], "--runs")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert re.search("usage: supernet", capsys.readouterr().err)
