"""A search by command whose workers measure finds and keeps what one process does."""

import json
import os

import pytest
import torch
from torch import nn

import supernet
from supernet import SinglePathTrainer
from supernet.cli import main

WORKED = """
import os

import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import ValueChoice

class Net(nn.Sequential):
    def __init__(self):
        width = ValueChoice([2, 4, 8], label="width")
        norm = supernet.nn.BatchNorm1d(width)
        super().__init__(supernet.nn.Linear(4, width), norm, nn.ReLU(), supernet.nn.Linear(width, 2))

def data():
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return (TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long()),) * 2

def accuracy(output, target):
    with open("processes", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return supernet.accuracy(output, target)
"""


@pytest.mark.slow
def test_workers_measure_what_one_process_measures_and_keep_it_for_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "worked.py").write_text(WORKED)
    project = {}
    exec(WORKED, project)
    model = project["Net"]()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    task = model, nn.CrossEntropyLoss(), supernet.accuracy, optimizer, 1, project["data"]()[0]
    SinglePathTrainer(*task, run_dir=tmp_path / "run", num_evaluations=2, population=2).fit()

    def found(*words):
        (tmp_path / "processes").write_text("")
        named = "--model", "worked.py:Net", "--data", "worked.py:data", "--metrics", "worked.py:accuracy"
        objectives = "--objective", "accuracy=max", "--loss", "torch.nn:CrossEntropyLoss"
        assert main(["search", "run", *named, *objectives, "--searcher", "exhaustive", "--json", *words]) == 0
        answer = {
            one["architecture"]["width"]: one["metrics"] for one in json.loads(capsys.readouterr().out)["entries"]
        }
        return answer, set((tmp_path / "processes").read_text().split())

    by_workers, processes = found("--workers", "2")
    assert len(by_workers) == 3
    assert str(os.getpid()) not in processes
    assert 1 <= len(processes) <= 2  # one of them may be so quick that it measures all
    assert found() == (by_workers, set())  # all is known
    (tmp_path / "run" / "evaluations.jsonl").unlink()
    alone, processes = found()
    assert processes == {str(os.getpid())}
    assert alone == {width: pytest.approx(metrics) for width, metrics in by_workers.items()}
