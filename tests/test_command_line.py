"""The commands that need no code: what they print, what they exit with, and what they say of mistakes."""

import json
import sys

import pytest
import torch
from torch import nn

import supernet
from supernet import SearchSpace, SinglePathTrainer, freeze, load_architecture, load_weights
from supernet.cli import main
from supernet.deploy import load_network, read_card
from supernet.search import SupernetEvaluator

NET = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import LayerChoice, Supernet, ValueChoice
from supernet.cost import TableCost
from supernet.space import SearchSpace

class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(1)
        width = ValueChoice([2, 4, 8], label="width")
        super().__init__(
            supernet.nn.Linear(4, width),
            supernet.nn.BatchNorm1d(width),
            LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act"),
            supernet.nn.Linear(width, 2),
        )

class Other(nn.Sequential):
    def __init__(self):
        super().__init__(LayerChoice([nn.ReLU(), nn.Tanh()], label="act"))

def samples(seed, count=64):
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long())

def data():
    return samples(0), samples(1)

def test_data():
    return samples(2)

def costs(model):
    table = {"width": {2: 1.0, 4: 2.0, 8: 4.0}}
    return {"energy": TableCost(SearchSpace(model), table, name="energy", unit="mJ")}

def broken():
    raise ValueError("out of clay")

def number():
    return 7
"""


def trainer_of(net, directory):
    model = net["Net"]()
    return SinglePathTrainer(
        model,
        nn.CrossEntropyLoss(),
        supernet.accuracy,
        torch.optim.SGD(model.parameters(), 0.1),
        1,
        net["samples"](0),
        run_dir=directory / "run",
        population=4,
        num_evaluations=4,
        batch_size=8,
        limits={"parameters": 60},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with the user's file and the run of a search."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "clay.py").write_text(NET)
    net = {}
    exec(NET, net)
    trainer = trainer_of(net, directory)
    trainer.fit()
    return directory


@pytest.fixture
def command(directory, capsys, monkeypatch):
    """Run a command, and return exit status, output and errors."""
    monkeypatch.chdir(directory)

    def run(*words, model="clay.py:Net"):
        before = list(sys.path), set(sys.modules)
        try:
            status = main([words[0], *([words[1], "--model", model] if len(words) > 1 else []), *words[2:]])
        except SystemExit as error:
            status = error.code
        sys.path[:] = before[0]
        for name in set(sys.modules) - before[1]:
            if name == "clay":
                del sys.modules[name]
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def net(directory):
    names = {}
    exec((directory / "clay.py").read_text(), names)
    return names


def found(directory, model):
    return load_architecture(directory / "run" / "architecture.json", SearchSpace(model))


def count(network):
    return sum(p.numel() for p in network.parameters())


# --- cost --------------------------------------------------------------------------------------------------


def test_cost_is_that_of_the_frozen_network(command, directory, net):
    model = net["Net"]()
    architecture = found(directory, model)
    status, out, _ = command("cost", "run", "--example", "1,4", "--json")
    assert status == 0
    answer = json.loads(out)
    width = architecture["width"]
    assert answer["architecture"] == architecture
    assert answer["costs"]["parameters"] == count(freeze(model, architecture))
    assert answer["costs"]["macs"] == 4 * width + width * 2
    assert answer["keeps_limits"] is True


def test_a_broken_limit_is_marked_and_the_status_is_1(command):
    words = "cost", "run", "--architecture", '{"width": 4, "act": "relu"}', "--limits", "parameters=30,energy=1:3"
    status, out, _ = command(*words, "--costs", "clay.py:costs")
    assert status == 1
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["parameters"].split() == ["parameters", "38", "at", "most", "30,", "BROKEN"]
    assert lines["energy"].split() == ["energy", "2", "mJ", "1", "to", "3", "mJ"]


def test_limits_are_those_of_the_run_unless_others_are_given(command):
    words = "cost", "run", "--architecture", '{"width": 8, "act": "relu"}'
    status, out, _ = command(*words)
    assert status == 1
    assert out.splitlines()[1].split() == ["parameters", "74", "at", "most", "60,", "BROKEN"]
    assert command(*words, "--limits", "parameters=74")[0] == 0


def test_shares_are_of_the_largest_network(command):
    words = "cost", "run", "--architecture", '{"width": 2, "act": "relu"}', "--limits", "parameters=50%", "--json"
    status, out, _ = command(*words)
    assert status == 0
    assert json.loads(out)["limits"] == {"parameters": ["-inf", (8 * 5 + 16 + 18) / 2]}


# --- evaluate ----------------------------------------------------------------------------------------------


def test_the_found_network_is_measured_with_its_own_weights(command, directory, net):
    model = net["Net"]()
    network = freeze(model, found(directory, model))
    load_weights(network, directory / "run" / "network.safetensors")
    expected = supernet.evaluate(network, nn.CrossEntropyLoss(), supernet.accuracy, net["test_data"]())
    status, out, _ = command(
        "evaluate", "run", "--data", "clay.py:test_data", "--loss", "torch.nn:CrossEntropyLoss", "--json"
    )
    assert status == 0
    assert json.loads(out)["metrics"] == pytest.approx(expected)


def test_another_architecture_is_measured_with_the_supernet_s_weights(command, directory, net):
    trainer = trainer_of(net, directory)
    trainer.fit(resume="auto")
    evaluator = SupernetEvaluator(trainer.supernet, net["data"](), metrics=supernet.accuracy, batch_size=256)
    architecture = {"width": 8, "act": "tanh"}
    status, out, _ = command(
        "evaluate", "run", "--data", "clay.py:data", "--architecture", json.dumps(architecture), "--json"
    )
    assert status == 0
    assert json.loads(out) == {"architecture": architecture, "metrics": pytest.approx(evaluator(architecture))}


# --- search and front --------------------------------------------------------------------------------------


@pytest.fixture
def searched(command, directory):
    words = ["search", "run", "--data", "clay.py:data", "--objective", "accuracy=max", "--objective", "parameters=min"]
    words += [
        "--limits",
        "parameters=40",
        "--limits",
        "parameters=20,macs=20",
        "--example",
        "1,4",
        "--evaluations",
        "10",
    ]
    (directory / "run" / "front.json").unlink(missing_ok=True)
    return command(*words)


def test_a_search_keeps_limits_and_front_names_the_best_under_others(searched, command, directory, net):
    status, out, err = searched
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["accuracy", "parameters", "architecture"] or "parameters" in out
    _, out, _ = command("front", "run", "--json")
    entries = json.loads(out)["entries"]
    assert len(entries) == 4  # two widths keep a limit of 40
    assert all(entry["costs"]["parameters"] <= 40 for entry in entries)
    assert [budget for budget in json.loads(out)["budgets"] if "macs" in budget] == [
        {"parameters": ["-inf", 20.0], "macs": ["-inf", 20.0]}
    ]
    small = [entry for entry in entries if entry["costs"]["parameters"] <= 20]
    status, out, _ = command("front", "run", "--limits", "parameters=20", "--save", "best.json", "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["accuracy"] == max(entry["metrics"]["accuracy"] for entry in small)
    assert load_architecture(directory / "best.json", SearchSpace(net["Net"]())) == json.loads(out)["architecture"]
    status, out, _ = command("cost", "run", "--architecture", "best.json", "--json")
    assert json.loads(out)["costs"]["parameters"] <= 20


def test_a_search_under_another_budget_measures_only_what_is_new(command, directory, monkeypatch):
    measured = []
    measure = SupernetEvaluator.measure

    def noted(self, path, num_batches):
        measured.append(path)
        return measure(self, path, num_batches)

    monkeypatch.setattr(SupernetEvaluator, "measure", noted)
    (directory / "run" / "evaluations.jsonl").unlink(missing_ok=True)
    words = "search", "run", "--data", "clay.py:data", "--objective", "accuracy=max", "--searcher", "exhaustive"
    for most, new in (("20", 2), ("40", 2), ("30", 0)):
        measured.clear()
        status, _, _ = command(*words, "--limits", f"parameters={most}", "--json")
        assert status == 0
        assert len(measured) == new
    assert command(*words, "--limits", "parameters=20", "--loss", "torch.nn:CrossEntropyLoss")[0] == 0
    assert len(measured) == 2  # of another loss nothing is known


@pytest.mark.parametrize("searcher", ["exhaustive", "random", "regularized-evolution"])
def test_each_searcher_finds_all_of_a_small_space(command, searcher):
    words = ["search", "run", "--data", "clay.py:data", "--objective", "accuracy=max", "--evaluations", "60"]
    words += ["--limits", "parameters=0:"]
    status, out, err = command(*words, "--searcher", searcher, "--json")
    assert (status, err) == (0, "")
    assert len(json.loads(out)["entries"]) == 6


def test_a_limit_that_nothing_measured_keeps_names_the_nearest(searched, command):
    status, out, err = command("front", "run", "--limits", "parameters=5")
    assert (status, out) == (1, "")
    assert "the nearest has parameters" in err


# --- export ------------------------------------------------------------------------------------------------


def test_the_found_network_is_exported_with_its_card(command, directory, net):
    words = "export", "run", "--example", "2,4", "--to", "net.safetensors", "--limits", "parameters=100", "--json"
    status, out, err = command(*words, "--data", "clay.py:test_data")
    assert status == 0, err
    card = json.loads(out)["card"]
    assert card == read_card(directory / "net.safetensors")
    assert card["architecture"] == found(directory, net["Net"]())
    status, out, _ = command("evaluate", "run", "--data", "clay.py:test_data", "--json")
    assert card["metrics"] == json.loads(out)["metrics"]
    X = net["test_data"]()[:][0]
    network = freeze(net["Net"](), card["architecture"])
    load_weights(network, directory / "run" / "network.safetensors")
    exported = load_network(directory / "net.safetensors", model=net["Net"]())
    assert torch.equal(exported.eval()(X), network.eval()(X))


def test_another_architecture_is_exported_with_statistics_of_its_own(command, directory, net):
    words = "export", "run", "--example", "2,4", "--to", "other.pt2", "--architecture", '{"width": 4, "act": "tanh"}'
    status, _, err = command(*words)
    assert (status, "statistics of all networks" in err) == (2, True)
    status, out, err = command(*words, "--data", "clay.py:data", "--json")
    assert status == 0, err
    measured = json.loads(out)["card"]["metrics"]
    status, out, _ = command("evaluate", "run", *words[6:], "--data", "clay.py:data", "--json")
    assert measured == pytest.approx(json.loads(out)["metrics"])


def test_what_breaks_its_limits_is_not_exported(command, directory):
    words = "export", "run", "--example", "1,4", "--to", "large.safetensors", "--limits", "parameters=3:4"
    status, out, err = command(*words)
    assert (status, out) == (1, "")
    assert "no architecture was found that keeps the limits" in err
    assert not (directory / "large.safetensors").exists()


@pytest.mark.parametrize("words", [["--to", "net.tflite", "--example", "1,4"], ["--to", "net.onnx"]])
def test_an_export_that_cannot_be_is_a_matter_of_usage(command, words):
    status, _, err = command("export", "run", *words)
    assert status == 2
    assert "--to ends in one of .onnx, .pt2, .safetensors" in err or "--example is needed" in err


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        ([], "clay.py", "--model is MODULE:NAME or FILE.py:NAME, not 'clay.py'"),
        ([], "stone.py:Net", "there is no file stone.py"),
        ([], "stone:Net", "there is no module 'stone' here"),
        ([], "clay.py:Nett", "clay.py has no 'Nett'; it has: "),
        ([], "clay.py:number", "--model is a model or makes one, but clay.py:number gives int"),
        (["--architecture", "{width"], "clay:Net", "--architecture is no JSON"),
        (["--architecture", "none.json"], "clay:Net", "there is no file none.json"),
        (["--limits", "parameters"], "clay:Net", "limits are NAME=MOST"),
        (["--limits", "parameters=few"], "clay:Net", "'few' is no number, nor a share"),
        (["--limits", "parameters=3,parameters=9"], "clay:Net", "parameters is limited twice in "),
        (["--limits", "size=3"], "clay:Net", "there is no cost 'size'; known are parameters, macs, "),
        (["--limits", "size=3"], "clay:Net", "latency_ms, and those that the function of --costs returns"),
        (["--limits", "macs=3"], "clay:Net", "of a network that runs; give --example, what"),
        (["--example", "0,4"], "clay:Net", "--example is a shape of numbers from 1 on, and 0,4 has a 0"),
    ],
)
def test_arguments_that_cannot_be_exit_with_2(command, words, model, message):
    status, out, err = command("cost", "run", *words, model=model)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        (["nowhere"], "clay:Net", "nowhere is no run directory: it has no run.json"),
        (["run"], "clay:Other", "run is a run of another space"),
        (["run"], "clay:broken", "clay:broken raises ValueError: out of clay ("),
        (["run", "--architecture", '{"width": 3, "act": "relu"}'], "clay:Net", "choice 'width' has no value 3"),
        (["run", "--example", "1,5"], "clay:Net", "RuntimeError: "),
    ],
)
def test_what_fails_exits_with_1_and_says_why_without_a_traceback(command, words, model, message):
    status, out, err = command("cost", *words, model=model)
    assert (status, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_a_device_that_is_none_exits_with_2(command):
    words = "search", "run", "--data", "clay.py:data", "--objective", "accuracy=max", "--device", "abacus"
    status, _, err = command(*words)
    assert (status, "--device abacus: " in err) == (2, True)


def test_a_run_without_a_result_says_so(command, directory, tmp_path):
    run = tmp_path / "unfinished"
    run.mkdir()
    (run / "run.json").write_bytes((directory / "run" / "run.json").read_bytes())
    status, _, err = command("cost", str(run))
    assert status == 1
    assert "its search has not finished; give --architecture" in err
    status, _, err = command("front", str(run))
    assert (status, "supernet search writes it" in err) == (1, True)


def test_the_traceback_is_shown_where_it_is_asked_for(directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    assert main(["--traceback", "cost", "run", "--model", "clay.py:broken"]) == 1
    assert "out of clay" in capsys.readouterr().err
