"""Every trainer searches depths together with layers and widths inside the blocks, and exports what it has trained."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import (
    DartsTrainer,
    EnasTrainer,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    Repeat,
    SearchSpace,
    SinglePathTrainer,
    ValueChoice,
    accuracy,
    freeze,
    restore,
)


class Block(nn.Module):
    def __init__(self, position, width):
        super().__init__()
        self.up, self.down = supernet.nn.Linear(6, width), supernet.nn.Linear(width, 6)
        self.norm = nn.BatchNorm1d(6)
        self.act = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label=f"act{position}")

    def forward(self, x):
        return x + self.norm(self.down(self.act(self.up(x))))


def new_model():
    torch.manual_seed(0)
    depth, width = ValueChoice([0, 1, 2, 3], label="depth"), ValueChoice([2, 8], label="width")
    return nn.Sequential(nn.Linear(4, 6), Repeat(lambda i: Block(i, width), depth), nn.Linear(6, 2))


def reward(output, target):
    return accuracy(output, target).item()


KINDS = {
    "darts": (DartsTrainer, {}),
    "second order": (DartsTrainer, {"unrolled": True}),
    "lean": (DartsTrainer, {"memory": "lean"}),
    "proxyless": (ProxylessTrainer, {}),
    "single path": (SinglePathTrainer, {"num_evaluations": 6, "population": 4, "num_parents": 2}),
    "random": (RandomTrainer, {"num_samples": 4}),
    "enas": (EnasTrainer, {"num_samples": 3, "reward_function": reward}),
}


def test_the_space_has_each_depth_with_the_widths_and_layers_that_it_reaches():
    assert SearchSpace(new_model()).size == 1 + 2 * (2 + 4 + 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_searches_it_exports_what_it_has_trained(kind, tmp_path):
    cls, options = KINDS[kind]
    X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(X, (X.prod(1) > 0).long())

    def trainer(model, **more):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return cls(
            model, nn.CrossEntropyLoss(), accuracy, optimizer=optimizer, num_epochs=2, dataset=data, batch_size=8,
            progress=False, **options, **more,
        )  # fmt: skip

    model = new_model()
    keys, before = list(model.state_dict()), {name: value.clone() for name, value in model.state_dict().items()}
    searched = trainer(model, run_dir=tmp_path)
    searched.fit()
    assert list(model.state_dict()) == keys
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"0.weight", "2.weight", "1.0.up.weight", "1.0.norm.running_mean"} <= moved
    architecture = searched.export()
    searched.space.validate(architecture)
    measured = searched.evaluate(architecture)
    network = freeze(model, architecture).eval()
    assert not any(isinstance(module, supernet.nn.Mutable | supernet.nn.Choice) for module in network.modules())
    assert len(network[1]) == architecture["depth"]
    inputs, targets = map(
        torch.stack, zip(*searched.valid_part.unsharded(shuffle=False).loader.dataset.dataset, strict=True)
    )
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network(inputs), targets)
    if cls not in (SinglePathTrainer, RandomTrainer):  # which give each path statistics of its own
        assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    restore(model)
    assert list(model.state_dict()) == keys
    again = trainer(new_model(), run_dir=tmp_path)
    again.fit(resume="auto")  # finished: all of its state comes back
    assert again.export() == architecture
