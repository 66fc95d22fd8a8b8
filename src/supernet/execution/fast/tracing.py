"""Finding out what a candidate is made of, by tracing it (`torch.fx`), so that users' own modules count too.

A candidate that is not understood, or whose trace need not stay true, is left to run as it is. What a trace takes for
granted stands in its guards.
"""

from __future__ import annotations

import copy
import operator
import random
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from supernet.execution.fast.convolution import shape_of
from supernet.execution.fast.guards import (
    Guard,
    Unreadable,
    attributes_of,
    follows_a_plan,
    guards_of,
    is_torchs_own,
)
from supernet.execution.fast.pooling import MaxPool
from supernet.execution.fast.segment import Norm, Segment
from supernet.execution.fast.shared import Shared
from supernet.execution.fast.weighted_sum import Term

__all__ = ["CandidateTrace", "trace_of"]

TraceCache = dict[Hashable, "fx.Graph | Unreadable"]  # by structure: the candidates of a cell repeat


class AvgPool(NamedTuple):
    """A 2-D average-pool; called with an image (N, C, H, W)."""

    kernel: Any
    stride: Any
    padding: Any
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the averages."""
        return F.avg_pool2d(x, *self)


Head = Any  # a callable on one tensor, equal to another where both do the same


class Step(NamedTuple):
    """One call inside a candidate; its arguments are nodes of the trace."""

    node: fx.Node
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CandidateTrace:
    """What a candidate is made of.

    Attributes:
        module: The candidate.
        text: What was found, for people.
        runs_as_it_is: Whether it is called as a module, since no more is known of it.
        is_zero: Whether it gives zeros whatever its input.
        head: The first operation, if it has no parameters and others may want its result too.
        steps: Calls that follow, up to a last BatchNorm.
        first: Node of the trace whose value the head gives; the input where there is no head.
        last: Node of the trace whose value the steps give.
        norm: The last BatchNorm, if it can be folded into the mixture.
        folded: All BatchNorms that are not called as modules.
        has_choices: Whether what stands in the place of other choices is called.
        guards: What the trace takes for granted.
    """

    module: nn.Module
    text: str
    runs_as_it_is: bool = False
    is_zero: bool = False
    head: Head | None = None
    steps: tuple[Step, ...] = ()
    first: fx.Node | None = None
    last: fx.Node | None = None
    norm: Norm | None = None
    folded: tuple[Norm, ...] = ()
    has_choices: bool = False
    guards: tuple[Guard, ...] = field(default=(), repr=False)

    def holds(self) -> bool:
        """Say whether all that the trace takes for granted is still so."""
        for guard in self.guards:  # a loop, for generators take several times as long
            if not guard.holds():
                return False
        return all(map(_can_be_folded, self.folded))

    def term(self, position: int, x: torch.Tensor, shared: Shared) -> Term | None:
        """Run the candidate, of which all holds, on x up to its last BatchNorm; None where it gives zeros."""
        if self.is_zero:
            return None
        y = x if self.head is None else shared.of(x, self.head, self.head)
        if self.steps:
            env = {self.first: y}
            for node, call, args, kwargs in self.steps:
                if len(args) == 1 and type(args[0]) is fx.Node and not kwargs:
                    env[node] = call(env[args[0]])
                else:
                    env[node] = call(*map_arg(args, env.__getitem__), **map_arg(kwargs, env.__getitem__))
            y = env[self.last]
        if self.norm is None:
            return Term(position, y)
        self.norm._check_input_dim(y)
        if y.numel() <= y.shape[1]:  # one value a channel: torch's own error, in training
            return Term(position, self.norm(y))
        return Term(position, y, self.norm, is_shared=not self.steps)


def trace_of(candidate: nn.Module, cache: TraceCache) -> CandidateTrace:
    """Return what a candidate is made of.

    Args:
        candidate: A module that is called with one tensor.
        cache: Graphs of candidates of other structures; new ones are added.
    """
    try:
        guards = guards_of(candidate)
        key = _structure(candidate, {})
        if key not in cache:
            try:
                cache[key] = _graph_of(candidate)
            except Unreadable as reason:
                cache[key] = reason
        graph = cache[key]
        if isinstance(graph, Unreadable):
            raise graph
        return _understood(candidate, graph, guards)
    except Unreadable as reason:
        return CandidateTrace(candidate, f"as it is: {reason}", runs_as_it_is=True)


# --- tracing -----------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Goes through users' modules, and not into torch's own nor into choices."""

    proxy_buffer_attributes = True  # so that nothing follows the value that one has now

    def __init__(self) -> None:
        super().__init__()
        self._surroundings = _surroundings()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _surroundings() != self._surroundings:
            raise Unreadable("its forward works under no_grad, autocast or checkpoint of its own, in part")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_torchs_own(m) or follows_a_plan(m)


def _surroundings() -> tuple[Any, ...]:
    """Return what of the place where an operation stands decides what it does, and is in no trace."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks, *autocast


def _graph_of(candidate: nn.Module) -> fx.Graph:
    """Trace a copy of the candidate, in both its forms."""
    if follows_a_plan(candidate) or is_torchs_own(candidate):
        candidate = nn.Sequential(candidate)
    before, drawn = _structure(candidate, {}), _random_state()
    try:
        # Its copy, for a forward may count its calls.
        traced = copy.deepcopy(candidate)
        with torch.enable_grad():
            graphs = [_Tracer().trace(traced.train())]
        with torch.no_grad():
            graphs.append(_Tracer().trace(traced.eval()))
    except Unreadable:
        raise
    except Exception as error:  # whatever a user's forward raises when it is given no tensor
        raise Unreadable(
            f"its forward cannot be traced ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    finally:
        now = _random_state()
        _put_back(drawn)
    if not all(a == b for a, b in zip(map(str, drawn), map(str, now), strict=True)):
        raise Unreadable("its forward draws random numbers itself")
    if _structure(traced, {}) != before:
        raise Unreadable("its forward changes attributes")
    if str(graphs[0]) != str(graphs[1]):
        raise Unreadable("its forward is another one in training, or with gradients, than in evaluation")
    return graphs[0]


def _random_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), torch.get_rng_state().tolist(), numpy and numpy.random.get_state()


def _put_back(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    torch.set_rng_state(torch.tensor(state[1], dtype=torch.uint8))
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])


def _structure(module: nn.Module, seen: dict[int, int]) -> Hashable:
    """Return all that a trace of the module can depend on, in a form that can be compared."""
    if id(module) in seen:  # so that what is shared inside counts
        return seen[id(module)]
    seen[id(module)] = len(seen)
    if follows_a_plan(module):
        return "choice"
    parameters = tuple((name, None if p is None else tuple(p.shape)) for name, p in module._parameters.items())
    children = tuple((n, None if c is None else _structure(c, seen)) for n, c in module._modules.items())
    return type(module), attributes_of(module), parameters, children


# --- understanding a trace ---------------------------------------------------------------------------------

# What changes neither its arguments nor anything else, and draws no random numbers.
_PURE_FUNCTIONS = frozenset(
    {
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.getitem),
        *(torch.add, torch.sub, torch.mul, torch.cat, torch.stack, torch.chunk, torch.flatten, torch.zeros_like),
        *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.silu, F.gelu, F.sigmoid, F.tanh, F.pad),
        *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    }
)
_PURE_METHODS = frozenset(
    {
        *("add", "sub", "mul", "neg", "relu", "sigmoid", "tanh", "mean", "chunk", "size"),
        *("view", "reshape", "permute", "transpose", "flatten", "contiguous"),
    }
)


def _understood(candidate: nn.Module, graph: fx.Graph, guards: tuple[Guard, ...]) -> CandidateTrace:
    """Return what the graph says that the candidate does."""
    root = nn.Sequential(candidate) if is_torchs_own(candidate) or follows_a_plan(candidate) else candidate
    nodes = list(graph.nodes)
    if [node.op for node in nodes].count("placeholder") != 1:
        raise Unreadable("it takes more than one argument")
    x, *inner, output = nodes
    (last,) = output.args
    if not isinstance(last, fx.Node):
        raise Unreadable("it does not return one tensor")
    modules = {node: root.get_submodule(node.target) for node in inner if node.op == "call_module"}
    inner = [node for node in inner if type(modules.get(node)) is not nn.Identity]
    alias = {node: node.args[0] for node, module in modules.items() if type(module) is nn.Identity}

    def source(node: Any) -> Any:
        while node in alias:
            node = alias[node]
        return node

    last = source(last)
    if last is x:
        return CandidateTrace(candidate, "its input", guards=guards)
    if _gives_zeros(x, last, source):
        return CandidateTrace(candidate, "skipped: zeros", is_zero=True, guards=guards)

    users: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node in inner:
        for used in node.all_input_nodes:
            users[source(used)].append(node)
    users[last].append(output)

    found: list[str] = []
    head, start = None, x
    # The steps see what the head gives, and x no more: so nobody else may want it.
    if inner and users[x] == [inner[0]] and (head := _as_head(inner[0], modules)) is not None:
        found.append(f"{_name_of(inner[0], modules)} shared")
        start = inner.pop(0)
    norm: Any = None
    if inner and inner[-1] is last and _can_be_folded(modules.get(last)) and users[last] == [output]:
        norm = modules[inner.pop()]
        last = source(last.args[0])
    steps: list[Step] = []
    done: set[fx.Node] = set()
    for node in inner:
        if node in done:
            continue
        chain, segment = _segment_at(node, modules, users, source, end=last)
        if segment is not None:
            steps.append(Step(chain[-1], segment, (source(node.args[0]),), {}))
            done.update(chain)
            found.append(" + ".join(_name_of(n, modules) for n in chain))
        else:
            args = map_arg(node.args, source)
            steps.append(Step(node, _as_call(node, modules), args, map_arg(node.kwargs, source)))
            found.append(_name_of(node, modules))
    if norm is not None:
        found.append(f"{type(norm).__name__} in the mixture")
    return CandidateTrace(
        candidate,
        ", ".join(found),
        head=head,
        steps=tuple(steps),
        first=start,
        last=last,
        norm=norm,
        folded=tuple(n for n in (norm, *(s.call.norm for s in steps if isinstance(s.call, Segment))) if n is not None),
        has_choices=any(map(follows_a_plan, modules.values())),
        guards=guards,
    )


def _gives_zeros(x: fx.Node, last: fx.Node, source: Callable[[Any], Any]) -> bool:
    """Say whether `last` is x, or a slice of it, times zero."""
    if last.op == "call_function" and last.target is torch.zeros_like and len(last.args) == 1 and not last.kwargs:
        node = last.args[0]
    elif _calls(last, {operator.mul, torch.mul}, "mul") and len(last.args) == 2 and not last.kwargs:
        numbers = [a for a in last.args if isinstance(a, int | float) and not isinstance(a, bool)]
        if numbers not in ([0], [0.0]):
            return False
        node = next(a for a in last.args if isinstance(a, fx.Node))
    else:
        return False
    node = source(node)
    while isinstance(node, fx.Node) and _calls(node, {operator.getitem}) and len(node.all_input_nodes) == 1:
        node = source(node.args[0])
    return node is x


def _as_head(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> Head | None:
    """Return an operation without parameters that others may share; equal where two do the same."""
    module = modules.get(node)
    if module is None:
        if _calls(node, {torch.relu, F.relu}, "relu") and len(node.args) == 1 and not node.kwargs.get("inplace"):
            return torch.relu
        return None
    if type(module) is nn.ReLU and not module.inplace:
        return torch.relu
    if type(module) is nn.MaxPool2d and not module.return_indices:
        m = module
        return MaxPool(_pair(m.kernel_size), _pair(m.stride), _pair(m.padding), _pair(m.dilation), m.ceil_mode)
    if type(module) is nn.AvgPool2d:
        a = module
        sides = _pair(a.kernel_size), _pair(a.stride), _pair(a.padding)
        return AvgPool(*sides, a.ceil_mode, a.count_include_pad, a.divisor_override)
    return None


def _segment_at(
    node: fx.Node,
    modules: Mapping[fx.Node, nn.Module],
    users: Mapping[fx.Node, list[fx.Node]],
    source: Callable[[Any], Any],
    end: fx.Node,
) -> tuple[list[fx.Node], Segment | None]:
    """Return the segment that begins at a node, with its nodes, if one does."""
    chain: list[fx.Node] = []
    current: fx.Node | None = node

    corner = _corner_cut_off(node)

    def advance() -> None:
        nonlocal current
        assert current is not None
        chain.append(current)
        following = users[current]
        is_inside = current is not end and len(following) == 1 and following[0].op != "output"
        current = following[0] if is_inside else None

    norm: Any = None
    if corner is not None:
        advance()
    elif _can_be_folded(modules.get(node)) and type(modules[node]) is nn.BatchNorm2d:
        norm = modules[node]
        advance()
    # In place it may only change what the norm has made, never the candidate's input.
    rectified = current is not None and (
        (type(m := modules.get(current)) is nn.ReLU and (norm is not None or not m.inplace))
        or (_calls(current, {torch.relu, F.relu}, "relu") and len(current.args) == 1 and not current.kwargs)
    )
    if rectified:
        advance()
    convs: list[nn.Conv2d] = []
    while current is not None and _is_simple_conv(conv := modules.get(current)):
        assert isinstance(conv, nn.Conv2d)
        convs.append(conv)
        advance()
        if not _is_depthwise(conv):  # all but the last are computed again, so an expensive one is the last
            break
    # Of a lone convolution of another kind nothing is saved: its input is held anyway, and its route is torch's.
    worth_it = norm is not None or rectified or any(_is_depthwise(c) or c.kernel_size == (1, 1) for c in convs)
    if not convs or not worth_it or (corner is not None and not shape_of(convs[0]).is_pointwise()):
        return [], None
    return chain, Segment(norm, rectified, tuple(convs), corner or (0, 0))


def _corner_cut_off(node: fx.Node) -> tuple[int, int] | None:
    """Return (rows, columns) where the node is `x[:, :, rows:, columns:]`."""
    if not _calls(node, {operator.getitem}) or not isinstance(node.args[1], tuple) or len(node.args[1]) != 4:
        return None
    cuts = node.args[1]
    if not all(isinstance(cut, slice) and cut.stop is None and cut.step in (None, 1) for cut in cuts):
        return None
    starts = [cut.start or 0 for cut in cuts]  # type: ignore[union-attr]
    if starts[:2] != [0, 0] or not all(isinstance(start, int) and start >= 0 for start in starts):
        return None
    return starts[2], starts[3]


def _as_call(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> Callable[..., Any]:
    """Return what runs a node as it is."""
    if node.op == "call_module":
        if getattr(modules[node], "inplace", False):
            raise Unreadable(f"its {type(modules[node]).__name__} works in place")
        return modules[node]
    if node.kwargs.get("inplace"):
        raise Unreadable(f"its {node.name} works in place")
    if node.op == "call_function" and node.target in _PURE_FUNCTIONS:
        return node.target
    if node.op == "call_method" and node.target in _PURE_METHODS:
        return operator.methodcaller(node.target) if len(node.args) == 1 and not node.kwargs else _Method(node.target)
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise Unreadable(f"{'parameter ' if node.op == 'get_attr' else ''}{what} is not among the operations known")


@dataclass(frozen=True)
class _Method:
    name: str

    def __call__(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(tensor, self.name)(*args, **kwargs)


def _calls(node: fx.Node, functions: set[Any], method: str | None = None) -> bool:
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target == method


def _can_be_folded(module: nn.Module | None) -> bool:
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    attributes = module.__dict__  # through the module it takes several times as long
    has_statistics = attributes["track_running_stats"] and attributes["_buffers"].get("running_mean") is not None
    # Without a momentum they are averages over all batches so far, which only torch's own forward counts.
    return has_statistics and attributes["momentum"] is not None


def _is_simple_conv(module: nn.Module | None) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def _name_of(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> str:
    return type(modules[node]).__name__ if node in modules else node.name


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return first, second
