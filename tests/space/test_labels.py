"""Labels of choices that have none of their own: the path in the model at hand."""

import os

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    LayerChoice,
    SearchSpace,
    freeze,
    load_architecture,
    replace_layer_choice,
    restore,
    save_architecture,
)
from supernet.errors import SpaceError
from supernet.execution import LayerSlot, Plan
from supernet.reports import plot_architecture


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.Tanh(), nn.ReLU()])
        self.op = LayerChoice({"deep": nn.Sequential(nn.Linear(3, 3), inner), "linear": nn.Linear(3, 3)})
        self.named = LayerChoice([nn.Tanh(), nn.ReLU()], label="named")

    def forward(self, x):
        return self.named(self.op(x))


class Wrap(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.m = body

    def forward(self, x):
        return self.m(x)


IN_BODY = ["op", "op.deep.1", "named"]
IN_WRAP = ["m.op", "m.op.deep.1", "named"]
ARCHITECTURE = {"m.op": "deep", "m.op.deep.1": "1", "named": "0"}


def test_labels_are_paths_in_the_model_at_hand_whatever_was_looked_at_before(tmp_path):
    body = Body()
    wrap = Wrap(body)
    spaces = [SearchSpace(model) for model in (body, wrap, body, wrap, Wrap(body))]
    assert [list(space) for space in spaces] == [IN_BODY, IN_WRAP, IN_BODY, IN_WRAP, IN_WRAP]
    assert spaces[1].fingerprint == spaces[3].fingerprint == SearchSpace(Wrap(Body())).fingerprint
    save_architecture(ARCHITECTURE, tmp_path / "a.json", SearchSpace(Wrap(Body())))
    assert load_architecture(tmp_path / "a.json", spaces[1]) == ARCHITECTURE
    x = torch.randn(2, 3)
    SearchSpace(body)
    expected = body.op["deep"][0](x).relu().tanh()
    assert torch.equal(freeze(wrap, ARCHITECTURE)(x), expected)
    assert torch.equal(freeze(body, {"op": "deep", "op.deep.1": "1", "named": "0"})(x), expected)


def test_a_supernet_keeps_its_labels_when_a_part_of_it_is_looked_at(tmp_path):
    torch.manual_seed(0)
    wrap = Wrap(Body())
    data = TensorDataset(torch.randn(32, 3), torch.arange(32) % 3)
    trainer = DartsTrainer(wrap, nn.functional.cross_entropy, None, SGD(wrap.parameters(), 0.1), 1, data, batch_size=8)
    assert list(SearchSpace(wrap.m)) == IN_BODY
    trainer.fit()
    SearchSpace(wrap.m)
    architecture = trainer.export()
    assert set(architecture) <= set(IN_WRAP)
    SearchSpace(wrap.m)
    plot_architecture(wrap, architecture, tmp_path / "architecture")
    freeze(wrap, architecture)
    assert list(SearchSpace(restore(wrap))) == IN_WRAP


def test_a_choice_by_itself_has_no_path_also_when_it_has_been_seen_in_a_model():
    body = Body()
    SearchSpace(body)
    with pytest.raises(SpaceError, match="has no path to be known by"):
        SearchSpace(body.op)


def averaged(model):
    return AveragedModel(model)


def of_ddp(model):
    return DistributedDataParallel(model)


@pytest.fixture(scope="module")
def one_process():
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrapper", [nn.DataParallel, of_ddp, averaged, torch.compile], ids=lambda w: w.__name__)
def test_wrappers_that_run_a_model_otherwise_change_no_path(wrapper, one_process):
    torch.manual_seed(0)
    model = Wrap(Body())
    x = torch.randn(2, 3)
    expected = freeze(model, ARCHITECTURE)(x)
    fingerprint = SearchSpace(model).fingerprint
    assert SearchSpace(wrapper(model)).fingerprint == fingerprint
    part = Wrap(wrapper(Body()))
    assert list(SearchSpace(part)) == IN_WRAP
    wrapped = wrapper(model)
    replaced = replace_layer_choice(wrapped, lambda choice: LayerSlot(choice, Plan(ARCHITECTURE)))
    assert [label for label, _ in replaced] == IN_WRAP
    assert torch.equal(next(wrapped.children())(x), expected)


def test_a_module_called_module_is_part_of_a_path():
    model = nn.ModuleDict({"module": LayerChoice([nn.Tanh(), nn.ReLU()])})
    assert list(SearchSpace(model)) == ["module"]
