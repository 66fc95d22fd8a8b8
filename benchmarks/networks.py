"""The networks that the benchmarks search, written once for all contestants.

Each is built from `choice(label, candidates)`, which a contestant gives: a `LayerChoice`, or a mixture of its own. So
all contestants have the same weights after the same seed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from supernet.hub.darts import FactorizedReduce, Zero, darts_candidates, relu_conv_norm

Choice = Callable[[str, dict[str, nn.Module]], nn.Module]


# --- DARTS's search network for CIFAR (arXiv 1806.09055) ---------------------------------------------------


class DartsCell(nn.Module):
    """Four nodes, each the sum of an edge from both inputs and from every node before."""

    def __init__(self, c_before: int, c_in: int, c: int, halved_before: bool, halves: bool, choice: Choice) -> None:
        super().__init__()
        reduce = FactorizedReduce if halved_before else relu_conv_norm
        self.first = reduce(c_before, c, affine=False)
        self.second = relu_conv_norm(c_in, c, affine=False)
        kind = "reduce" if halves else "normal"
        self.edges = nn.ModuleList(
            nn.ModuleList(
                choice(f"{kind}/{node}_{j}", darts_candidates(c, 2 if halves and j < 2 else 1)) for j in range(2 + node)
            )
            for node in range(4)
        )

    def forward(self, before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        states = [self.first(before), self.second(x)]
        for edges in self.edges:
            states.append(sum(edge(state) for edge, state in zip(edges, states, strict=True)))
        return torch.cat(states[2:], 1)


class DartsNetwork(nn.Module):
    """A stem, cells of which those at one and two thirds halve the image, and a classifier."""

    def __init__(self, choice: Choice, cells: int, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        c = channels
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * c, 3, padding=1, bias=False), nn.BatchNorm2d(3 * c))
        self.cells = nn.ModuleList()
        c_before, c_in, halved_before = 3 * c, 3 * c, False
        for i in range(cells):
            halves = i in (cells // 3, 2 * cells // 3)
            c = 2 * c if halves else c
            self.cells.append(DartsCell(c_before, c_in, c, halved_before, halves, choice))
            c_before, c_in, halved_before = c_in, 4 * c, halves
        self.classifier = nn.Linear(c_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x = self.stem(x)
        for cell in self.cells:
            before, x = x, cell(before, x)
        return self.classifier(x.mean((2, 3)))


# --- NAS-Bench-201 (arXiv 2001.00326) ----------------------------------------------------------------------


def convolved(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out, affine=False)
    )


def nas_bench_201_candidates(c: int) -> dict[str, nn.Module]:
    return {
        "none": Zero(1),
        "skip_connect": nn.Identity(),
        "nor_conv_1x1": convolved(c, c, 1),
        "nor_conv_3x3": convolved(c, c, 3),
        "avg_pool_3x3": nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)),
    }


class NasBench201Cell(nn.Module):
    """Four tensors, each the sum of an edge from every one before."""

    def __init__(self, c: int, choice: Choice) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(choice(f"{node}_{j}", nas_bench_201_candidates(c)) for j in range(node)) for node in (1, 2, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for edges in self.edges:
            states.append(sum(edge(state) for edge, state in zip(edges, states, strict=True)))
        return states[-1]


class Residual(nn.Module):
    """The block between two stages, which halves the image."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolved(c_in, c_out, 3, 2), convolved(c_out, c_out, 3))
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.skip(x)


class NasBench201Network(nn.Module):
    """Three stages of `cells` cells each, of 16, 32 and 64 channels."""

    def __init__(self, choice: Choice, cells: int, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        c = channels
        layers: list[nn.Module] = [nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)]
        for stage in range(3):
            if stage:
                layers.append(Residual(c, 2 * c))
                c *= 2
            layers += [NasBench201Cell(c, choice) for _ in range(cells)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU())
        self.classifier = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x).mean((2, 3)))


# --- a small transformer -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """LayerNorm, then self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Mlp(nn.Module):
    """LayerNorm, then two linear layers around an activation."""

    def __init__(self, width: int, ratio: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation = nn.LayerNorm(width), activation
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(self.norm(x))))


class Nothing(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Transformer(nn.Module):
    """Blocks whose attention has 1, 4 or 8 heads or is left out, and whose MLP is one of three or left out."""

    def __init__(self, choice: Choice, blocks: int, width: int = 128, tokens: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(256, width), nn.Parameter(torch.zeros(tokens, width))
        self.attentions, self.mlps = nn.ModuleList(), nn.ModuleList()
        for i in range(blocks):
            attentions: dict[str, nn.Module] = {f"heads_{h}": Attention(width, h) for h in (1, 4, 8)}
            mlps: dict[str, nn.Module] = {
                "gelu_2": Mlp(width, 2, nn.GELU()),
                "gelu_4": Mlp(width, 4, nn.GELU()),
                "relu_4": Mlp(width, 4, nn.ReLU()),
            }
            self.attentions.append(choice(f"attention_{i}", {**attentions, "none": Nothing()}))
            self.mlps.append(choice(f"mlp_{i}", {**mlps, "none": Nothing()}))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x) + self.place
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            h = h + attention(h)
            h = h + mlp(h)
        return self.classifier(self.norm(h).mean(1))
