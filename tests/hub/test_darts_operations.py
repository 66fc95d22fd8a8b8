"""Networks of published genotypes have exactly the parameters that their papers' code has."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.hub import darts_candidates, darts_operation
from supernet.hub.darts import CANDIDATES, FactorizedReduce, relu_conv_norm

GENOTYPES = Path(__file__).parents[3] / "shared" / "data" / "genotypes.json"


class Cell(nn.Module):
    def __init__(self, genotype, c_before, c_in, channels, halves, halved_before):
        super().__init__()
        reduce = FactorizedReduce if halved_before else relu_conv_norm
        self.inputs = nn.ModuleList([reduce(c_before, channels), relu_conv_norm(c_in, channels)])
        kind = "reduce" if halves else "normal"
        self.edges, self.concat = genotype[kind], genotype[f"{kind}_concat"]
        self.operations = nn.ModuleList(
            darts_operation(name, channels, 2 if halves and source < 2 else 1) for name, source in self.edges
        )

    def forward(self, *inputs):
        states = [module(x) for module, x in zip(self.inputs, inputs, strict=True)]
        outputs = [None] * len(self.edges)
        for position, (_, source) in enumerate(self.edges):
            outputs[position] = self.operations[position](states[source])
            if position % 2:
                states.append(outputs[position - 1] + outputs[position])
        return torch.cat([states[i] for i in self.concat], 1)


class CifarNetwork(nn.Module):
    def __init__(self, genotype, channels=36, cells=20):
        super().__init__()
        c, c_stem = channels, 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, c_stem, 3, padding=1, bias=False), nn.BatchNorm2d(c_stem))
        self.cells, c_before, c_in, halved_before = nn.ModuleList(), c_stem, c_stem, False
        for i in range(cells):
            halves = i in (cells // 3, 2 * cells // 3)
            c = 2 * c if halves else c
            cell = Cell(genotype, c_before, c_in, c, halves, halved_before)
            self.cells.append(cell)
            c_before, c_in, halved_before = c_in, len(cell.concat) * c, halves
        self.classifier = nn.Linear(c_in, 10)

    def forward(self, x):
        before = x = self.stem(x)
        for cell in self.cells:
            before, x = x, cell(before, x)
        return self.classifier(x.mean((2, 3)))


@pytest.mark.skipif(not GENOTYPES.exists(), reason="shared/data/genotypes.json is not here")
@pytest.mark.parametrize(
    "name", ["NASNet", "AmoebaNet", "DARTS_V1", "DARTS_V2", "PC_DARTS_cifar", "PC_DARTS_image", "GDAS_V1"]
)
def test_networks_of_published_genotypes_have_their_number_of_parameters(name):
    genotype = json.loads(GENOTYPES.read_text())[name]
    with torch.device("meta"):
        network = CifarNetwork(genotype)
        output = network(torch.empty(2, 3, 32, 32))
    assert output.shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == genotype["parameters_cifar10_c36_l20"]


@pytest.mark.parametrize("stride", [1, 2])
def test_candidates_of_an_edge_agree_in_shape_and_are_named_as_in_the_paper(stride):
    x = torch.randn(2, 4, 8, 8)
    candidates = darts_candidates(4, stride)
    assert tuple(candidates) == CANDIDATES
    assert {tuple(candidate(x).shape) for candidate in candidates.values()} == {(2, 4, 8 // stride, 8 // stride)}
    assert not candidates["none"](x).any()
    norms = [m for c in candidates.values() for m in c.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (8 if stride == 1 else 9) and not any(norm.affine for norm in norms)


def test_one_half_of_a_factorized_reduction_sees_even_positions_and_the_other_odd_ones():
    reduce = FactorizedReduce(1, 2).eval()
    with torch.no_grad():
        reduce.even.weight.fill_(1), reduce.odd.weight.fill_(1)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    scale = (1 + reduce.norm.eps) ** 0.5  # of a norm that has seen nothing
    even, odd = reduce(image)[0] * scale
    torch.testing.assert_close(even, torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    torch.testing.assert_close(odd, torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


def test_an_operation_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(ChoiceError, match=r"no operation 'sep_conv_9x9'; it has: none, .*sep_conv_7x7"):
        darts_operation("sep_conv_9x9", 4)
    with pytest.raises(ChoiceError, match="an even number of channels, not 3"):
        darts_operation("skip_connect", 3, stride=2)
