"""Evaluations that a directory keeps: nothing is evaluated twice, and nothing of other weights is taken."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import LayerChoice, Supernet
from supernet.errors import FileFormatError, TrainingError
from supernet.search import RegularizedEvolutionSearcher, SupernetEvaluator, search_front

OBJECTIVES = {"accuracy": "max", "parameters": "min"}


def new_model():
    torch.manual_seed(0)
    layers = [
        LayerChoice({"linear": nn.Linear(3, 3), "tanh": nn.Tanh(), "none": nn.Identity()}, label=f"l{i}")
        for i in range(3)
    ]
    return nn.Sequential(*layers, nn.BatchNorm1d(3), nn.Linear(3, 2))


MODEL = new_model()


class Measuring:
    """Measures by a formula, notes what it is asked for, and dies after so many."""

    def __init__(self, dies_after=math.inf):
        self.asked, self.dies_after = [], dies_after

    def __call__(self, architectures):
        if len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += map(json.dumps, architectures)
        return [{"accuracy": math.nan if a["l0"] == "tanh" else 1 / (3 + len(str(a)))} for a in architectures]


def searched(measure, directory, identity="weights of May", **options):
    options = {"model": MODEL, "searcher": RegularizedEvolutionSearcher, **options}
    return search_front(measure, OBJECTIVES, 24, directory=directory, identity=identity, **options)


def test_a_second_search_under_another_budget_evaluates_only_what_the_first_did_not(tmp_path):
    first, second, alone = Measuring(), Measuring(), Measuring()
    searched(first, tmp_path)
    front = searched(second, tmp_path, limits={"parameters": (30, 60)})
    assert not {*first.asked} & {*second.asked} and len({*second.asked}) == len(second.asked)
    expected = search_front(
        alone, OBJECTIVES, 24, model=MODEL, searcher=RegularizedEvolutionSearcher, limits={"parameters": (30, 60)}
    )
    assert len(second.asked) < len(alone.asked)
    assert str(front) == str(expected) and len(front.entries) == len(expected.entries)  # what is kept changes no result


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    whole, killed, resumed = Measuring(), Measuring(dies_after=21), Measuring()
    expected = searched(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        searched(killed, tmp_path / "killed")
    file = tmp_path / "killed" / "evaluations.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # in the midst of a line
    front = searched(resumed, tmp_path / "killed")
    assert killed.asked[:-1] + resumed.asked == whole.asked
    assert json.dumps(front.to_json()) == json.dumps(expected.to_json())
    assert file.read_bytes() == (tmp_path / "whole" / "evaluations.jsonl").read_bytes()


def test_of_other_weights_nothing_is_taken_and_a_function_has_to_say_its_own(tmp_path):
    first, other = Measuring(), Measuring()
    searched(first, tmp_path)
    searched(other, tmp_path, identity="weights of June")
    assert other.asked == first.asked
    with pytest.raises(TrainingError, match="identity"):
        searched(first, tmp_path, identity=None)


def test_a_line_that_was_changed_is_refused_by_its_number(tmp_path):
    searched(Measuring(), tmp_path)
    file = tmp_path / "evaluations.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace("accuracy", "accurate")
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(FileFormatError, match=r"line 3 of .*evaluations.jsonl is broken"):
        searched(Measuring(), tmp_path)


@pytest.mark.parametrize("moved", [None, "weights", "buffers", "data", "loss"])
def test_an_evaluator_knows_what_its_evaluations_are_of(tmp_path, moved, monkeypatch):
    X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    y = (X.sum(1) > 0).long()
    count = []
    run = SupernetEvaluator.run
    monkeypatch.setattr(SupernetEvaluator, "run", lambda self, X, path: count.append(1) or run(self, X, path))

    def evaluator():
        supernet = Supernet(new_model())
        if moved == "weights" and count:
            next(supernet.parameters()).data[0] += 1
        if moved == "buffers" and count:
            next(supernet.buffers()).data[0] += 1
        data = TensorDataset(X + 1 if moved == "data" and count else X, y)
        loss = nn.CrossEntropyLoss(label_smoothing=0.1 if moved == "loss" and count else 0.0)
        return SupernetEvaluator(supernet, (data, data), loss=loss)

    first = search_front(evaluator(), {"loss": "min"}, 5, directory=tmp_path)
    before = len(count)
    again = search_front(evaluator(), {"loss": "min"}, 5, directory=tmp_path)
    assert (len(count) == before) == (moved is None)
    assert (again.entries == first.entries) >= (moved is None)
