"""DARTS's search space (arXiv 1806.09055), its operations, and cells that were found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.checks import check_counts
from supernet.errors import ArchitectureError, ChoiceError
from supernet.hub.blocks import Classifier, conv_norm
from supernet.nn import Choice, Domain, LayerChoice
from supernet.nn.composed import Composed
from supernet.space import Architecture

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "GDAS_V1",
    "PC_DARTS_CIFAR",
    "PC_DARTS_IMAGENET",
    "Darts",
    "FactorizedReduce",
    "Zero",
    "darts_candidates",
    "darts_network",
    "darts_operation",
    "relu_conv_norm",
]

CANDIDATES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


NUM_NODES = 4  # of a cell, after its two inputs
AUXILIARY_CHANNELS = 128, 768


def _architecture(**edges: Sequence[tuple[str, int]]) -> Architecture:
    """Return an architecture by kind of cell -> (operation, source) of each edge, two a node."""
    architecture: Architecture = {}
    for kind, of_kind in edges.items():
        for node in range(NUM_NODES):
            pair = sorted(of_kind[2 * node : 2 * node + 2], key=lambda edge: edge[1])
            if node:  # the first node has two inputs, and takes both
                architecture[f"{kind}/{node + 2}"] = [source for _, source in pair]
            architecture |= {f"{kind}/{node + 2}_{source}": operation for operation, source in pair}
    return architecture


_SEP_3, _SEP_5, _DIL_3, _DIL_5 = "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"
_SKIP, _MAX, _AVG = "skip_connect", "max_pool_3x3", "avg_pool_3x3"

# First order and second order: cnn/genotypes.py of quark0/darts.
DARTS_V1 = _architecture(
    normal=[(_SEP_3, 1), (_SEP_3, 0), (_SKIP, 0), (_SEP_3, 1), (_SKIP, 0), (_SEP_3, 1), (_SEP_3, 0), (_SKIP, 2)],
    reduce=[(_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 0), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_AVG, 0)],
)
DARTS_V2 = _architecture(
    normal=[(_SEP_3, 0), (_SEP_3, 1), (_SEP_3, 0), (_SEP_3, 1), (_SEP_3, 1), (_SKIP, 0), (_SKIP, 0), (_DIL_3, 2)],
    reduce=[(_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 1), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_MAX, 1)],
)
# Of arXiv 1907.05737, searched on CIFAR-10 and on ImageNet.
PC_DARTS_CIFAR = _architecture(
    normal=[(_SEP_3, 1), (_SKIP, 0), (_SEP_3, 0), (_DIL_3, 1), (_SEP_5, 0), (_SEP_3, 1), (_AVG, 0), (_DIL_3, 1)],
    reduce=[(_SEP_5, 1), (_MAX, 0), (_SEP_5, 1), (_SEP_5, 2), (_SEP_3, 0), (_SEP_3, 3), (_SEP_3, 1), (_SEP_3, 2)],
)
PC_DARTS_IMAGENET = _architecture(
    normal=[(_SKIP, 1), (_SEP_3, 0), (_SEP_3, 0), (_SKIP, 1), (_SEP_3, 1), (_SEP_3, 3), (_SEP_3, 1), (_DIL_5, 4)],
    reduce=[(_SEP_3, 0), (_SKIP, 1), (_DIL_5, 2), (_MAX, 1), (_SEP_3, 2), (_SEP_3, 1), (_SEP_5, 0), (_SEP_3, 3)],
)
# Of arXiv 1910.04465: D-X-Y/AutoDL-Projects.
GDAS_V1 = _architecture(
    normal=[(_SKIP, 0), (_SKIP, 1), (_SKIP, 0), (_SEP_5, 2), (_SEP_3, 3), (_SKIP, 0), (_SEP_5, 4), (_SEP_3, 3)],
    reduce=[(_SEP_5, 0), (_SEP_3, 1), (_SEP_5, 2), (_SEP_5, 1), (_DIL_5, 2), (_SEP_3, 1), (_SEP_5, 0), (_SEP_5, 1)],
)


class _Network(Composed):
    """A stem, cells of which those at one and two thirds halve the image, and a classifier.

    Args:
        make_nodes: A function (channels, kind) -> the nodes of a cell, "normal" or "reduce".
        concat: Kind -> which tensors of a cell are concatenated, counted from its first input on.
        num_classes, channels, layers, in_channels, for_imagenet, auxiliary: As `Darts` and `darts_network` have them.
        affine: Whether norms inside cells scale and shift.
    """

    def __init__(
        self,
        make_nodes: Callable[[int, str], list[nn.Module]],
        concat: Mapping[str, Sequence[int]],
        num_classes: int,
        channels: int,
        layers: int,
        in_channels: int,
        *,
        for_imagenet: bool,
        auxiliary: bool,
        affine: bool,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, channels=channels, in_channels=in_channels)
        check_counts(least=2, layers=layers, **({"channels": channels} if for_imagenet else {}))
        if for_imagenet:
            self.stem: nn.Module = nn.Sequential(
                conv_norm(in_channels, channels // 2, 3, 2), conv_norm(channels // 2, channels, 3, 2, activation=None)
            )
            self.second_stem: nn.Module = nn.Sequential(nn.ReLU(), conv_norm(channels, channels, 3, 2, activation=None))
            of_first = of_second = channels
        else:
            self.stem = conv_norm(in_channels, 3 * channels, 3, activation=None)
            self.second_stem = nn.Identity()
            of_first = of_second = 3 * channels
        halved_before = for_imagenet
        self.cells = nn.ModuleList()
        self.auxiliary: nn.Module | None = None
        self.auxiliary_after = 2 * layers // 3
        for position in range(layers):
            halves = position in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if halves else channels
            first = (FactorizedReduce if halved_before else relu_conv_norm)(of_first, channels, affine=affine)
            inputs = [first, relu_conv_norm(of_second, channels, affine=affine)]
            kind = "reduce" if halves else "normal"
            self.cells.append(_Cell(inputs, make_nodes(channels, kind), concat[kind]))
            of_first, of_second, halved_before = of_second, len(concat[kind]) * channels, halves
            if auxiliary and position == self.auxiliary_after:
                self.auxiliary = _auxiliary_head(of_second, num_classes, for_imagenet)
        self.classifier = Classifier(of_second, num_classes)

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, num_classes) of x (N, in_channels, H, W); with an auxiliary head, (logits, its logits)."""
        before = self.stem(x)
        x = self.second_stem(before)
        at_head = x
        for position, cell in enumerate(self.cells):
            before, x = x, cell([before, x])
            if position == self.auxiliary_after:
                at_head = x
        logits = self.classifier(x)
        return logits if self.auxiliary is None else (logits, self.auxiliary(at_head))


class Darts(_Network):
    """DARTS's search space (arXiv 1806.09055): a normal cell and a reduction cell, (180 * 7**8)**2 of both together.

    A cell has two inputs, the outputs of the two cells before, and four nodes. Each node adds up two operations on
    different ones of the tensors before it, and the nodes are concatenated. All normal cells are one decision, and so
    are all reduction cells: `normal/4` has the two inputs of node 4 (0 and 1 are the cell's inputs, 2 is the first
    node, which takes both of these), `normal/4_1` the operation on input 1. In a mixture all operations of all edges
    run, weighted by probabilities of edges and operations, as PC-DARTS has it (arXiv 1907.05737).

    What it finds is trained anew in a larger network: `darts_network`.

    Departs from the paper: edges are chosen by logits of their own, so "none", which the paper mixes to compare them by
    and leaves out of what it derives, is no candidate.

    Args:
        num_classes: Number of classes. Default: 10.
        channels: Number of channels of the first cells. Default: 16.
        layers: Number of cells, of which two are reduction cells. At least 2. Default: 8.
        in_channels: Number of channels of the images. Default: 3.
        for_imagenet: Whether the stem makes images eight times as small, as for ImageNet. Default: their size is kept.
        affine: Whether norms scale and shift. Default: as in the paper, they do not while one searches.

    >>> SearchSpace(supernet.hub.Darts()).size == (180 * 7**8) ** 2
    True
    >>> model = supernet.hub.Darts(channels=4, layers=3, in_channels=1)  # for a search on small images
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 16,
        layers: int = 8,
        *,
        in_channels: int = 3,
        for_imagenet: bool = False,
        affine: bool = False,
    ) -> None:
        def make_nodes(channels: int, kind: str) -> list[nn.Module]:
            nodes: list[nn.Module] = []
            for node in range(2, 2 + NUM_NODES):
                edges = [
                    LayerChoice(_searched(channels, _stride(kind, source), affine), label=f"{kind}/{node}_{source}")
                    for source in range(node)
                ]
                takes_all = node == 2
                nodes.append(_Sum(edges, range(node)) if takes_all else Edges(edges, 2, label=f"{kind}/{node}"))
            return nodes

        super().__init__(
            make_nodes,
            dict.fromkeys(("normal", "reduce"), range(2, 2 + NUM_NODES)),
            num_classes,
            channels,
            layers,
            in_channels,
            for_imagenet=for_imagenet,
            auxiliary=False,
            affine=affine,
        )


def darts_network(
    cells: Mapping[str, Any],
    num_classes: int = 10,
    channels: int = 36,
    layers: int = 20,
    *,
    in_channels: int = 3,
    for_imagenet: bool = False,
    auxiliary: bool = False,
) -> nn.Module:
    """Return the plain network of cells that a search has found, with new weights: what papers train and report.

    For ImageNet papers have `channels=48, layers=14, for_imagenet=True, num_classes=1000`.

    Args:
        cells: An architecture of `Darts`; or a genotype of any paper, `{"normal": [(operation, source), ...],
            "normal_concat": [...], "reduce": ..., "reduce_concat": ...}`, which names the inputs of a node, two each,
            and the nodes that are concatenated.
        num_classes: Number of classes. Default: 10.
        channels: Number of channels of the first cells. Default: 36.
        layers: Number of cells. Default: 20.
        in_channels: Number of channels of the images. Default: 3.
        for_imagenet: Whether the stem makes images eight times as small. Default: their size is kept.
        auxiliary: Whether there is a second classifier after two thirds of the cells: then the network gives both
            logits, as a tuple. Images have 32 pixels then, or 224. Default: there is none.

    Raises:
        ArchitectureError: The cells are neither.
        ChoiceError: There is no operation of a name.

    >>> network = supernet.hub.darts_network(supernet.hub.DARTS_V2)
    >>> sum(p.numel() for p in network.parameters())
    3349342
    """
    genotype = cells if "normal_concat" in cells else _genotype(cells)

    def make_nodes(channels: int, kind: str) -> list[nn.Module]:
        edges = genotype[kind]
        operations = [darts_operation(name, channels, _stride(kind, source)) for name, source in edges]
        sources = [source for _, source in edges]
        return [_Sum(operations[i : i + 2], sources[i : i + 2]) for i in range(0, len(edges), 2)]

    return _Network(
        make_nodes,
        {kind: genotype[f"{kind}_concat"] for kind in ("normal", "reduce")},
        num_classes,
        channels,
        layers,
        in_channels,
        for_imagenet=for_imagenet,
        auxiliary=auxiliary,
        affine=True,
    )


def _genotype(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture of `Darts` in the form that papers print."""
    genotype: dict[str, Any] = {}
    for kind in ("normal", "reduce"):
        genotype[f"{kind}_concat"], genotype[kind] = list(range(2, 2 + NUM_NODES)), []
        for node in range(2, 2 + NUM_NODES):
            label = f"{kind}/{node}"
            try:
                sources = architecture[label] if node > 2 else [0, 1]
                genotype[kind] += [(architecture[f"{label}_{source}"], source) for source in sources]
            except (KeyError, TypeError) as error:
                raise ArchitectureError(
                    f"these cells are no architecture of Darts, nor a genotype: {label!r} is not decided ({error}); "
                    "give what a search of Darts exports, or {'normal': [(operation, source), ...], 'normal_concat': "
                    "[...], 'reduce': ..., 'reduce_concat': ...}"
                ) from None
    return genotype


def _stride(kind: str, source: int) -> int:
    """Return the stride of an edge: in a reduction cell those from its inputs halve the image."""
    return 2 if kind == "reduce" and source < 2 else 1


def _searched(channels: int, stride: int, affine: bool) -> dict[str, nn.Module]:
    candidates = darts_candidates(channels, stride, affine=affine)
    del candidates["none"]
    return candidates


def _auxiliary_head(channels: int, num_classes: int, for_imagenet: bool) -> nn.Sequential:
    """Return the second classifier as quark0/darts has it: 8x8 images go in, or 7x7, and 2x2 are averaged to."""
    narrow, wide = AUXILIARY_CHANNELS
    # For ImageNet its code leaves the last norm out, and says that it is so in the paper's experiments.
    last_norm = [] if for_imagenet else [nn.BatchNorm2d(wide)]
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, 2 if for_imagenet else 3, count_include_pad=False),
        conv_norm(channels, narrow),
        nn.Conv2d(narrow, wide, 2, bias=False),
        *last_norm,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(wide, num_classes),
    )


class _Cell(Composed):
    """A cell: what brings its inputs to its number of channels, and nodes, some of which are concatenated.

    Args:
        inputs: A module for each input.
        nodes: Modules, each called with the list of all tensors before it.
        concat: Which tensors are concatenated, counted from the first input on.
    """

    def __init__(self, inputs: Sequence[nn.Module], nodes: Sequence[nn.Module], concat: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.nodes, self.concat = nn.ModuleList(inputs), nn.ModuleList(nodes), list(concat)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return (N, C, H, W) of the outputs of the cells before."""
        states = [module(x) for module, x in zip(self.inputs, (inputs[0], inputs[1]), strict=True)]
        for node in self.nodes:
            states = [*states, node(states)]
        return torch.cat([states[position] for position in self.concat], 1)


class _Sum(Composed):
    """Adds up what modules give, each for one of several tensors.

    Args:
        edges: The modules.
        sources: Position of each one's tensor.
    """

    def __init__(self, edges: Sequence[nn.Module], sources: Sequence[int]) -> None:
        super().__init__()
        self.edges, self.sources = nn.ModuleList(edges), list(sources)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Return the sum."""
        first, *others = [edge(states[source]) for edge, source in zip(self.edges, self.sources, strict=True)]
        return sum(others, start=first)


class Edges(Choice):
    """Some of several modules, each with a tensor of its own, whose outputs are added up; which ones is decided.

    Unlike an `InputChoice` after the modules, those that are not chosen do not run, and what is decided inside them
    does not count. In a mixture all run, by weights that add up to the number of those that are chosen.

    Args:
        edges: The modules, which may hold choices.
        num_chosen: How many are chosen.
        label: The decision's name.
    """

    def __init__(self, edges: Sequence[nn.Module], num_chosen: int, *, label: str) -> None:
        super().__init__(label)
        self.edges, self.num_chosen = nn.ModuleList(edges), num_chosen

    def domain(self) -> Domain:
        """Return what can be decided here: positions of edges."""
        names = tuple(map(str, range(len(self.edges))))
        return Domain(str(self.label), names, self.num_chosen, is_set=True, noun="edge", are_named=False)

    def branches(self) -> list[tuple[nn.Module]]:
        """Return each edge."""
        return [(edge,) for edge in self.edges]

    def resolve(self, decision: Any) -> nn.Module:
        """Return what adds up the edges that have been chosen."""
        chosen = self.domain().positions(decision)
        return _Sum([self.edges[position] for position in chosen], chosen)

    def mixed(self, weights: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Return the sum over all edges, by their weights."""
        outputs = [edge(x) for edge, x in zip(self.edges, states, strict=True)]
        first, *others = [weight * output for weight, output in zip(weights.unbind(), outputs, strict=True)]
        return self.num_chosen * sum(others, start=first)


def darts_candidates(channels: int, stride: int = 1, *, affine: bool = False) -> dict[str, nn.Module]:
    """Return the eight candidates of an edge of DARTS's cell, as its search network has them.

    Pools have a BatchNorm after them here, without which their larger outputs would draw the architecture to them.

    Args:
        channels: Number of channels of input and output, (N, channels, H, W).
        stride: 2 halves height and width. Default: 1.
        affine: Whether the norms after convolutions scale and shift. Default: as in the paper, they do not while one
            searches.

    >>> list(darts_candidates(16))[3:5]
    ['skip_connect', 'sep_conv_3x3']
    """
    result: dict[str, nn.Module] = {}
    for name in CANDIDATES:
        result[name] = darts_operation(name, channels, stride, affine=affine)
        if "pool" in name:
            result[name] = nn.Sequential(result[name], nn.BatchNorm2d(channels, affine=False))
    return result


def darts_operation(name: str, channels: int, stride: int = 1, *, affine: bool = True) -> nn.Module:
    """Return an operation by the name that genotypes of DARTS, and of the papers after it, have for it.

    Args:
        name: One of the eight candidates of `darts_candidates`, "sep_conv_7x7" or "conv_7x1_1x7".
        channels: Number of channels of input and output, (N, channels, H, W).
        stride: 2 halves height and width. Default: 1.
        affine: Whether its norms scale and shift. Default: they do, as in networks that are trained from new weights.

    Raises:
        ChoiceError: There is no operation of that name.
    """
    check_counts(channels=channels, stride=stride)
    separable = partial(_separable, channels, stride=stride, affine=affine)
    operations: dict[str, Callable[[], nn.Module]] = {
        "none": lambda: Zero(stride),
        "max_pool_3x3": lambda: nn.MaxPool2d(3, stride, 1),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        "skip_connect": lambda: nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine),
        "sep_conv_3x3": lambda: separable(3, times=2),
        "sep_conv_5x5": lambda: separable(5, times=2),
        "sep_conv_7x7": lambda: separable(7, times=2),
        "dil_conv_3x3": lambda: separable(3, dilation=2),
        "dil_conv_5x5": lambda: separable(5, dilation=2),
        "conv_7x1_1x7": lambda: nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        ),
    }
    if name not in operations:
        raise ChoiceError(f"DARTS has no operation {name!r}; it has: {', '.join(operations)}")
    return operations[name]()


def relu_conv_norm(in_channels: int, out_channels: int, *, affine: bool = True) -> nn.Sequential:
    """Return ReLU, 1x1 convolution, BatchNorm: what brings a cell's inputs to its number of channels."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(out_channels, affine=affine))


class Zero(Composed):
    """The candidate "none": gives zeros, on every `stride`-th position."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(Composed):
    """Halves height and width: one half of the channels sees the even positions, the other the odd ones.

    Args:
        in_channels: Number of channels of the input, whose height and width are even.
        out_channels: Number of channels of the output, an even one.
        affine: Whether the norm scales and shifts. Default: it does.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        if out_channels % 2:
            raise ChoiceError(f"FactorizedReduce gives an even number of channels, not {out_channels}")
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / 2, W / 2)."""
        x = self.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def _separable(
    channels: int, kernel: int, *, stride: int, affine: bool, dilation: int = 1, times: int = 1
) -> nn.Sequential:
    """Return ReLU, depthwise convolution, pointwise convolution, BatchNorm; that `times` times, the first strided."""
    layers: list[nn.Module] = []
    for position in range(times):
        of_this, padding = stride if position == 0 else 1, dilation * (kernel - 1) // 2
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, of_this, padding, dilation, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        ]
    return nn.Sequential(*layers)
