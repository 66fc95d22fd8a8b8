"""Kernels that are transformed step by step, as in Once-for-All (arXiv 1908.09791)."""

import torch
from torch import nn

from supernet import ValueChoice, freeze
from supernet.nn import Conv2d


def test_the_smallest_of_three_kernels_is_made_of_the_largest_in_two_steps():
    torch.manual_seed(0)
    kernel = ValueChoice([3, 5, 7], label="kernel")
    conv = Conv2d(2, 4, kernel, padding=kernel // 2, kernel_transform=True, dtype=torch.float64)
    with torch.no_grad():
        for matrix in conv.kernel_transforms.values():
            matrix.copy_(torch.randn_like(matrix))
    to_5, to_3 = conv.kernel_transforms["7to5"], conv.kernel_transforms["5to3"]
    expected_5 = (conv.weight[:, :, 1:-1, 1:-1].flatten(2) @ to_5.T).unflatten(2, (5, 5))
    expected_3 = (expected_5[:, :, 1:-1, 1:-1].flatten(2) @ to_3.T).unflatten(2, (3, 3))
    for size, expected in ((7, conv.weight), (5, expected_5), (3, expected_3)):
        torch.testing.assert_close(freeze(nn.Sequential(conv), {"kernel": size})[0].weight, expected)
