"""Models whose layers take their sizes from the first batch."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, ProxylessTrainer, SinglePathTrainer
from supernet.errors import TrainingError

DATA = TensorDataset(torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)
pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


def net(lazy):
    layers = {
        "2.conv.weight": lambda: nn.LazyConv2d(4, 3, padding=1, bias=False),
        "1.running_mean": lambda: nn.LazyBatchNorm2d(affine=False),
        "4.weight": lambda: nn.LazyLinear(2),
    }
    given = {at: layers[at]() if at == lazy else None for at in layers}
    return nn.Sequential(
        nn.Conv2d(1, 4, 1),
        given["1.running_mean"] or nn.BatchNorm2d(4),
        LayerChoice({"conv": given["2.conv.weight"] or nn.Conv2d(4, 4, 1), "skip": nn.Identity()}, label="op"),
        nn.Flatten(),
        given["4.weight"] or nn.Linear(64, 2),
    )


@pytest.mark.parametrize("lazy", ["2.conv.weight", "1.running_mean", "4.weight"])
@pytest.mark.parametrize("trainer", [DartsTrainer, SinglePathTrainer, ProxylessTrainer])
def test_a_layer_without_sizes_is_refused_by_name_and_taken_once_a_batch_has_run_through_it(trainer, lazy):
    model = net(lazy)
    with pytest.raises(TrainingError, match=f"^{lazy} has no shape yet, for Lazy.* or run one batch through it"):
        trainer(model, nn.CrossEntropyLoss(), None, torch.optim.SGD(model.parameters(), 0.1), 1, DATA, batch_size=8)
    assert isinstance(model[2], LayerChoice)
    x = model[1](model[0](DATA.tensors[0]))
    for candidate in model[2]:
        y = candidate(x)
    model[4](model[3](y))
    trainer(model, nn.CrossEntropyLoss(), None, torch.optim.SGD(model.parameters(), 0.1), 1, DATA, batch_size=8)
