"""Networks that others wrote, made elastic: what comes out is what a narrower one of them computes."""

import copy
import random

import pytest
import torch
from tests.nn.networks_of_others import (
    BasicBlock,
    Bottleneck,
    DenseNet,
    GatedMlp,
    ResNet,
    UNet,
    VisionTransformer,
    WindowTransformer,
    gated_mlps,
    mobilenet,
    resnet18,
    resnet50,
    shufflenet,
)
from torch import nn

from supernet import SearchSpace, Supernet, ValueChoice, elastic, freeze, restore
from supernet.errors import ChoiceError
from supernet.execution import Selection
from supernet.nn.existing.elastic import decided


def image():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


NETWORKS = {
    "resnet18": (resnet18, image),
    "resnet50": (resnet50, image),
    "resnext": (lambda: resnet50(groups=4), image),
    "mobilenet with squeeze-and-excitation": (mobilenet, image),
    "unet": (UNet, image),
    "densenet": (DenseNet, image),
    "shufflenet": (shufflenet, image),
    "gated mlps": (gated_mlps, features),
    "vision transformer": (VisionTransformer, image),
    "window transformer": (WindowTransformer, image),
}


def made(name):
    make, batch = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model, batch()


def choices_of(model):
    return {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_widest_network_is_the_original_and_a_frozen_one_is_what_the_supernet_computes(name):
    model, x = made(name)
    original = copy.deepcopy(model)
    elastic(model, ratios=[0.5, 0.75, 1.0], example=x)
    widest = {label: max(candidates) for label, candidates in choices_of(model).items()}
    supernet = Supernet(model)
    assert torch.equal(supernet.eval()(x, widest), original.eval()(x))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        architecture = supernet.space.sample(generator)
        network = freeze(model, architecture)
        assert not [m for m in network.modules() if type(m).__module__.startswith("supernet")]
        for form in (False, True):
            torch.manual_seed(2)  # dropout
            expected = network.train(form)(x)
            torch.manual_seed(2)
            torch.testing.assert_close(supernet.train(form)(x, architecture), expected, atol=1e-10, rtol=0)
        # In training form both have moved the same running statistics.
        for (_, moved), (_, expected) in zip(
            freeze(model, architecture).named_buffers(), network.named_buffers(), strict=True
        ):
            torch.testing.assert_close(moved, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("resnet18", lambda: ResNet(BasicBlock, 1, width=4)),
        ("resnet50", lambda: ResNet(Bottleneck, 4, width=4)),
        ("resnext", lambda: ResNet(Bottleneck, 4, width=4, groups=2)),
        ("unet", lambda: UNet(4)),
        ("densenet", lambda: DenseNet(2)),
        ("gated mlps", lambda: nn.Sequential(nn.Linear(6, 4), GatedMlp(4, 8), GatedMlp(4, 8), nn.Linear(4, 3))),
        ("vision transformer", lambda: VisionTransformer(8, 2)),
        ("window transformer", lambda: WindowTransformer(4, 1)),
    ],
)
def test_half_of_all_widths_is_the_same_network_written_at_half_its_width(name, narrow):
    """The other has the norms' numbers of groups of the whole one, where half the channels are in half the groups."""
    model, x = made(name)
    elastic(model, ratios=[0.5, 1.0], example=x)
    network = freeze(model, {label: min(candidates) for label, candidates in choices_of(model).items()})
    reference = narrow().double()
    reference.load_state_dict(network.state_dict())
    if name == "unet":
        for module in reference.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = 2
    torch.testing.assert_close(network.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_restoring_the_original_gives_back_its_classes_and_weights(name):
    model, x = made(name)
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    parameters = list(model.parameters())
    elastic(model, ratios=[0.5, 1.0], example=x)
    Supernet(model)
    restore(model, original=True)
    assert [type(m) for m in model.modules()] == classes
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mixture_that_is_sure_of_each_width_is_that_path(name):
    model, x = made(name)
    elastic(model, ratios=[0.5, 1.0], example=x)
    choices = choices_of(model)
    supernet = Supernet(model).eval()
    rng = random.Random(0)
    architecture = {label: rng.choice(candidates) for label, candidates in choices.items()}
    certain = {
        label: torch.tensor([float(v == architecture[label]) for v in candidates], dtype=torch.float64)
        for label, candidates in choices.items()
    }
    if name == "window transformer":  # whose norm, of its own, takes means over channels
        with pytest.raises(ChoiceError, match=r"'patches\.out_channels' = 4 does not give what its path gives"):
            supernet(x, certain)
        return
    torch.testing.assert_close(supernet(x, certain), supernet(x, architecture))
    some = {label: Selection((architecture[label],), torch.ones(1).double()) for label in choices}
    torch.testing.assert_close(supernet(x, some), supernet(x, architecture))


def test_copies_and_files_of_an_elastic_model_go_on_as_it_does():
    model, x = made("densenet")
    elastic(model, ratios=[0.5, 1.0], example=x)
    twin = copy.deepcopy(model).eval()
    narrow = {label: min(candidates) for label, candidates in choices_of(model).items()}
    with decided(model.eval(), narrow), decided(twin, narrow):
        assert torch.equal(model(x), twin(x))
    assert SearchSpace(twin).size == SearchSpace(model).size == 2**4
    restore(twin, original=True)
    assert [type(m) for m in twin.modules()] == [type(m) for m in DenseNet().modules()]
