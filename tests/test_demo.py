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
from supernet.demo import BUDGETS, NEAR, TUNING_EPOCHS, Network, Searched, digits, run_demo


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
    options |= {"num_tuned": 2, "num_finalists": 1}
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


def test_of_the_best_in_the_supernet_those_that_tune_best_are_trained_alone(monkeypatch):
    trained = []

    def recipe(network, dataset, seed, num_epochs):
        trained.append((num_epochs, sum(p.numel() for p in network.parameters())))
        assert len(dataset) == 898 and seed == 0

    monkeypatch.setattr("supernet.demo.train_network", recipe)
    options = {"num_epochs": 1, "num_evaluations": 9, "num_tuned": 5, "num_finalists": 2, "train_epochs": 7}
    searched = Searched(0, data=digits(), **options)
    best = searched.best(Limits(Network(), {"parameters": 600}))
    assert [num_epochs for num_epochs, _ in trained] == [TUNING_EPOCHS] * 5 + [7] * 2
    assert all(NEAR * 600 <= size <= 600 for _, size in trained)
    known = [(json.loads(name)[1], measured) for name, measured in searched.evaluator.evaluations.items()]
    assert len(known) == 9
    first = [one for one, _ in sorted(known, key=lambda pair: pair[1]["loss"])[:5]]
    # By a recipe that trains nothing, what is tuned is what the supernet holds, and that is other than new weights.
    losses = [searched._loss_when_tuned(one) for one in first]
    assert losses != [searched._loss_alone(one) for one in first]
    second = [one for _, one in sorted(zip(losses, first, strict=True), key=lambda pair: pair[0])[:2]]
    assert best == min(second, key=searched._loss_alone)
    assert searched.estimate([best]) == [100 * dict(measured)["accuracy"] for one, measured in known if one == best]
    del trained[:]
    searched.best(Limits(Network(), {"parameters": (5_000, None)}))  # near nothing
    assert len(trained) == 7 and all(size >= 5_000 for _, size in trained)


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
