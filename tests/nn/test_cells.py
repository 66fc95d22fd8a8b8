"""Cells are made of choices, run in a supernet, and freeze into modules of torch's own."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import Cell, DartsTrainer, NasBench201Cell, SearchSpace, fixed_architecture, freeze
from supernet.errors import ChoiceError


class Net(nn.Module):
    def __init__(self, label="cell"):
        super().__init__()
        self.first = Cell({"conv": nn.Conv2d(3, 3, 1), "pool": nn.AvgPool2d(3, 1, 1)}, 2, 2, 2, label=label)
        factories = {"conv": lambda i, o: nn.Conv2d(i, o, 1), "norm": lambda i, o: norm(i, o)}
        self.second = NasBench201Cell(factories, 6, 4, num_tensors=3, label=label and f"{label}201")

    def forward(self, x):
        return self.second(self.first([x, x.sin()])).mean((2, 3))


def norm(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))


ARCHITECTURE = {
    "cell__op_0_0": "conv",
    "cell/input_0_0": [1],
    "cell__op_0_1": "pool",
    "cell/input_0_1": [0],
    "cell__op_1_0": "conv",
    "cell/input_1_0": [2],
    "cell__op_1_1": "conv",
    "cell/input_1_1": [0],
    "cell201__0_1": "norm",
    "cell201__0_2": "conv",
    "cell201__1_2": "norm",
}


def by_hand(network, x):
    """What the architecture above says, written out."""
    ops, layers = network.first.ops, network.second.layers
    states = [x, x.sin()]
    states.append(getattr(ops, "0")._modules["0"](states[1]) + getattr(ops, "0")._modules["1"](states[0]))
    states.append(getattr(ops, "1")._modules["0"](states[2]) + getattr(ops, "1")._modules["1"](states[0]))
    x = torch.cat(states[2:], 1)
    one = layers._modules["0"]._modules["0"](x)
    two = layers._modules["1"]._modules["0"](x) + layers._modules["1"]._modules["1"](one)
    return two.mean((2, 3))


def test_labels_and_decisions_are_those_of_retiarii():
    space = SearchSpace(Net())
    assert sorted(space) == sorted(ARCHITECTURE)
    assert str(space["cell/input_1_0"]) == "1 of 3 inputs"
    assert space.size == (2**4 * 2**2 * 3**2) * 2**3


def test_an_unlabelled_cell_is_known_by_its_paths():
    assert "first.ops.0.1" in SearchSpace(Net(None))
    assert "second.layers.1.0" in SearchSpace(Net(None))


def test_a_frozen_cell_does_what_is_decided_and_nothing_of_this_library_is_left_in_it():
    torch.manual_seed(0)
    network = freeze(Net(), ARCHITECTURE).eval()
    assert {type(m).__module__.split(".")[0] for m in network.modules()} - {__name__.split(".")[0]} == {"torch"} | (
        {type(network.first).__module__.split(".")[0]}
    )
    assert isinstance(network.first, fx.GraphModule)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(network(x), by_hand(network, x))


@pytest.mark.slow
def test_a_frozen_cell_is_read_where_this_library_is_not_installed(tmp_path):
    network = freeze(nn.Sequential(Net().second), {k: v for k, v in ARCHITECTURE.items() if "201" in k}).eval()
    x = torch.randn(2, 6, 5, 5)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps((network, x, network(x))))
    code = (
        "import pickle, sys, torch; sys.modules['supernet'] = None\n"
        f"network, x, y = pickle.load(open({str(tmp_path / 'net.pkl')!r}, 'rb'))\n"
        "torch.testing.assert_close(network(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cell_built_inside_fixed_architecture_is_the_frozen_one():
    torch.manual_seed(0)
    frozen = freeze(Net(), ARCHITECTURE)
    torch.manual_seed(0)
    with fixed_architecture(ARCHITECTURE):
        built = Net()
    assert isinstance(built.first, fx.GraphModule)
    assert list(built.state_dict()) == list(frozen.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(built(x), frozen(x))


def test_a_cell_within_a_cells_candidate_and_a_cell_that_is_the_model_freeze_too():
    inner = Cell([nn.Identity(), nn.Tanh()], 1, label="inner")
    outer = Cell({"deep": Within(inner), "flat": nn.Identity()}, 1, label="outer")
    network = freeze(outer, {"outer__op_0_0": "deep", "outer/input_0_0": 0, "inner__op_0_0": 1, "inner/input_0_0": 0})
    x = torch.randn(2, 3)
    assert torch.equal(network([x]), x.tanh())
    assert not any(type(module).__module__.startswith("supernet") for module in network.modules())


class Within(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return self.cell([x])


def test_cells_are_searched_like_any_model():
    torch.manual_seed(0)
    model = nn.Sequential(Net(), nn.Linear(4, 2))
    data = TensorDataset(torch.randn(16, 3, 5, 5), torch.arange(16) % 2)
    trainer = DartsTrainer(
        model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.1), 1, data, batch_size=4
    )
    trainer.fit()
    network = freeze(model, trainer.export())
    assert network(torch.randn(2, 3, 5, 5)).shape == (2, 2)


def test_candidates_are_copied_for_each_operation_or_made_by_a_function():
    given = nn.Linear(3, 3)
    cell = Cell([given, nn.Identity()], 2)
    assert len({id(ops[0][0]) for ops in cell.ops} | {id(given)}) == 3
    made = []
    Cell(lambda: made.append(1) or {"a": nn.Identity()}, 2, 2)
    assert len(made) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cell([nn.Identity()], 0), "num_nodes is a number from 1 on, not 0"),
        (lambda: Cell([nn.Identity()], 1, merge_op="loose_end"), "merge_op is 'all', .* not 'loose_end'"),
        (lambda: Cell([], 1), "needs at least one candidate"),
        (lambda: NasBench201Cell([nn.Linear], 3, 3, num_tensors=1), "num_tensors is a number from 2 on, not 1"),
    ],
)
def test_what_cannot_be_a_cell_is_refused(make, message):
    with pytest.raises(ChoiceError, match=message):
        make()
