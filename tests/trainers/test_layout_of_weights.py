"""Models run in channels_last where they bear it; afterwards weights are laid out as their user had them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, freeze, restore, train
from supernet.trainers import Callback

LAST = torch.channels_last


def net(choice=True):
    torch.manual_seed(0)
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 4, 1))
    normed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    op = LayerChoice({"depthwise": depthwise, "normed": normed}, label="op") if choice else normed
    model = nn.Sequential(nn.Conv2d(3, 3, 3), op, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    model[2].to(memory_format=LAST)  # by its user
    return model


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(32, 3, 8, 8, generator=generator), torch.arange(32) % 2)


def loss(output, y):
    return nn.functional.cross_entropy(output, y)


def trainer_of(model, trainer_class=DartsTrainer, optimizer=Adam, **options):
    its_own = {"num_evaluations": 2} if trainer_class is SinglePathTrainer else {}
    options = {"num_epochs": 1, "batch_size": 8, "dataset": data(), **its_own, **options}
    return trainer_class(model, loss, None, optimizer(model.parameters(), 0.05), **options)


def strides(model):
    return {name: p.stride() for name, p in model.named_parameters()}


def check(model, trainer, expected):
    assert strides(model) == expected
    assert not any("_supernet_strides" in vars(module) for module in model.modules())
    for p in model.parameters():
        assert p.grad is None or p.grad.stride() == p.stride()
        for value in trainer.given_optimizer.state.get(p, {}).values():
            assert value.shape != p.shape or value.stride() == p.stride()


class Watches(Callback):
    def __init__(self, model):
        self.model, self.inside, self.frozen = model, [], None

    def step_ended(self, trainer):
        self.inside.append(all(p.is_contiguous(memory_format=LAST) for p in self.model.parameters() if p.dim() == 4))

    def epoch_ended(self, trainer, record):
        self.frozen = freeze(self.model, {"op": "depthwise"})


@pytest.mark.parametrize("trainer_class", [DartsTrainer, SinglePathTrainer])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_weights_are_laid_out_as_their_user_had_them_but_for_a_search(trainer_class, optimizer, tmp_path):
    model = net()
    expected = strides(model)
    watches = Watches(model)
    trainer = trainer_of(model, trainer_class, optimizer, callbacks=[watches])
    check(model, trainer, expected)
    trainer.fit()
    assert watches.inside
    assert all(watches.inside)
    check(model, trainer, expected)
    chosen = {name.replace("1.depthwise", "1"): s for name, s in expected.items() if "normed" not in name}
    assert strides(watches.frozen) == strides(freeze(model, {"op": "depthwise"})) == chosen
    assert trainer.given_optimizer.state or optimizer is SGD
    check(restore(model), trainer, expected)
    model[2].to(memory_format=torch.contiguous_format)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    parameters_to_vector(model.parameters())


def test_weights_are_as_their_user_had_them_after_an_error():
    model = net()
    expected = strides(model)

    class Breaks(Callback):
        def step_ended(self, trainer):
            raise ZeroDivisionError

    trainer = trainer_of(model, callbacks=[Breaks()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    check(model, trainer, expected)


def test_steps_outside_of_a_search_run_as_those_in_it_until_the_choices_are_put_back():
    model = net()
    expected = strides(model)
    trainer = trainer_of(model)
    batch = data().tensors
    trainer.train_step(*batch, *batch)
    assert all(p.is_contiguous(memory_format=LAST) for p in model.parameters() if p.dim() == 4)
    frozen = freeze(model, {"op": "normed"})
    assert strides(frozen)["0.weight"] == expected["0.weight"]
    for name, p in frozen.named_parameters():
        assert torch.equal(
            p, model.get_parameter(name.replace("1.", "1.normed.", 1) if name.startswith("1.") else name)
        )
    assert strides(restore(model)) == expected


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_training_a_network_leaves_the_layout_of_its_weights(optimizer):
    network = net(choice=False)
    expected, inside = strides(network), []
    network[0].register_forward_hook(
        lambda module, args, output: inside.append(module.weight.is_contiguous(memory_format=LAST))
    )
    stepper = optimizer(network.parameters(), 0.05)
    train(network, loss, None, stepper, 1, data(), batch_size=8, progress=False)
    assert inside[-1]
    assert strides(network) == expected
    for p in network.parameters():
        assert p.grad.stride() == p.stride()
        assert all(v.stride() == p.stride() for v in stepper.state.get(p, {}).values() if v.shape == p.shape)
