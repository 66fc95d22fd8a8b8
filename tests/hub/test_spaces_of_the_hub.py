"""Spaces of the hub: their papers' numbers of architectures; paths, mixtures and frozen networks compute the same."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tests.hub.small_spaces import SMALL
from torch import nn

from supernet import SearchSpace, Supernet, fixed_architecture, freeze
from supernet.errors import SupernetError
from supernet.hub import Darts, FBNet, MobileNetV3, NasBench201, NasBenchMacro, ProxylessNas, ShuffleNetV2

SIZES = [
    (Darts, (180 * 7**8) ** 2),  # 1 * 3 * 6 * 10 pairs of inputs and 7^8 operations of each of two cells
    (NasBench201, 15_625),
    (NasBenchMacro, 6_561),
    (ProxylessNas, 6**6 * 7**15),  # the first block of a stage cannot be skipped
    (FBNet, 9**22),
    (ShuffleNetV2, 4**20),
    (MobileNetV3, (9**2 + 9**3 + 9**4) ** 5),  # a stage of 2, 3 or 4 blocks, each of 3 kernels and 3 expansions
]


@pytest.mark.parametrize(("make", "size"), SIZES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_space_has_its_papers_number_of_architectures(make, size):
    with torch.device("meta"):
        assert SearchSpace(make()).size == size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProxylessNas(widths=(8, 8, 8, 8)), r"6 stages have 9 widths .* and 7 strides .*, not 4 and 7"),
        (lambda: FBNet(strides=(1, 2)), r"7 stages have 9 widths .* and 8 strides .*, not 9 and 2"),
        (lambda: MobileNetV3(strides=(1, 2)), r"one to five stages, not 1 .*, with 4 more widths .*, not 9"),
        (lambda: ShuffleNetV2(depths=(1, 1)), r"2 stages have 4 widths .*, not 6"),
        (lambda: ShuffleNetV2(widths=(8, 9, 8), depths=(1,)), "even number of channels, not 9"),
        (lambda: ProxylessNas(depths=(4, 0, 4, 4, 4, 1)), r"depths\[1\] is a whole number from 1 on, not 0"),
        (lambda: FBNet(strides=(2, 1, 2, 2, 0, 1, 2, 1)), r"strides\[4\] is a whole number from 1 on, not 0"),
        (lambda: MobileNetV3(depths=(2, 3.5)), r"depths\[1\] is a whole number from 1 on, not 3.5"),
        (lambda: NasBenchMacro(stages=(2, 0)), r"stages\[1\] is a whole number from 1 on, not 0"),
        (lambda: Darts(layers=1), "layers is a whole number from 2 on, not 1"),
        (lambda: Darts(channels=1, for_imagenet=True), "channels is a whole number from 2 on, not 1"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(make, message):
    with torch.device("meta"), pytest.raises(SupernetError, match=message):
        make()


class Small(NamedTuple):
    make: Callable[[], nn.Module]
    model: nn.Module
    X: torch.Tensor


@pytest.fixture(params=SMALL)
def small(request):
    """What makes a small model, one in float64, and a batch."""
    make, shape = SMALL[request.param]
    torch.manual_seed(0)
    return Small(make, make().double(), torch.randn(shape, dtype=torch.float64))


def architectures(space, count=2):
    generator = torch.Generator().manual_seed(1)
    return [space.sample(generator) for _ in range(count)]


def one_hot(space, architecture):
    """Return a mixture that has the whole weight on what an architecture decides."""
    plan = {}
    for label, domain in space.items():
        weights = torch.zeros(len(domain.options), dtype=torch.float64)
        # What is not reached has some weights too.
        chosen = domain.positions(architecture[label] if label in architecture else next(iter(domain)))
        weights[list(chosen)] = 1 / len(chosen)
        plan[label] = weights
    return plan


def test_a_path_gives_what_its_frozen_network_gives(small):
    supernet, X = Supernet(small.model), small.X
    for architecture in architectures(supernet.space):
        network = freeze(small.model, architecture)
        for is_training in (True, False):
            supernet.train(is_training), network.train(is_training)
            assert (supernet(X, architecture) - network(X)).abs().max() < 1e-10


def test_a_mixture_of_one_architecture_is_its_path(small):
    supernet, X = Supernet(small.model), small.X
    for architecture in architectures(supernet.space):
        expected = supernet(X, architecture)
        assert (supernet(X, one_hot(supernet.space, architecture)) - expected).abs().max() < 1e-10


def test_a_frozen_network_is_as_one_built_for_its_architecture_of_modules_of_torch_only(small):
    model, make = small.model, small.make
    (architecture,) = architectures(SearchSpace(model), 1)
    with fixed_architecture(architecture):
        built = make()
    for network in (built, freeze(model, architecture)):
        assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"torch"}
        shapes = [(name, p.shape) for name, p in network.named_parameters()]
        assert shapes == [(name, p.shape) for name, p in built.named_parameters()]
