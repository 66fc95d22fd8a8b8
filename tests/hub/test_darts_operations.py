"""The operations of DARTS's cells are as in its paper."""

import pytest
import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.hub import darts_candidates, darts_operation
from supernet.hub.darts import CANDIDATES, FactorizedReduce


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
