"""Kinds of choice that a user may define, and one of each kind that there is, for tests of what all must hold."""

import torch
from torch import nn

from supernet import InputChoice, LayerChoice
from supernet.nn import Choice, Domain


class Depth(Choice):
    """The first `depth` of several blocks, one after another."""

    def __init__(self, *blocks, least=1, label=None):
        super().__init__(label)
        self.least = least
        self.blocks = nn.ModuleList(blocks)

    def domain(self):
        depths = tuple(range(self.least, len(self.blocks) + 1))
        return Domain(str(self.label), tuple(f"{depth} deep" for depth in depths), values=depths, noun="depth")

    def branches(self):
        return [list(self.blocks)[:depth] for depth in self.domain().values]

    def resolve(self, decision):
        return nn.Sequential(*list(self.blocks)[: self.domain().normalized(decision)])


class Several(Choice):
    """The sum of one or two of several branches."""

    def __init__(self, *branches, label=None):
        super().__init__(label)
        self.parts = nn.ModuleList(branches)

    def domain(self):
        return Domain(str(self.label), tuple("abc"), (1, 2), is_set=True, noun="part")

    def branches(self):
        return [[part] for part in self.parts]

    def resolve(self, decision):
        return Sum([self.parts[i] for i in self.domain().positions(decision)])


class Sum(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


class Temperature(Choice):
    """A number, and no module of its own."""

    def domain(self):
        return Domain(str(self.label), ("cold", "warm"), values=(0.5, 2), prior=(0.25, 0.75))

    def resolve(self, decision):
        return Scale(self.domain().normalized(decision))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def _linear():
    return nn.Linear(4, 4)


def _with_inner():
    inner = LayerChoice([nn.ReLU(), nn.Tanh()], label="inner")
    return LayerChoice(
        {"plain": _linear(), "norm": nn.BatchNorm1d(4), "deep": nn.Sequential(_linear(), inner)}, label="op"
    )


X = torch.linspace(-1, 1, 12).reshape(3, 4)
INPUTS = [X, X + 1, 2 * X, X**2]

# What a choice is -> what makes one, and the arguments that it is called with in a model.
CHOICES = {
    "layer": (lambda: LayerChoice([_linear(), nn.Identity()]), X),
    "layer with a choice inside": (_with_inner, X),
    "one input": (lambda: InputChoice(4, 1, label="in"), INPUTS),
    "two inputs": (lambda: InputChoice(4, 2, reduction="mean", label="in"), INPUTS),
    "any inputs": (lambda: InputChoice(4, None, label="in"), INPUTS),
    "many sets of inputs": (lambda: InputChoice(8, None, label="in"), [X * i for i in range(8)]),
    "depth": (lambda: Depth(_linear(), _linear(), _linear(), label="depth"), X),
    "several parts": (lambda: Several(_linear(), _linear(), nn.Identity(), label="parts"), X),
    "number": (lambda: Temperature(label="temperature"), X),
}
