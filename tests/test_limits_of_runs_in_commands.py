"""Commands hold what they find to all limits of the run, and refuse what they cannot hold."""

import json

import pytest
import torch
from torch import nn

import supernet
from supernet import SinglePathTrainer
from supernet.cli import main

WIDTHS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import ValueChoice
from supernet.cost import TableCost
from supernet.space import SearchSpace

class Net(nn.Sequential):
    def __init__(self):
        width = ValueChoice([2, 4, 8, 16], label="width")
        super().__init__(supernet.nn.Linear(4, width), supernet.nn.Linear(width, 2))

def data():
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return (TensorDataset(X, (X[:, 0] > 0).long()),) * 2

def costs(model):
    table = {"width": {2: 1.0, 4: 2.0, 8: 4.0, 16: 8.0}}
    return {"energy": TableCost(SearchSpace(model), table, name="energy", unit="mJ")}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with runs under a limit of MACs (widths up to 4), of a cost of the user's own, and of both."""
    directory, project = tmp_path_factory.mktemp("runs"), {}
    (directory / "widths.py").write_text(WIDTHS)
    exec(WIDTHS, project)
    for name, limits in (("macs", {"macs": 30}), ("energy", {"energy": 4}), ("both", {"macs": 30, "energy": 4})):
        model = project["Net"]()
        options = {"limits": limits, "costs": project["costs"](model) if "energy" in limits else None}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        task = model, nn.CrossEntropyLoss(), supernet.accuracy, optimizer, 1, project["data"]()[0]
        SinglePathTrainer(*task, run_dir=directory / name, num_evaluations=2, population=2, **options).fit()
    return directory


@pytest.fixture
def command(directory, capsys, monkeypatch):
    """Run a command, and return exit status, output and errors."""
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)

    def run(name, run_dir, *words):
        try:
            status = main([name, run_dir, "--model", "widths.py:Net", *words])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


SEARCH = "--data", "widths.py:data", "--objective", "accuracy=max", "--json"


def test_a_search_without_limits_keeps_those_of_the_run(command):
    status, out, err = command("search", "macs", *SEARCH, "--example", "1,4")
    assert (status, err) == (0, "")
    assert sorted(entry["architecture"]["width"] for entry in json.loads(out)["entries"]) == [2, 4]
    status, out, _ = command("search", "energy", *SEARCH, "--costs", "widths.py:costs")
    assert sorted(entry["architecture"]["width"] for entry in json.loads(out)["entries"]) == [2, 4, 8]
    status, out, _ = command("search", "macs", *SEARCH, "--limits", "parameters=0:")
    assert len(json.loads(out)["entries"]) == 4


@pytest.mark.parametrize(("run_dir", "words"), [("macs", []), ("energy", ["--limits", "macs=30"])])
def test_a_search_takes_the_example_that_a_limit_needs_from_its_data(command, run_dir, words):
    status, out, err = command("search", run_dir, *SEARCH, *words)
    assert (status, err) == (0, "")
    found = {entry["architecture"]["width"]: entry["costs"] for entry in json.loads(out)["entries"]}
    assert {width: costs["macs"] for width, costs in found.items()} == {2: 4 * 2 + 2 * 2, 4: 4 * 4 + 4 * 2}
    assert "peak_memory" not in found[2]  # nobody needs it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", "macs"], "the run has a limit of macs, which is not known here; give --example, or by --limits "),
        (
            ["cost", "both"],
            "a limit of macs and of energy, which is not known here; give --example and --costs, a function that "
            "returns energy, or by --limits",
        ),
        (["search", "both", *SEARCH], "a limit of energy, which is not known here; give --costs, a function that"),
        (
            ["cost", "energy", "--example", "1,4"],
            "a limit of energy, which is not known here; give --costs, a function",
        ),
        (
            ["export", "energy", "--to", "net.safetensors", "--example", "1,4"],
            "a limit of energy, which is not known here; give --costs, a function",
        ),
    ],
)
def test_a_limit_of_the_run_that_cannot_be_held_is_refused_not_forgotten(command, words, message):
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "accuracy=min"], "--objective accuracy is given twice"),
        (["--evaluations", "0"], "argument --evaluations: 0 is not 1 or more"),
    ],
)
def test_what_a_search_cannot_take_is_a_matter_of_usage(command, words, message):
    status, out, err = command("search", "energy", *SEARCH, "--costs", "widths.py:costs", *words)
    assert (status, out) == (2, "")
    assert message in err
