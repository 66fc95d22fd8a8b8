"""A node of DARTS's cell adds up some of its edges, and every trainer can search which."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, ProxylessTrainer, SearchSpace, SinglePathTrainer, Supernet
from supernet.errors import ChoiceError
from supernet.hub.darts import Edges
from supernet.nn import Choice
from supernet.testing import check_choice


def edges(label="node"):
    operations = [
        LayerChoice({"linear": nn.Linear(3, 3), "tanh": nn.Tanh()}, label=f"{label}_{source}") for source in range(3)
    ]
    return Edges(operations, 2, label=label)


class Node(nn.Module):
    def __init__(self):
        super().__init__()
        self.node, self.classifier = edges(), nn.Linear(3, 2)

    def forward(self, x):
        return self.classifier(self.node([x, x.sin(), x.cos()]))


def test_edges_hold_what_choices_promise():
    check_choice(edges, [torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)])


def test_what_is_decided_on_an_edge_counts_only_where_it_is_chosen():
    assert SearchSpace(Node()).size == 3 * 2 * 2
    assert len(list(SearchSpace(Node()).enumerate())) == 3 * 2 * 2


def test_a_mixture_of_edges_is_twice_their_weighted_sum_where_two_are_chosen():
    torch.manual_seed(0)
    model, states = edges(), [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    host = nn.Sequential(model).double()
    linear = [edge["linear"] for edge in model.edges]
    supernet = Supernet(host)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    plan = {"node": weights} | {f"node_{source}": halves for source in range(3)}
    output = supernet(states, plan)
    mixed = [(layer(x) + x.tanh()) / 2 for layer, x in zip(linear, states, strict=True)]
    torch.testing.assert_close(output, 2 * sum(w * x for w, x in zip(weights, mixed, strict=True)))
    output.sum().backward()
    torch.testing.assert_close(weights.grad, 2 * torch.stack([x.sum() for x in mixed]))


def test_a_choice_of_sets_that_defines_no_mixture_is_refused_where_one_is_to_run():
    class Apart(Edges):
        mixed = Choice.mixed

    supernet = Supernet(nn.Sequential(Apart([nn.Identity(), nn.Tanh(), nn.ReLU()], 2, label="node")))
    with pytest.raises(ChoiceError, match="'node' takes 2 of 3 edges, of which no mixture is known"):
        supernet([torch.ones(1, 3)] * 3, {"node": torch.ones(3) / 3})


@pytest.mark.parametrize("trainer", [DartsTrainer, ProxylessTrainer, SinglePathTrainer])
def test_each_trainer_searches_edges(trainer):
    torch.manual_seed(0)
    model, data = Node(), TensorDataset(torch.randn(16, 3), torch.arange(16) % 2)
    search = trainer(model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.1), 1, data, batch_size=4)
    search.fit()
    SearchSpace(Node()).validate(search.export())
