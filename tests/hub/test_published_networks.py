"""Published networks have exactly the parameters that their papers' code has, and its multiply-adds where it is known.

They are counted on the device "meta": nothing is computed.
"""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import supernet.hub
from supernet import SearchSpace, freeze
from supernet.errors import ArchitectureError, ChoiceError
from supernet.hub import DARTS_V1, DARTS_V2, GDAS_V1, PC_DARTS_CIFAR, PC_DARTS_IMAGENET, Darts, darts_network

DATA = Path(__file__).parents[3] / "shared" / "data"
GENOTYPES = DATA / "genotypes.json"


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


@pytest.mark.skipif(not GENOTYPES.exists(), reason="shared/data/genotypes.json is not here")
@pytest.mark.parametrize("name", CELLS)
def test_published_cells_as_architectures_are_those_of_their_papers(name):
    genotype, architecture = json.loads(GENOTYPES.read_text())[name], CELLS[name]
    edges = {
        f"{kind}/{2 + position // 2}_{source}": operation
        for kind in ("normal", "reduce")
        for position, (operation, source) in enumerate(genotype[kind])
    }
    assert edges == {label: decision for label, decision in architecture.items() if "_" in label}
    with torch.device("meta"):
        assert SearchSpace(Darts(channels=4, layers=3)).canonical(architecture).keys() == architecture.keys()


def test_networks_of_darts_v2_have_the_parameters_that_its_code_prints():
    """It prints 3.349342 and 4.718752 million, for it leaves the auxiliary head out, which has the rest."""
    with torch.device("meta"):
        assert parameters(darts_network(DARTS_V2)) == 3_349_342
        with_head = darts_network(DARTS_V2, auxiliary=True)
        # Its layers: a pointwise convolution, one of 2x2, their norms, and a linear layer.
        of_head = 36 * 4 * 4 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
        assert parameters(with_head) == 3_349_342 + of_head == 3_825_768
        assert [y.shape for y in with_head(torch.empty(2, 3, 32, 32))] == [(2, 10), (2, 10)]

        for_imagenet = {"num_classes": 1000, "channels": 48, "layers": 14, "for_imagenet": True}
        assert parameters(darts_network(DARTS_V2, **for_imagenet)) == 4_718_752
        with_head = darts_network(DARTS_V2, **for_imagenet, auxiliary=True)
        assert parameters(with_head) == 4_718_752 + 48 * 16 * 128 + 2 * 128 + 128 * 768 * 4 + 768 * 1000 + 1000
        assert [y.shape for y in with_head(torch.empty(2, 3, 224, 224))] == [(2, 1000), (2, 1000)]


def test_a_frozen_network_of_the_space_of_darts_has_the_parameters_of_the_published_one():
    with torch.device("meta"):
        frozen = freeze(Darts(channels=36, layers=8, affine=True), DARTS_V2)
        assert parameters(frozen) == parameters(darts_network(DARTS_V2, channels=36, layers=8))


def test_cells_that_are_neither_architecture_nor_genotype_are_refused():
    with pytest.raises(ArchitectureError, match=r"no architecture of Darts, nor a genotype: 'reduce/5' .*give what"):
        darts_network({label: decision for label, decision in DARTS_V2.items() if label != "reduce/5"})
    with pytest.raises(ChoiceError, match="no operation 'conv_9x9'"):
        darts_network({**DARTS_V2, "normal/2_0": "conv_9x9"})


def test_all_public_names_are_there():
    assert [name for name in supernet.hub.__all__ if not hasattr(supernet.hub, name)] == []
