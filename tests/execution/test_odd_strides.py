"""One image's first stride says nothing, so views have odd ones; results must not depend on them."""

import copy

import pytest
import torch
from torch import nn

from supernet import LayerChoice, replace_layer_choice
from supernet.execution import LayerSlot, Plan
from supernet.execution.fast.segment import normalized_gradients
from supernet.execution.fast.shared import one_pass

C = 4


def laid_out(tensor):
    """Yield one image or volume (1, C, ...) in each layout, with first strides that are canonical or odd."""
    *_, last = order = [0, *range(2, tensor.dim()), 1]
    behind = [0, tensor.dim() - 1, *range(1, tensor.dim() - 1)]
    assert last == 1
    for view in (tensor.contiguous(), tensor.permute(order).contiguous().permute(behind)):
        yield view
        for first in (1, C, 7):
            yield view.as_strided(view.shape, (first, *view.stride()[1:]))
    yield torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    yield tensor[0].movedim(0, -1).contiguous().movedim(-1, 0).unsqueeze(0)  # as a picture is read from a file


@pytest.mark.parametrize("sides", [(5,), (5, 6), (1, 6), (6, 1), (2, 3, 4), (1, 3, 1)], ids=str)
def test_the_gradient_of_a_batchnorm_is_that_of_its_formula_in_every_layout(sides):
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(1, C, *sides, dtype=torch.float64, generator=generator) for _ in range(2))
    gamma = torch.rand(C, dtype=torch.float64, generator=generator)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(sides)](C)
    leaf, scale = x.clone().requires_grad_(), gamma.clone().requires_grad_()
    others, column = [0, *range(2, x.dim())], [1, -1, *[1] * len(sides)]
    variance, mean = torch.var_mean(leaf, others, correction=0)
    rstd = torch.rsqrt(variance + norm.eps)
    y = (leaf - mean.view(column)) * rstd.view(column) * scale.view(column)
    expected = torch.autograd.grad(y, [leaf, scale], g)
    for x_laid_out in laid_out(x):
        for g_laid_out in laid_out(g):
            found = normalized_gradients(g_laid_out, x_laid_out, gamma, mean.detach(), rstd.detach(), norm, True)
            torch.testing.assert_close(found, (*expected, g.sum(others)))


def candidates():
    return {
        "pool": nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(C)),
        "average": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(C, affine=False)),
        "separable": nn.Sequential(
            *(nn.ReLU(), nn.Conv2d(C, C, 3, 1, 1, groups=C), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)),
            *(nn.ReLU(), nn.Conv2d(C, C, 5, 1, 2, groups=C), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)),
        ),
        "transposed": nn.Sequential(nn.ConvTranspose2d(C, C, 3, padding=1), nn.BatchNorm2d(C)),
        "conv": nn.Conv2d(C, C, 3, padding=1),
        "skip": nn.Identity(),
    }


def derivatives(output, leaves, g):
    first = torch.autograd.grad(output, leaves, g, create_graph=True)
    return first, torch.autograd.grad(sum(f.square().sum() for f in first), leaves)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters_in", [torch.contiguous_format, torch.channels_last], ids=str)
def test_first_and_second_derivatives_of_one_image_are_those_of_candidates_in_torchs_usual_layout(
    training, parameters_in
):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice(candidates(), label="op")).double().train(training)
    reference, plan = copy.deepcopy(model[0]), Plan()
    model.to(memory_format=parameters_in)
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    x, g = (torch.randn(1, C, 5, 6, dtype=torch.float64) for _ in range(2))
    p = torch.rand(len(reference), dtype=torch.float64, requires_grad=True)
    leaf = x.clone().requires_grad_()
    output = sum(weight * candidate(leaf) for weight, candidate in zip(p, reference, strict=True))
    expected = derivatives(output, [leaf, p, *reference.parameters()], g)
    plan["op"] = p
    layouts = list(laid_out(g))
    for k, view in enumerate(laid_out(x)):
        leaf = view.detach().requires_grad_()
        with one_pass():
            found = derivatives(model(leaf), [leaf, p, *model.parameters()], layouts[(3 * k + 1) % len(layouts)])
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)
