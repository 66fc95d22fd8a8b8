"""Buffers that are no dense tensors of their own: expanded, sparse, views of others."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, freeze
from supernet.errors import FileFormatError, TrainingError
from supernet.execution.state import Buffers
from supernet.files.checkpoint import read_checkpoint, write_checkpoint

MATRIX = torch.eye(4) + torch.eye(4).roll(1, 0)
KINDS = {
    "expanded": lambda: torch.tensor([[0.5], [2.0]]).expand(2, 4),
    "expanded twice": lambda: torch.tensor(0.5).expand(2, 4),
    "coo": MATRIX.to_sparse,
    "coo with repetitions": lambda: torch.sparse_coo_tensor(
        [[0, 0, 2], [1, 1, 3]], [1.0, 2.0, 3.0], (4, 4), check_invariants=True
    ),
    "csr": MATRIX.to_sparse_csr,
    "csc": MATRIX.to_sparse_csc,
    "bsr": lambda: MATRIX.to_sparse_bsr((2, 2)),
    "bsc": lambda: MATRIX.to_sparse_bsc((2, 2)),
}
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")


def dense(tensor):
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


class Holder(nn.Module):
    """Moves its buffer in each forward in training, by what may be written to."""

    def __init__(self, kind):
        super().__init__()
        self.register_buffer("table", KINDS[kind]())

    def moved(self):
        table = self.table
        if table.layout != torch.strided:
            return table.values() if table.layout != torch.sparse_coo else table._values()
        return table[:, :1] if table.stride(0) else table[:1, :1]

    def forward(self, x):
        if self.training:
            self.moved().add_(1)
        return x + dense(self.table).sum() * 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_come_back_to_their_values(kind):
    module = Holder(kind)
    before, table = dense(module.table).clone(), module.table
    with Buffers(module).preserve():
        module(torch.ones(1))
        assert not torch.equal(dense(module.table), before)
    assert module.table is table
    assert torch.equal(dense(table), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_any_tensor(kind, tmp_path):
    tensor = KINDS[kind]()
    write_checkpoint(tmp_path / "one", {"here": [tensor]})
    (read,) = read_checkpoint(tmp_path / "one")["here"]
    assert (read.layout, read.shape, read.dtype) == (tensor.layout, tensor.shape, tensor.dtype)
    assert torch.equal(dense(read), dense(tensor))
    if tensor.layout == torch.sparse_coo:
        assert read.is_coalesced() == tensor.is_coalesced()


def test_what_a_checkpoint_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(TrainingError, match=r"state\.here is a tensor of layout torch._mkldnn"):
        write_checkpoint(tmp_path / "one", {"here": torch.ones(2).to_mkldnn()})


def test_parts_that_make_no_sparse_tensor_are_refused(tmp_path, monkeypatch):
    broken = MATRIX.to_sparse()
    broken._indices()[0, 0] = 99
    write_checkpoint(tmp_path / "one", {"here": broken})
    with pytest.raises(FileFormatError, match="one: its content cannot be read: RuntimeError: size is inconsistent"):
        read_checkpoint(tmp_path / "one")


@pytest.mark.parametrize(
    ("trainer", "kind"),
    [(DartsTrainer, "expanded"), (DartsTrainer, "csr"), (SinglePathTrainer, "coo with repetitions")],
)
def test_a_search_goes_on_with_such_a_buffer_bit_for_bit(trainer, kind, tmp_path):
    data = TensorDataset(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)

    def made(num_epochs, directory):
        torch.manual_seed(0)
        choice = LayerChoice([nn.Linear(4, 4), nn.Identity()], label="a")
        model = nn.Sequential(Holder(kind), choice, nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        loss = nn.CrossEntropyLoss()
        return trainer(model, loss, None, optimizer, num_epochs, data, batch_size=4, run_dir=directory)

    whole = made(2, tmp_path / "whole")
    whole.fit()
    first = made(1, tmp_path / "parts")
    first.fit()
    second = made(2, tmp_path / "parts")
    second.fit(resume="auto")
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(dense(whole.model[0].table), dense(second.model[0].table))
    network = freeze(whole.model, whole.export())
    assert torch.equal(dense(network[0].table), dense(whole.model[0].table))
    assert network[0].table is not whole.model[0].table
