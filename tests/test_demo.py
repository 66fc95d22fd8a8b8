"""The main job, in small, and the command line."""

import io
import itertools
import json
import re
import sys
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from supernet import SearchSpace, __version__
from supernet.cli import main
from supernet.cost import Limits
from supernet.deploy import read_card
from supernet.errors import MissingExtraError

pytest.importorskip("sklearn", reason="the demo's data comes with scikit-learn")
from supernet.demo import BUDGETS, Network, Searched, digits, run_demo


def test_no_image_is_in_two_parts():
    parts = digits()
    assert [len(part) for part in parts] == [898, 300, 599]
    for _, labels in (part[:] for part in parts):
        assert set(labels.tolist()) == set(range(10))
    images = [{image.numpy().tobytes() for image in part[:][0]} for part in parts]
    assert not images[0] & images[1] and not (images[0] | images[1]) & images[2]


def test_without_scikit_learn_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'supernet[demo]'")):
        digits()


def test_the_space_has_about_a_million_networks_and_many_under_each_budget():
    space = SearchSpace(Network())
    assert 1e6 < space.size < 1e7
    assert BUDGETS == ({"parameters": 600}, {"parameters": 1_000}, {"parameters": 2_000})
    limits, generator = Limits(Network(), BUDGETS[0]), torch.Generator().manual_seed(0)
    assert len({json.dumps(limits.sample(generator)) for _ in range(20)}) > 15


def test_the_demo_prints_what_it_measured_and_leaves_rows_pictures_and_networks(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    # A clock that ticks when it is read: so random search trains two networks, however fast the machine is.
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("supernet.compare.comparison.time", clock)
    monkeypatch.setattr("supernet.demo.BUDGETS", BUDGETS[:1])
    out = io.StringIO()
    options = {"seeds": (0, 1), "num_random": 1, "search_epochs": 1, "num_evaluations": 2, "train_epochs": 1}
    options |= {"num_finalists": 1}
    comparison = run_demo(**options, runs=tmp_path, console=Console(file=out, width=160))
    text, directory = out.getvalue(), tmp_path / "demo-1"

    rows = json.loads((directory / "comparison.json").read_text())
    assert rows == comparison.to_json()
    assert [(row["budget"], row["method"]) for row in rows] == [
        (600, method) for method in ("found", "random", "random search at equal time")
    ]
    for row in rows:
        assert set(row) == {"budget", "method", "parameters", "test_accuracy", "seconds"}
        assert row["parameters"] <= row["budget"]
        assert len(row["test_accuracy"]) == 2 and all(0 <= one <= 100 for one in row["test_accuracy"])
        assert f"{mean(row['test_accuracy']):.1f} ±" in text
    assert {path.name for path in directory.iterdir()} > {"front.png", "front.svg", "at_most_600.onnx"}
    assert str(directory) in text.replace("\n", "")

    card = read_card(directory / "at_most_600.onnx")
    assert card["architecture"] == comparison.rows[0].contestants[0].architecture
    assert card["costs"]["parameters"] == comparison.rows[0].contestants[0].costs["parameters"]


def test_of_the_best_in_the_supernet_the_best_alone_is_found():
    trained = []

    def recipe(network, dataset, seed):
        trained.append(sum(p.numel() for p in network.parameters()))
        assert len(dataset) == 898

    options = {"num_epochs": 1, "num_evaluations": 6, "num_finalists": 3, "train": recipe}
    searched = Searched(0, data=digits(), **options)
    limits = Limits(Network(), {"parameters": 600})
    best = searched.best(limits)
    assert len(trained) == 3 and max(trained) <= 600
    known = [(json.loads(name)[1], measured) for name, measured in searched.evaluator.evaluations.items()]
    assert len(known) == 6
    finalists = [one for one, _ in sorted(known, key=lambda pair: pair[1]["loss"])[:3]]
    assert best == max(finalists, key=searched._accuracy_alone)
    assert searched.estimate([best]) == [100 * dict(measured)["accuracy"] for one, measured in known if one == best]


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
