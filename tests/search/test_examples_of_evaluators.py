"""Costs of what runs are of the first sample that an evaluator measures, where no example is given."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import IterableDataset, TensorDataset

import supernet.nn as elastic
from supernet import SinglePathTrainer, Supernet, ValueChoice, accuracy
from supernet.errors import CostError
from supernet.search import SupernetEvaluator, search_front

WIDTHS = [2, 4, 8]


def net():
    width = ValueChoice(WIDTHS, label="width")
    return nn.Sequential(elastic.Linear(4, width), elastic.Linear(width, 2))


def data(samples=32):
    X = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(X, (X[:, 0] > 0).long())


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


def of_supernet(**options):
    return SupernetEvaluator(Supernet(net()), (data(), data()), metrics=accuracy, **options)


def of_trainer():
    model, loss = net(), nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), 0.1)
    return SinglePathTrainer(model, loss, accuracy, optimizer, 1, data(), num_evaluations=2, population=2).evaluator


@pytest.mark.parametrize("evaluator", [of_supernet, of_trainer])
def test_macs_are_those_of_one_sample_of_the_evaluators_data(evaluator):
    objectives = {"accuracy": "max", "macs": "min"}
    front = search_front(evaluator(), objectives, 9, limits={"macs": 30, "peak_memory": (0, None)}, progress=False)
    found = {entry.architecture["width"]: entry.costs["macs"] for entry in front.entries}
    assert found == {width: 4 * width + 2 * width for width in WIDTHS if 6 * width <= 30}


def test_an_example_that_is_given_is_the_one_that_counts():
    front = search_front(of_supernet(), {"macs": "min"}, 9, example=torch.randn(5, 4), progress=False)
    assert {entry.costs["macs"] / entry.architecture["width"] for entry in front.entries} == {5 * 6}


def test_taking_an_example_moves_no_random_numbers_and_no_data():
    evaluator = of_supernet(forward_fn=lambda model, X: model(X + torch.rand(())))
    before, measured = torch.get_rng_state(), evaluator({"width": 4})
    assert evaluator.example()[0].shape == (1, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluator({"width": 4}) == measured


def test_without_data_to_take_an_example_from_one_is_asked_for():
    def measured(architectures):
        return [{"accuracy": 1.0} for _ in architectures]

    untold = of_supernet(forward_fn=lambda model, X: X)  # which never calls the model
    for evaluate in (measured, SupernetEvaluator(Supernet(net()), (data(), Nothing()), metrics=accuracy), untold):
        model = evaluate.supernet.model if isinstance(evaluate, SupernetEvaluator) else net()
        with pytest.raises(CostError, match="the cost 'macs' is of a network that runs; give example="):
            search_front(evaluate, {"accuracy": "max"}, 5, model=model, limits={"macs": 30}, progress=False)
