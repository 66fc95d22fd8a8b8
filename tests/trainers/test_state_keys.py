"""A model that a trainer has taken over gives and takes the keys of the model as written; old checkpoints load."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from searches import Net, search
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, freeze
from supernet.execution import LayerSlot, Plan, replace_layer_choice
from supernet.execution.slot import former_names
from supernet.files.checkpoint import read_checkpoint
from supernet.retiarii.oneshot.pytorch.darts import DartsLayerChoice
from supernet.retiarii.oneshot.pytorch.random import PathSamplingLayerChoice

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("kind", ["first order", "lean", "single path", "proxyless", "enas", "path"])
def test_a_model_keeps_the_keys_as_written_under_a_trainer(kind):
    torch.manual_seed(0)
    written, parameters = list(Net().state_dict()), list(tensors(Net()))
    trainer = search(kind, num_epochs=1)
    assert list(trainer.model.state_dict()) == written
    trainer.fit()
    state = trainer.model.state_dict()
    assert list(state) == written and list(tensors(trainer.model)) == parameters
    fresh = Net()
    fresh.load_state_dict(state)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name])
    given = {name: torch.full_like(tensor, 2) for name, tensor in Net().state_dict().items()}
    trainer.model.load_state_dict(given)
    assert all((tensor == 2).all() for tensor in tensors(trainer.model).values())


class Deep(nn.Module):
    """A choice in a choice in a choice, and one that stands in two places."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"a": nn.Linear(2, 2), "b": nn.BatchNorm1d(2)}, label="inner")
        middle = LayerChoice({"direct": inner, "wrapped": nn.Sequential(nn.Linear(2, 2), inner)}, label="middle")
        self.outer = LayerChoice([nn.Sequential(middle), nn.Linear(2, 2)], label="outer")


@pytest.mark.parametrize("layer", [LayerSlot, DartsLayerChoice, PathSamplingLayerChoice])
def test_keys_are_as_written_also_of_choices_in_choices(layer):
    model, plan = Deep(), Plan()
    replace_layer_choice(model, lambda choice: layer(choice, plan))
    assert list(model.state_dict()) == list(Deep().state_dict())
    assert list(tensors(model)) == list(tensors(Deep()))
    assert [*model.outer.candidates] == ["0", "1"]


@pytest.mark.parametrize("trainer_class", [DartsTrainer, SinglePathTrainer])
def test_candidates_may_have_the_names_of_what_stands_in_the_place_uses_itself(trainer_class):
    names = ["plan", "lean", "candidates", "_one_by_one", "trace", "explain", "_traced", "_names"]
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice({name: nn.Linear(2, 2) for name in names}, label="op"))
    twin = nn.Sequential(LayerChoice({name: nn.Linear(2, 2) for name in names}, label="op"))
    data = TensorDataset(torch.randn(16, 2), torch.randint(2, (16,)))
    loss = nn.functional.cross_entropy
    options = {"num_evaluations": 2} if trainer_class is SinglePathTrainer else {}
    trainer = trainer_class(model, loss, None, SGD(model.parameters(), 0.1), 1, data, batch_size=4, **options)
    trainer.fit()
    twin.load_state_dict(model.state_dict())
    X = torch.randn(3, 2)
    for k, name in enumerate(names):
        plan = {"op": name} if trainer_class is SinglePathTrainer else {"op": torch.eye(len(names))[k]}
        expected = freeze(twin, {"op": name})(X)
        assert torch.allclose(trainer.distributed.forward_local(X, plan), expected)
        assert torch.equal(freeze(model, {"op": name})(X), expected)


@pytest.mark.parametrize(("kind", "file"), [("first order", "darts"), ("single path", "single_path")])
def test_checkpoints_from_when_candidates_had_a_module_of_their_own_load(kind, file, tmp_path):
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "old" / "checkpoints" / "step-000000000006.safetensors"
    shutil.copy(CHECKPOINTS / f"{file}.safetensors", path)
    trainer = search(kind, num_epochs=1)
    trainer.fit(resume=tmp_path / "old")
    saved = load_file(path)
    found = {f"state.parameters.{name}": p for name, p in trainer.model.named_parameters()}
    found |= {f"state.buffers.{name}": b for name, b in trainer.model.named_buffers()}
    for name, tensor in found.items():
        assert torch.equal(tensor, saved[name.replace("stem.", "stem.candidates.")]), name
    momenta = [trainer.given_optimizer.state[p]["momentum_buffer"] for p in trainer.model.parameters()]
    states = read_checkpoint(path)["optimizer"]["state"]
    assert all(torch.equal(m, states[k]["momentum_buffer"]) for k, m in enumerate(momenta))
    search(kind, num_epochs=2).fit(resume=tmp_path / "old")


def test_former_names_have_candidates_after_each_slot():
    model, plan = Deep(), Plan()
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    assert former_names(model, [name for name, _ in model.named_parameters()]) == [
        "outer.candidates.0.0.candidates.direct.candidates.a.weight",
        "outer.candidates.0.0.candidates.direct.candidates.a.bias",
        "outer.candidates.0.0.candidates.direct.candidates.b.weight",
        "outer.candidates.0.0.candidates.direct.candidates.b.bias",
        "outer.candidates.0.0.candidates.wrapped.0.weight",
        "outer.candidates.0.0.candidates.wrapped.0.bias",
        "outer.candidates.1.weight",
        "outer.candidates.1.bias",
    ]
