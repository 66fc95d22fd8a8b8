"""Widths that go together, and the units of which each keeps the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from supernet.nn.existing.trace import Trace, Width

__all__: list[str] = []


@dataclass
class Group:
    """Widths of layers that can only be narrowed together.

    Attributes:
        sources: Widths that layers give, in the order in which these ran; the first gives the group its name.
        num_units: How many units there are, each of channels that go together: a channel, a head.
        fixed: Why it must keep its width; None where it need not.
        is_output: Whether the network's output has it.
    """

    sources: list[Width]
    num_units: int
    fixed: str | None = None
    is_output: bool = False

    @property
    def path(self) -> str:
        """Path of the layer that gives the width."""
        return self.sources[0].path


@dataclass
class Places:
    """Of which group and unit each place of a dimension is: -1 where it is of none, and stays."""

    group: Tensor
    unit: Tensor

    @property
    def groups(self) -> list[int]:
        """The groups that it has a part of, in order."""
        return [int(g) for g in self.group.unique() if g >= 0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self.group.equal(other.group) and self.unit.equal(other.unit)

    def kept(self, num_units: Mapping[int, int]) -> Tensor:
        """Return the places that are kept where some groups have so many units."""
        keeps = torch.ones(len(self.group), dtype=torch.bool)
        for group, number in num_units.items():
            keeps &= (self.group != group) | (self.unit < number)
        return keeps.nonzero()[:, 0]

    def reordered(self, orders: Mapping[int, Tensor]) -> Tensor:
        """Return from where each place is filled where the units of some groups stand in another order.

        Args:
            orders: Group -> the unit that stands where each unit stood. Both must have as many places here.
        """
        source = torch.arange(len(self.group))
        for group, order in orders.items():
            of_group = (self.group == group).nonzero()[:, 0]
            # The places of each unit, in their order, one unit after another.
            by_unit = of_group[self.unit[of_group].argsort(stable=True)]
            units = self.unit[by_unit]
            first = torch.searchsorted(units, torch.arange(len(order)))
            nth = torch.arange(len(units)) - first[units]
            source[by_unit] = by_unit[first[order[units]] + nth]
        return source


@dataclass
class Coupling:
    """What a trace means.

    Attributes:
        groups: All groups.
        layers: Path and role of each width -> where its channels belong.
        tensors: Path of a parameter or buffer -> dimension -> where its places belong, of those that must follow.
        axes: Paths of modules, each with where the places of a dimension belong that its code reshaped.
    """

    groups: list[Group]
    layers: dict[tuple[str, str], Places]
    tensors: dict[str, dict[int, Places]] = field(default_factory=dict)
    axes: list[tuple[str, Places]] = field(default_factory=list)
    _trace: Trace | None = None

    def why(self, one: Width, other: Width) -> str:
        """Say by which layers and operations two widths of a group meet."""
        assert self._trace is not None
        widths = self._trace.widths
        firsts = torch.tensor([width.first for width in widths])
        meets: dict[int, dict[int, str]] = {}
        for pairs, where in self._trace.edges:
            at = torch.searchsorted(firsts, pairs, right=True) - 1
            for a, b in at.unique(dim=0).tolist():
                meets.setdefault(a, {}).setdefault(b, where)
                meets.setdefault(b, {}).setdefault(a, where)
        start, goal = widths.index(one), widths.index(other)
        came_from: dict[int, int] = {start: start}
        queue = [start]
        for at_ in queue:
            for nearby in meets.get(at_, {}):
                if nearby not in came_from:
                    came_from[nearby] = at_
                    queue.append(nearby)
        steps: list[str] = []
        while goal != start and goal in came_from:
            steps.append(meets[came_from[goal]][goal])
            goal = came_from[goal]
        return ", ".join(dict.fromkeys(reversed(steps)))


def coupling_of(trace: Trace) -> Coupling:
    """Return which widths of a traced network go together."""
    edges = [pairs for pairs, _ in trace.edges]
    root = _components(trace.num_atoms, edges)
    for labels, where in trace.splits:
        # Equal parts stay equal: what is at one place of each goes together, unless each part goes as a whole.
        roots = root[labels.clamp(min=0)]
        if not ((roots == roots[:, :1]).all() or (roots == roots[:1]).all()):
            trace.unite(labels[:1], labels, where)
            edges = [pairs for pairs, _ in trace.edges]
            root = _components(trace.num_atoms, edges)

    sources = [width for width in trace.widths if width.role == "out"]
    of_source = [root[width.atoms].unique() for width in sources]
    together = _joined(of_source)
    group_of = torch.full((trace.num_atoms + 1,), -1)
    unit_of = torch.full((trace.num_atoms + 1,), -1)
    groups: list[Group] = []
    for members in together:
        units = torch.cat([_in_order(root[sources[i].atoms]) for i in members])
        units = _in_order(units)
        group_of[units] = len(groups)
        unit_of[units] = torch.arange(len(units))
        groups.append(Group([sources[i] for i in members], len(units)))
    group_of, unit_of = group_of[root], unit_of[root]
    group_of[0] = unit_of[0] = -1

    def places(labels: Tensor) -> Places:
        atoms = labels.clamp(min=0)
        return Places(group_of[atoms], unit_of[atoms])

    for atoms, why in trace.fixed:
        for g in places(atoms).groups:
            groups[g].fixed = groups[g].fixed or why
    for atoms in trace.outputs:
        for g in places(atoms).groups:
            groups[g].is_output = True
    for group in groups:
        for width in group.sources:
            units = places(width.atoms).unit.bincount(minlength=group.num_units)
            if bool((units != units[0]).any()):  # as where a shortcut is padded with zeros
                other = next((each.path for each in group.sources if each is not width), width.path)
                group.fixed = group.fixed or f"only a part of the channels of {width.path!r} and {other!r} meet"
    layers = {(width.path, width.role): places(width.atoms) for width in trace.widths}
    coupling = Coupling(groups, layers, _trace=trace)
    _follow(trace, coupling, places)
    for axis in trace.axes:
        of_axis = places(axis.labels)
        if of_axis.groups and (axis.path, of_axis) not in coupling.axes:
            coupling.axes.append((axis.path, of_axis))
    return coupling


def _follow(trace: Trace, coupling: Coupling, places: object) -> None:
    """Find the dimensions of parameters and buffers that must follow, and the groups that meet what cannot."""
    if not trace.followers:
        return
    pairs = torch.cat([pairs for pairs, _ in trace.followers]).unique(dim=0)
    if trace.peers:
        pairs = torch.cat([pairs, _with_peers(pairs, trace)]).unique(dim=0)
    elements, atoms = pairs.unbind(1)
    of_atoms: Places = places(atoms)  # type: ignore[operator]
    # An element of a tensor that is combined with all units of a group is broadcast, and one with one unit follows it.
    key = torch.stack([elements, of_atoms.group, of_atoms.unit], 1).unique(dim=0)
    of_pair, count = key[:, :2].unique(dim=0, return_counts=True)
    follows = (of_pair[:, 1] >= 0) & (count == 1)
    follows &= torch.tensor([g < 0 or coupling.groups[g].num_units > 1 for g in of_pair[:, 1].tolist()])
    followers = {(int(e), int(g)) for e, g in of_pair[follows]}
    is_one = torch.tensor([(int(e), int(g)) in followers for e, g in key[:, :2]], dtype=torch.bool)
    key = key[is_one]
    for g in key[key[:, 0] > trace.num_places, 1].unique().tolist():
        group = coupling.groups[g]
        group.fixed = group.fixed or "it is combined with an input of the network, element by element"
    for path, (tensor, first) in trace.tensors.items():
        of_tensor = key[(key[:, 0] >= first) & (key[:, 0] < first + tensor.numel())]
        if not len(of_tensor):
            continue
        group_of, unit_of = (torch.full((tensor.numel(),), -1) for _ in range(2))
        group_of[of_tensor[:, 0] - first] = of_tensor[:, 1]
        unit_of[of_tensor[:, 0] - first] = of_tensor[:, 2]
        for dim in range(tensor.dim()):
            along = [
                x.reshape(tensor.shape).movedim(dim, 0).reshape(tensor.shape[dim], -1) for x in (group_of, unit_of)
            ]
            has = along[0].amax(1), along[1].amax(1)
            agrees = all(bool(((x == most[:, None]) | (x == -1)).all()) for x, most in zip(along, has, strict=True))
            if agrees and tensor.shape[dim] > 1 and len(has[1].unique()) > 1:
                coupling.tensors.setdefault(path, {})[dim] = Places(*has)
                break
        else:
            for g in of_tensor[:, 1].unique().tolist():
                group = coupling.groups[g]
                group.fixed = group.fixed or f"no dimension of {path} is its width alone"


def _with_peers(pairs: Tensor, trace: Trace) -> Tensor:
    """Return (element, atom) for elements that are combined with one that follows, as a class token's and positions."""
    root = _components(trace.num_places, trace.peers)
    elements = torch.arange(trace.num_places + 1)
    of_root = pairs[pairs[:, 0] <= trace.num_places]
    of_root = torch.stack([root[of_root[:, 0]], of_root[:, 1]], 1).unique(dim=0)
    first, last = (torch.searchsorted(of_root[:, 0].contiguous(), root, right=right) for right in (False, True))
    count = last - first
    rows = torch.arange(int(count.sum())) - (count.cumsum(0) - count).repeat_interleave(count)
    rows += first.repeat_interleave(count)
    return torch.stack([elements.repeat_interleave(count), of_root[rows, 1]], 1)


def _components(num_atoms: int, edges: Sequence[Tensor]) -> Tensor:
    """Return for each atom, from 0, the least that it is connected with."""
    root = torch.arange(num_atoms + 1)
    if not edges:
        return root
    one, other = torch.cat(list(edges)).unbind(1)
    while True:
        a, b = root[one], root[other]
        least = root.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(least, least[least]):
            least = least[least]
        if torch.equal(least, root):
            return root
        root = least


def _in_order(values: Tensor) -> Tensor:
    """Return each value once, in the order of their first places."""
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long)


def _joined(sets: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the positions of sets that are connected by common values."""
    owner: dict[int, int] = {}
    leader = list(range(len(sets)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for i, values in enumerate(sets):
        for value in values.tolist():
            j = find(owner.setdefault(value, i))
            leader[max(find(i), j)] = min(find(i), j)
    members: dict[int, list[int]] = {}
    for i in range(len(sets)):
        members.setdefault(find(i), []).append(i)
    yield from members.values()


def names(paths: Iterable[str]) -> str:
    """Return paths as they stand in a message."""
    listed = [repr(path) for path in dict.fromkeys(paths)]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
