"""Which channels of a network are the same channels: found by running it once with labels beside its tensors.

Each channel that a layer gives is an *atom*, a number above 0. Beside each tensor goes a tensor of the same shape,
mostly expanded, that says of which atom each element is. What moves elements (views, transposes, concatenations,
indexing) moves the labels by the same operation, so that no shape needs a rule of its own; where elements of two atoms
are combined, one to one, both atoms are one channel. Elements of parameters, buffers and inputs have numbers below 0:
their widths are not given by a layer. What no rule knows keeps the width of all that goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from supernet.nn.existing.labels import along_dim, combined, compressed, is_broadcast, varying
from supernet.nn.existing.layers import OPAQUE, LayerKind, kind_of_layer
from supernet.nn.existing.operations import (
    JOINS,
    MOVES,
    NEW,
    PRODUCTS,
    REDUCTIONS,
    RESHAPES,
    SAME_SHAPE,
    SPATIAL,
)
from supernet.nn.existing.trace import Axis, Trace

__all__: list[str] = []


def trace(model: nn.Module, run: Callable[[], Any], example: Any) -> Trace:
    """Run a model once and return which channels of its layers are the same.

    Args:
        model: The model.
        run: Runs the model on an example and returns its output.
        example: What holds the tensors that it is given.
    """
    found = Trace()
    mode = _Labelling(found)
    for path, module in model.named_modules():
        kind = kind_of_layer(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            is_of_layer = kind is not None and name in kind.tensors  # whose widths are its own
            if tensor is not None and not is_of_layer and tensor not in mode.known:
                labels = found.fresh(tensor.shape)
                found.tensors[f"{path}.{name}" if path else name] = tensor, int(found.num_elements - tensor.numel() + 1)
                mode.known[tensor] = labels
    found.num_places = found.num_elements
    for tensor in tensors_in(example):
        mode.known[tensor] = found.fresh(tensor.shape)
    with torch.no_grad(), mode.watching(model), mode:
        output = run()
    for tensor in tensors_in(output):
        labels = mode.known.get(tensor)
        if labels is not None:
            found.outputs.append(labels[labels > 0].unique())
    return found


class _Labelling(TorchDispatchMode):
    """Carries labels along with the tensors of a run."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.known = WeakTensorKeyDictionary()
        self.stack: list[str] = []
        self.inside = 0  # of layers whose own operations are not followed

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Let the layers of a model give their outputs labels."""
        handles = []
        for path, module in model.named_modules():
            kind = kind_of_layer(module)
            before, after = _Watch(self, path, module, kind).hooks()
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def labels(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor, 0 where it has none."""
        labels = self.known.get(tensor)
        return torch.zeros((), dtype=torch.long).expand(tensor.shape) if labels is None else labels

    def give(self, tensor: Tensor, labels: Tensor) -> None:
        """Give a tensor labels, compressed as they are."""
        self.known[tensor] = labels.expand(tensor.shape)

    @property
    def where(self) -> str:
        return self.stack[-1] if self.stack else ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing is compiled here: torch would load its compiler, which takes seconds, to turn it off."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        taken = [t for t in tensors_in((args, kwargs)) if t in self.known]
        before = {t: self.known[t] for t in taken}  # for those that are written into
        output = func(*args, **kwargs)
        if taken:
            with _without(self):
                self._follow(func, args, kwargs, output, before)
        return output

    def _follow(self, func: Any, args: Any, kwargs: Any, output: Any, before: dict[Tensor, Tensor]) -> None:
        name = func._schema.name.split("::")[1]
        outputs = list(tensors_in(output))
        if not outputs or name in NEW:
            return
        where = f"{name} in {self.where or 'the model'}"
        if name in MOVES:
            self._move(func, name, args, kwargs, outputs)
        elif name in JOINS:
            parts = [self.labels(t) for t in args[0]]
            self.give(outputs[0], func(parts, *args[1:], **kwargs))
        elif name == "constant_pad_nd":
            self.give(outputs[0], func(self.labels(args[0]), args[1], 0))
        elif name == "copy_" and not args[0]._is_view():
            self.give(outputs[0], self.labels(args[1]))
        elif name != "copy_" and (torch.Tag.pointwise in func.tags or name.rstrip("_") in SAME_SHAPE):
            if outputs[0]._is_view() and name.endswith("_") and name != "detach_" and len(before) > 1:
                self.give_up(before, outputs, f"{where}, which writes into a part of a tensor,")
            else:
                self._combine(args, kwargs, outputs, where)
        elif name == "glu":
            halves = self.labels(args[0]).chunk(2, args[1] if len(args) > 1 else -1)
            self.trace.unite(halves[0], halves[1], where)
            self.give(outputs[0], combined(halves[0], halves[1]))
        elif name in REDUCTIONS:
            self._reduce(args, kwargs, outputs, where)
        elif name in PRODUCTS:
            a, b = (self.labels(args[i]) for i in PRODUCTS[name])
            self.give(outputs[0], self._product(a, b, where))
            if name.startswith("add"):
                self.trace.unite(self.labels(args[0]), self.labels(outputs[0]), where)
        elif name.startswith("_scaled_dot_product"):
            q, k, v = (self.labels(t) for t in args[:3])
            masks = [self.labels(t) for t in tensors_in((args[3:], kwargs))]
            self._attend(q, k, v, masks, outputs[0], where)
        elif name in SPATIAL and self._is_constant_from(self.labels(args[0]), self._num_leading(args[0], outputs[0])):
            leading = self._num_leading(args[0], outputs[0])
            labels = self.labels(args[0])
            for _ in range(labels.dim() - leading):
                labels = labels.select(-1, 0)
            for tensor in outputs:
                self.give(tensor, labels.reshape(*labels.shape, *[1] * (tensor.dim() - leading)))
        else:
            self.give_up(before, outputs, where)

    @staticmethod
    def _num_leading(taken: Tensor, given: Tensor) -> int:
        return min(2, taken.dim() - 1) if taken.dim() == given.dim() else 0

    def _is_constant_from(self, labels: Tensor, dim: int) -> bool:
        return dim > 0 and all(n == 1 for n in compressed(labels).shape[dim:])

    def give_up(self, before: Mapping[Tensor, Tensor], outputs: Sequence[Tensor], where: str) -> None:
        for labels in before.values():
            self.trace.fix(labels, f"{where} is not followed")
        for tensor in outputs:
            self.known[tensor] = self.trace.fresh(tensor.shape)

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> None:
        labels = self.labels(args[0])
        if name in RESHAPES:
            moved = [labels.reshape(outputs[0].shape)]
        else:
            moved = list(tensors_in(func(labels, *_on_cpu(args[1:]), **kwargs)))  # indices, of what is on a GPU
        for tensor, of_it in zip(outputs, moved, strict=True):
            self.known[tensor] = of_it
        if not (labels > 0).any():
            return
        if name in RESHAPES or name in ("expand", "split", "split_with_sizes", "unbind", "narrow", "slice"):
            for of_it in moved:
                self.trace.axes.extend(Axis(self.where, along) for along in varying(of_it))
        where = f"{name} in {self.where or 'the model'}"
        if name in ("split", "split_with_sizes") and len({m.shape for m in moved}) == 1 and len(moved) > 1:
            dim = (args[2:] or (kwargs.get("dim", 0),))[0]
            self.trace.splits.append((torch.stack([along_dim(m, dim) for m in moved]), where))
        if name in RESHAPES:
            shape = outputs[0].shape
            for dim in range(len(shape) - 1):
                # A dimension that has been taken apart into two.
                i = next((i for i in range(labels.dim()) if labels.shape[i] == shape[dim] * shape[dim + 1]), None)
                if i is not None and shape[dim] > 1 and shape[dim + 1] > 1 and shape[:dim] == labels.shape[:i]:
                    along = along_dim(labels, i)
                    if len(along.unique()) > 1:
                        self.trace.splits.append((along.reshape(shape[dim], shape[dim + 1]), where))

    def _combine(self, args: Any, kwargs: Any, outputs: Sequence[Tensor], where: str) -> None:
        result: Tensor | None = None
        for tensor in tensors_in((args, kwargs)):
            labels = compressed(self.labels(tensor))
            if tensor.dim() > outputs[0].dim():
                continue
            if result is None:
                result = labels
            else:
                self.trace.unite(result, labels, where)
                result = combined(result, labels)
        for tensor in outputs:
            if result is not None and tensor.dim() == outputs[0].dim() and is_broadcast(result, tensor.shape):
                self.give(tensor, result)

    def _reduce(self, args: Any, kwargs: Any, outputs: Sequence[Tensor], where: str) -> None:
        labels = self.labels(args[0])
        dims = next((a for a in args[1:] if isinstance(a, int | list | tuple) and not isinstance(a, bool)), None)
        dims = kwargs.get("dim", dims) if dims is None else dims
        if args[0].dim() == 0:
            return
        dims = [dims] if isinstance(dims, int) else list(dims or range(labels.dim()))
        dims = sorted(d % labels.dim() for d in dims)
        kept = [d for d in range(labels.dim()) if d not in dims]
        small = compressed(labels)
        rows = small.permute(*kept, *dims).reshape(*(small.shape[d] for d in kept), -1)
        result = self._contracted(rows, where)
        for d in dims:
            if outputs[0].dim() == labels.dim():
                result = result.unsqueeze(d)
        for tensor in outputs:
            self.give(tensor, result)

    def _contracted(self, rows: Tensor, where: str) -> Tensor:
        """Return the labels of what is left where the last dimension (..., R) is summed over."""
        if rows.shape[-1] == 1:
            return rows[..., 0]
        if bool((rows == rows[..., :1]).all()):
            return rows[..., 0]
        flat = rows.reshape(-1, rows.shape[-1])
        if bool((flat == flat[:1]).all()) or not (rows > 0).any():
            return torch.zeros((), dtype=torch.long).expand(rows.shape[:-1])  # no output is of one channel only
        # One output is of these channels, another of those, as where heads are attended to: they go together.
        labels = rows.amax(-1)
        self.trace.unite(labels[..., None], rows, where)
        return labels

    def _product(self, a: Tensor, b: Tensor, where: str) -> Tensor:
        """Return the labels of a matrix product (..., N, K) x (..., K, M)."""
        a, b = compressed(a), compressed(b)
        if a.shape[-1] == 1 and b.shape[-2] == 1:
            self.trace.unite(a, b, where)
            return combined(a, b)
        varies_a, varies_b = (bool(x.shape[d] > 1 and (x > 0).any()) for x, d in ((a, -1), (b, -2)))
        if varies_a and varies_b:
            self.trace.unite(a.amax(-2), b.amax(-1), where)
            if not (a.shape[-2] == 1 and b.shape[-1] == 1):
                self.trace.unite(a, a.amax(-2, keepdim=True), where)
                self.trace.unite(b, b.amax(-1, keepdim=True), where)
            return self._contracted(combined(a.amax(-2), b.amax(-1)), where)[..., None, None]
        if varies_a or varies_b:  # with a matrix that no layer gives
            mine, other = (a.amax(-2), b) if varies_a else (b.amax(-1), a.transpose(-1, -2))
            self.trace.unite(mine[..., None], other, where)
            if not (other < 0).any():
                self.trace.fix(mine, f"{where} multiplies it by a matrix of a given width")
            return self.trace.fresh((a.shape[-2], b.shape[-1]))
        # Neither varies along the sum, as where tokens are summed: each output is of a row's and a column's channel.
        rows = a.amax(-1, keepdim=True) if (a > 0).any() else torch.zeros((), dtype=torch.long)
        columns = b.amax(-2, keepdim=True) if (b > 0).any() else torch.zeros((), dtype=torch.long)
        self.trace.unite(rows, columns, where)
        return combined(rows, columns)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor], output: Tensor, where: str) -> None:
        """Follow softmax(q k^T + mask) v of (B, heads, T, D), where each head of keys may be for several of queries."""
        if k.dim() > 2 and q.shape[-3] != k.shape[-3]:
            repeats = q.shape[-3] // k.shape[-3]
            k, v = (x.repeat_interleave(repeats, -3) for x in (k, v))
        scores = self._product(q, k.transpose(-1, -2), where)
        for mask in masks:
            self.trace.unite(scores, compressed(mask), where)
        self.give(output, self._product(scores, v, where))


class _Watch:
    """What happens before and after a module runs."""

    def __init__(self, mode: _Labelling, path: str, module: nn.Module, kind: LayerKind | None) -> None:
        self.mode, self.path, self.module, self.kind = mode, path, module, kind

    def hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what is called before and after a forward."""
        if self.kind is not None:
            return self.before_layer, self.after_layer
        if isinstance(self.module, OPAQUE):
            return self.before_layer, self.after_opaque
        return self.before, self.after

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.mode.stack.append(self.path)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.mode.stack.pop()

    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.mode.inside += 1

    def after_layer(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.mode.inside -= 1
        if self.mode.inside:
            return
        with _without(self.mode):
            x = next(tensors_in((args, kwargs)))
            self.mode.give(output, compressed(self._given(x, output)))

    def after_opaque(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.mode.inside -= 1
        if self.mode.inside:
            return
        with _without(self.mode):
            taken = {x: self.mode.labels(x) for x in tensors_in((args, kwargs))}
            self.mode.give_up(taken, list(tensors_in(output)), f"{type(module).__name__} at {self.path!r}")

    def _given(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the labels of a layer's output."""
        assert self.kind is not None
        trace, mode, kind, module = self.mode.trace, self.mode, self.kind, self.module
        labels, dim = mode.labels(x), kind.dim
        if not kind.is_source:
            # Batch norms take (N, C) too; of an unbatched input the channels are first, which we do not look for.
            features = trace.width(self.path, "features", x.shape[dim])
            if not trace.follows(labels, dim, features, self.path):
                return labels
            num_groups = getattr(module, "num_groups", 1)
            if num_groups > 1:
                atoms = features.atoms.reshape(num_groups, -1)
                trace.unite(atoms[:, :1], atoms, f"groups of {self.path}")
            return labels
        out = trace.width(self.path, "out", output.shape[dim])
        shape = [1] * output.dim()
        shape[dim] = out.length
        if isinstance(module, nn.Embedding):
            return out.atoms.reshape(shape)
        into = trace.width(self.path, "in", x.shape[dim])
        if not trace.follows(labels, dim, into, self.path):
            trace.fix(out.atoms, f"{self.path} is applied along another dimension than the channels")
            return labels.narrow(dim, 0, 1).expand(
                [-1 if n == 1 else m for n, m in zip(shape, output.shape, strict=True)]
            )
        groups = getattr(module, "groups", 1)
        if groups > 1:
            # Of a depthwise convolution a group is one channel, else the channels of a group go together.
            atoms_in, atoms_out = into.atoms.reshape(groups, -1), out.atoms.reshape(groups, -1)
            trace.unite(atoms_in[:, :1], atoms_in, f"groups of {self.path}")
            trace.unite(atoms_in[:, :1], atoms_out, f"groups of {self.path}")
        return out.atoms.reshape(shape)


@contextmanager
def _without(mode: _Labelling) -> Iterator[None]:
    """Let operations on labels not be followed themselves."""
    mode.inside += 1
    try:
        yield
    finally:
        mode.inside -= 1


def _on_cpu(arguments: Sequence[Any]) -> list[Any]:
    """Return arguments with tensors, in lists too, where labels are."""
    return [
        each.cpu() if isinstance(each, Tensor) else _on_cpu(each) if isinstance(each, list) else each
        for each in arguments
    ]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples, mappings and data classes."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_in(value)
