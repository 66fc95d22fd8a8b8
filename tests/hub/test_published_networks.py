"""Published networks have exactly the parameters that their papers' code has, and its multiply-adds where it is known.

They are counted on the device "meta": nothing is computed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import supernet.hub
from supernet import LayerChoice, SearchSpace, freeze
from supernet.errors import ArchitectureError, ChoiceError
from supernet.hub import (
    DARTS_V1,
    DARTS_V2,
    FBNET_A,
    FBNET_B,
    FBNET_C,
    GDAS_V1,
    PC_DARTS_CIFAR,
    PC_DARTS_IMAGENET,
    PROXYLESS_CPU,
    PROXYLESS_CPU_WIDTHS,
    PROXYLESS_GPU,
    PROXYLESS_GPU_WIDTHS,
    PROXYLESS_MOBILE,
    PROXYLESS_MOBILE_14_WIDTHS,
    SPOS,
    Darts,
    FBNet,
    NasBench201,
    NasBenchMacro,
    ProxylessNas,
    ShuffleNetV2,
    darts_network,
    mobilenet_v3_large,
    shufflenet_v2_x1_0,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
GENOTYPES = DATA / "genotypes.json"
NAS_BENCH_201 = DATA / "nas_bench_201.npz"
NAS_BENCH_MACRO = DATA / "nas_bench_macro.npz"


@pytest.fixture(autouse=True, scope="module")
def _without_initial_weights():
    """Leave out what takes most of the time: on the device "meta" there are no values."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
            patch.setattr(layer, "reset_parameters", lambda self: None)
        yield


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def multiply_adds(network, *image):
    """Of convolutions and linear layers, for one image."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        network.eval()(torch.empty(1, *image))
    return counter.get_total_flops() // 2


# --- DARTS -------------------------------------------------------------------------------------------------

CELLS = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "GDAS_V1": GDAS_V1,
    "PC_DARTS_cifar": PC_DARTS_CIFAR,
    "PC_DARTS_image": PC_DARTS_IMAGENET,
}


@pytest.mark.skipif(not GENOTYPES.exists(), reason="shared/data/genotypes.json is not here")
@pytest.mark.parametrize("name", [*CELLS, "NASNet", "AmoebaNet"])
def test_networks_of_published_cells_have_their_number_of_parameters(name):
    genotype = json.loads(GENOTYPES.read_text())[name]
    with torch.device("meta"):
        assert parameters(darts_network(genotype)) == genotype["parameters_cifar10_c36_l20"]
        assert darts_network(genotype, channels=4, layers=3)(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.fixture(scope="module")
def space_of_darts():
    with torch.device("meta"):
        return SearchSpace(Darts(channels=4, layers=3))


@pytest.mark.skipif(not GENOTYPES.exists(), reason="shared/data/genotypes.json is not here")
@pytest.mark.parametrize("name", CELLS)
def test_published_cells_as_architectures_are_those_of_their_papers(name, space_of_darts):
    genotype, architecture = json.loads(GENOTYPES.read_text())[name], CELLS[name]
    edges = {
        f"{kind}/{2 + position // 2}_{source}": operation
        for kind in ("normal", "reduce")
        for position, (operation, source) in enumerate(genotype[kind])
    }
    assert edges == {label: decision for label, decision in architecture.items() if "_" in label}
    assert space_of_darts.canonical(architecture).keys() == architecture.keys()


@pytest.mark.parametrize(
    ("options", "num_parameters", "of_head", "image"),
    [
        # The head's layers: a pointwise convolution, one of 2x2, their norms, and a linear layer.
        ({}, 3_349_342, 576 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10, (3, 32, 32)),
        # For ImageNet it lacks its last norm.
        (
            {"num_classes": 1000, "channels": 48, "layers": 14, "for_imagenet": True},
            4_718_752,
            768 * 128 + 2 * 128 + 128 * 768 * 4 + 768 * 1000 + 1000,
            (3, 224, 224),
        ),
    ],
    ids=["CIFAR", "ImageNet"],
)
def test_networks_of_darts_v2_have_the_papers_parameters_beside_those_of_the_head(
    options, num_parameters, of_head, image
):
    """The paper has 3.3 and 4.7 million, for its code leaves out parameters with "auxiliary" in their names."""
    with torch.device("meta"):
        network = darts_network(DARTS_V2, **options, auxiliary=True)
        logits, of_auxiliary = network(torch.empty(2, *image))
    assert logits.shape == of_auxiliary.shape == (2, options.get("num_classes", 10))
    assert sum(p.numel() for name, p in network.named_parameters() if "auxiliary" not in name) == num_parameters
    assert parameters(network) == num_parameters + of_head


def test_a_frozen_network_of_the_space_of_darts_has_the_parameters_of_the_published_one():
    with torch.device("meta"):
        frozen = freeze(Darts(channels=36, layers=4, affine=True), DARTS_V2)
        assert parameters(frozen) == parameters(darts_network(DARTS_V2, channels=36, layers=4))


def test_cells_that_are_neither_architecture_nor_genotype_are_refused():
    with pytest.raises(ArchitectureError, match=r"no architecture of Darts, nor a genotype: 'reduce/5' .*give what"):
        darts_network({label: decision for label, decision in DARTS_V2.items() if label != "reduce/5"})
    with pytest.raises(ChoiceError, match="no operation 'conv_9x9'"):
        darts_network({**DARTS_V2, "normal/2_0": "conv_9x9"})


# --- mobile networks ---------------------------------------------------------------------------------------

# What makes the space, the architecture, its parameters, and its multiply-adds for an image of 224x224.
NETWORKS = {
    # Parameters as osmr/imgclsmob counts them; the logs of mit-han-lab/proxylessnas have 320.4 M, 465.3 M and 439.2 M.
    "ProxylessNAS mobile": (ProxylessNas, PROXYLESS_MOBILE, 4_080_512, 320_427_584),
    "ProxylessNAS GPU": (lambda: ProxylessNas(widths=PROXYLESS_GPU_WIDTHS), PROXYLESS_GPU, 7_119_848, 465_260_160),
    "ProxylessNAS CPU": (lambda: ProxylessNas(widths=PROXYLESS_CPU_WIDTHS), PROXYLESS_CPU, 4_361_648, 439_243_864),
    "ProxylessNAS mobile 1.4": (
        lambda: ProxylessNas(widths=PROXYLESS_MOBILE_14_WIDTHS),
        PROXYLESS_MOBILE,
        6_857_568,
        580_883_408,
    ),
    # The paper has 4.3 M and 249 M for A. For B and C (4.5 M and 295 M, 5.5 M and 375 M) the authors published networks
    # that are a little larger: osmr/imgclsmob counts 5,572,200 of C.
    "FBNet-A": (lambda: FBNet(widths=(16, 16, 24, 32, 64, 112, 184, 352, 1504)), FBNET_A, 4_321_464, 249_921_848),
    "FBNet-B": (FBNet, FBNET_B, 4_863_288, 306_210_888),
    "FBNet-C": (FBNet, FBNET_C, 5_572_200, 384_960_160),
    # The authors' code states 3.5 M and 323 M.
    "SPOS": (ShuffleNetV2, SPOS, 3_558_464, 322_918_720),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_have_their_number_of_parameters_and_multiply_adds(name):
    make, architecture, num_parameters, num_multiply_adds = NETWORKS[name]
    with torch.device("meta"):
        network = freeze(make(), architecture)
    assert parameters(network) == num_parameters
    assert multiply_adds(network, 3, 224, 224) == num_multiply_adds


@pytest.mark.parametrize(
    ("make", "num_parameters", "num_multiply_adds"),
    [
        (mobilenet_v3_large, 5_483_032, 216_589_760),  # 219 M in the paper
        (shufflenet_v2_x1_0, 2_278_604, 144_907_992),  # 146 M in the paper
    ],
)
def test_networks_that_torchvision_has_have_the_parameters_that_it_counts(make, num_parameters, num_multiply_adds):
    with torch.device("meta"):
        network = make()
    assert parameters(network) == num_parameters
    assert multiply_adds(network, 3, 224, 224) == num_multiply_adds


# --- benchmarks of all networks of a space -----------------------------------------------------------------


def counted(model, monkeypatch):
    """Return parameters and multiply-adds: of what no choice decides, and (label, decision) -> of that decision.

    One pass runs every candidate. They add up, since all candidates of these spaces give the same shape.
    """
    of_decisions, counter = {}, FlopCounterMode(display=False)

    def forward(choice, x):
        for name, candidate in zip(choice.names, choice, strict=True):
            before = counter.get_total_flops()
            y = candidate(x)
            numbers = np.array([parameters(candidate), (counter.get_total_flops() - before) // 2])
            key = choice.label, name
            of_decisions[key] = of_decisions.get(key, 0) + numbers
        return y

    monkeypatch.setattr(LayerChoice, "forward", forward, raising=False)
    with counter, torch.device("meta"), torch.no_grad():
        model.eval()(torch.empty(1, 3, 32, 32))
    of_all = np.array([parameters(model), counter.get_total_flops() // 2])
    return of_all - sum(of_decisions.values()), of_decisions


@pytest.mark.skipif(not NAS_BENCH_MACRO.exists(), reason="shared/data/nas_bench_macro.npz is not here")
def test_all_networks_of_nas_bench_macro_have_the_parameters_and_flops_of_the_benchmark(monkeypatch):
    with torch.device("meta"):
        model = NasBenchMacro()
    benchmark = np.load(NAS_BENCH_MACRO)
    names = ("id", "ir_3x3_t3", "ir_5x5_t6")
    networks = [{f"layer_{i}": names[k] for i, k in enumerate(row)} for row in benchmark["architecture"]]
    for row in (0, 1234, 6560):
        with torch.device("meta"):
            network = freeze(model, networks[row])
        assert parameters(network) == benchmark["parameters"][row]
        assert multiply_adds(network, 3, 32, 32) == benchmark["flops"][row]
    of_rest, of_decisions = counted(model, monkeypatch)
    totals = np.array([of_rest + sum(of_decisions[decision] for decision in each.items()) for each in networks])
    assert len(totals) == 6561
    assert (totals == np.stack([benchmark["parameters"], benchmark["flops"]], 1)).all()


@pytest.mark.skipif(not NAS_BENCH_201.exists(), reason="shared/data/nas_bench_201.npz is not here")
def test_all_cells_of_nas_bench_201_have_the_parameters_and_flops_of_the_benchmark(monkeypatch):
    with torch.device("meta"):
        model = NasBench201()
    benchmark = np.load(NAS_BENCH_201)
    operations = list(map(str, benchmark["operations"]))
    labels = [f"cell__{source}_{target}" for source, target in benchmark["edge"]]
    row = 6111  # the best on CIFAR-10
    with torch.device("meta"):
        network = freeze(model, dict(zip(labels, (operations[k] for k in benchmark["operation"][row]), strict=True)))
    assert parameters(network) == benchmark["parameters"][row, 0]
    of_rest, of_decisions = counted(model, monkeypatch)
    table = np.array([[of_decisions[label, name] for name in operations] for label in labels])
    totals = of_rest + table[range(6), benchmark["operation"]].sum(1)
    assert len(totals) == 15_625
    assert (totals[:, 0] == benchmark["parameters"][:, 0]).all()
    # With 100 classes, and with 120, the classifier has more rows of 64 weights and a bias.
    assert (totals[:, :1] + 65 * np.array([0, 90, 110]) == benchmark["parameters"]).all()
    # Its flops are multiply-adds, two for each value that a norm gives, one for a ReLU, nine for a pooling of 3x3; and
    # 160,832 of these outside cells.
    values = 5 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    is_convolution, is_pooling = (
        np.isin(benchmark["operation"], [operations.index(name) for name in of_kind]).sum(1)
        for of_kind in (["nor_conv_1x1", "nor_conv_3x3"], ["avg_pool_3x3"])
    )
    beside = 160_832 + 3 * values * is_convolution + 9 * values * is_pooling
    assert (totals[:, 1] + beside == benchmark["flops"][:, 0]).all()


def test_all_public_names_are_there():
    assert [name for name in supernet.hub.__all__ if not hasattr(supernet.hub, name)] == []
