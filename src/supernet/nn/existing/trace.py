"""What one run of a network with labels has shown: widths of layers, and which of their channels are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from supernet.nn.existing.labels import compressed, pairs_of

__all__: list[str] = []


class Width(NamedTuple):
    """A width of a layer, the channels of which are atoms.

    Attributes:
        path: Path of the layer.
        role: "in", "out", or "features".
        first: The atom of the first channel.
        length: How many channels.
    """

    path: str
    role: str
    first: int
    length: int

    @property
    def atoms(self) -> Tensor:
        return torch.arange(self.first, self.first + self.length)


class Axis(NamedTuple):
    """A dimension of a tensor that a module's own code has reshaped: a width that it may have written down.

    Attributes:
        path: Path of the module that did it.
        labels: Label of each place along the dimension (n,).
    """

    path: str
    labels: Tensor


@dataclass
class Trace:
    """What one run has shown.

    Attributes:
        widths: All widths of layers, in the order in which these ran.
        edges: Pairs of atoms (n, 2) that are the same channel, and where that was seen.
        fixed: Atoms (n,) whose channel must stay, and why.
        outputs: Atoms that the network's output has.
        followers: Elements of given tensors, and the atom that each was combined with (n, 2), and where.
        peers: Pairs of elements of parameters that were combined with each other (n, 2).
        axes: Dimensions that modules wrote down as numbers.
        splits: Labels (parts, n) of what modules take apart into equal parts.
        tensors: Path -> parameter or buffer whose elements have numbers, first number.
    """

    widths: list[Width] = field(default_factory=list)
    edges: list[tuple[Tensor, str]] = field(default_factory=list)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    followers: list[tuple[Tensor, str]] = field(default_factory=list)
    peers: list[Tensor] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    splits: list[tuple[Tensor, str]] = field(default_factory=list)
    tensors: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    num_atoms: int = 0
    num_elements: int = 0
    num_places: int = 0  # of elements, those that belong to parameters and buffers: the numbers after it are of inputs

    def width(self, path: str, role: str, length: int) -> Width:
        """Return a width of a layer, which is made at its first run."""
        for width in self.widths:
            if (width.path, width.role) == (path, role):
                return width
        self.widths.append(Width(path, role, self.num_atoms + 1, length))
        self.num_atoms += length
        return self.widths[-1]

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """Return numbers below 0 for elements of a tensor that is given."""
        number = torch.Size(shape).numel()
        first = self.num_elements + 1
        self.num_elements += number
        return -torch.arange(first, first + number).reshape(shape)

    def unite(self, one: Tensor, other: Tensor, where: str) -> None:
        """Note that labels are combined one to one; shapes are broadcast. 0 is of nothing."""
        one, other = (x.reshape(-1) for x in torch.broadcast_tensors(one, other))
        both = (one > 0) & (other > 0) & (one != other)
        if both.any():
            self.edges.append((pairs_of(one[both], other[both]), where))
        for atom, element in ((one, other), (other, one)):
            met = (atom > 0) & (element < 0)
            if met.any():
                self.followers.append((pairs_of(-element[met], atom[met]), where))
        peers = (one < 0) & (other < 0) & (one != other)
        if peers.any():
            pairs = pairs_of(-one[peers], -other[peers])
            counts = [pairs[:, i].unique(return_inverse=True, return_counts=True)[1:] for i in (0, 1)]
            is_alone = [count[inverse] == 1 for inverse, count in counts]  # else one of them is broadcast
            pairs = pairs[is_alone[0] & is_alone[1] & (pairs <= self.num_places).all(1)]
            if len(pairs):
                self.peers.append(pairs)

    def fix(self, labels: Tensor, why: str) -> None:
        """Note that the channels of labels must stay."""
        atoms = labels[labels > 0].unique()
        if len(atoms):
            self.fixed.append((atoms, why))

    def follows(self, labels: Tensor, dim: int, width: Width, where: str) -> bool:
        """Note that a dimension of a layer's input is one of its widths; say whether it may be one.

        A layer along another dimension than the channels (time, tokens) has none of them.
        """
        labels = compressed(labels)
        labels_CR = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        if labels_CR.shape[0] != width.length:  # expanded: all channels are of one label
            labels_CR = labels_CR.expand(width.length, -1)
        along = (labels_CR > 0).any(1)
        if width.length > 1 and labels_CR.shape[1] > 1 and bool((labels_CR == labels_CR[:1]).all()) and along.any():
            self.fix(width.atoms, f"{where} is applied along another dimension than the channels")
            return False
        # What is of no layer's width is of the network's inputs, or a constant.
        is_input = -labels_CR > self.num_places
        self.unite(width.atoms[:, None], labels_CR.masked_fill(is_input, 0), where)
        self.fix(width.atoms[is_input.any(1) | ~(labels_CR != 0).any(1)], f"{where} takes what has a given width")
        return True
