"""Convolutions that torch corrupts memory with in channels_last keep a model in torch's usual memory format."""

import pytest
import torch
from torch import nn

import supernet.nn
from supernet import ValueChoice
from supernet.execution.memory_format import choose_memory_format, give_back_strides


def plain(in_channels, kernel, stride):
    return nn.Conv2d(in_channels, 8, kernel, stride=stride)


@pytest.mark.parametrize(
    ("layer", "is_laid_out"),
    [
        (lambda: plain(4, 1, 2), False),
        (lambda: plain(4, 1, 1), True),
        (lambda: plain(4, 3, 2), True),
        (lambda: plain(16, 1, 2), True),
        (lambda: nn.Sequential(plain(4, 3, 1), nn.ReLU(), plain(8, 1, 2)), False),
        (lambda: supernet.nn.Conv2d(4, 8, ValueChoice([1, 3], label="kernel"), stride=2), False),
        (lambda: supernet.nn.Conv2d(4, 8, (ValueChoice([1, 3], label="kernel"), 3), stride=2), False),
        (lambda: supernet.nn.Conv2d(4, 8, ValueChoice([3, 5], label="kernel"), stride=2), True),
        (lambda: supernet.nn.Conv2d(4, 8, 1, stride=ValueChoice([1, 2], label="stride")), False),
    ],
)
def test_narrow_strided_kernels_of_one_pixel_are_not_laid_out(layer, is_laid_out):
    torch.manual_seed(0)
    model = layer()
    in_channels = 16 if getattr(model, "in_channels", 4) == 16 else 4
    X = torch.randn(2, in_channels, 8, 8)
    runs = type(model) in (nn.Conv2d, nn.Sequential)  # an elastic one does not before its sizes are decided
    assert choose_memory_format(model, X, (lambda X: model(X)) if runs else (lambda X: X)) is is_laid_out
    if is_laid_out:
        give_back_strides(model)
