"""Ordering channels by their importance, so that the first of them, which narrow networks have, are the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Choice
from supernet.nn.existing.groups import Coupling, Places, coupling_of, names
from supernet.nn.existing.layers import kind_of_layer
from supernet.nn.existing.running import as_evaluated, decided, is_close, runner
from supernet.nn.existing.tracing import tensors_in, trace
from supernet.nn.value import ValueChoice

__all__ = ["sort_channels"]


@torch.no_grad()
def sort_channels(model: nn.Module, data: Iterable[Any] | None = None, *, example: Any = None) -> nn.Module:
    """Put the channels and heads of a trained model in the order of their importance, in place; its output stays.

    Narrow networks of an elastic model have the first channels of each layer: after this, the most important ones. What
    goes together (see `elastic`) is sorted together. It is done before training, for the state of an optimizer does not
    follow; before or after `elastic`.

    The importance of a channel is the sum of the absolute weights by which layers take it; on data, each times the mean
    absolute value of the channel there.

    Args:
        model: The model.
        data: Batches, each as `example`; of a loader of inputs and targets, `(x for x, _ in loader)`. Default: weights
            alone decide.
        example: A batch to find by what goes together: a tensor, a tuple of arguments, or a dict of named ones.
            Default: the first of the data.

    Returns:
        The same model.

    Raises:
        ChoiceError: There is neither data nor an example, the model has choices between layers, or its output would
            change. After any of these the model is as it was.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> for layer, weight in zip(model, [[[1.0], [2.0]], [[0.5, -3.0]]]):
    ...     layer.weight.data = torch.tensor(weight)
    >>> [layer.weight.tolist() for layer in sort_channels(model, example=torch.ones(1, 1))]
    [[[2.0], [1.0]], [[-3.0, 0.5]]]
    """
    choices = [module for module in model.modules() if isinstance(module, Choice)]
    if any(not isinstance(choice, ValueChoice) for choice in choices):
        raise ChoiceError("channels are sorted before layers are chosen between; call sort_channels before choose")
    batches = iter(() if data is None else data)
    if example is None:
        example = next(batches, None)
        if example is None:
            raise ChoiceError("sort_channels needs data, or an example to run the model on")
        # The first batch of an iterator is gone by now, and counts among the data too.
        batches = chain([example], batches)
    widest = {str(choice.label): max(choice.candidates) for choice in choices if isinstance(choice, ValueChoice)}
    run = runner(model, example)
    with decided(model, widest), as_evaluated(model):
        before = [tensor.clone() for tensor in tensors_in(run())]
        coupling = coupling_of(trace(model, run, example))
        means = None if data is None else _mean_inputs(model, batches)
        orders = _orders(model, coupling, means)
        moves = list(_moves(model, coupling, orders))
        for tensor, dim, source in moves:
            tensor.copy_(tensor.index_select(dim, source))
        after = list(tensors_in(run()))
        if not all(is_close(a, b, 1e-4) for a, b in zip(before, after, strict=True)):
            for tensor, dim, source in reversed(moves):
                tensor.copy_(tensor.index_select(dim, source.argsort()))
            raise ChoiceError(
                "the order of channels matters to this model, so they cannot be sorted: with another order it gives "
                f"another output; sorted were those of {names(coupling.groups[g].path for g in orders)}"
            )
    return model


def _orders(
    model: nn.Module,
    coupling: Coupling,
    means: Mapping[str, Tensor] | None,
) -> dict[int, Tensor]:
    """Return for each group that may be sorted which unit comes to stand where each stood."""
    importance = [torch.zeros(group.num_units, dtype=torch.float64) for group in coupling.groups]
    dims: list[Places] = [*coupling.layers.values(), *(p for dims in coupling.tensors.values() for p in dims.values())]
    patterns: list[list[tuple[int, ...]]] = []  # how often each unit occurs where: those that do alike change places
    for g, group in enumerate(coupling.groups):
        counts = [places.unit[places.group == g].bincount(minlength=group.num_units) for places in dims]
        patterns.append(list(zip(*(count.tolist() for count in counts), strict=True)))
    modules = dict(model.named_modules())
    for (path, role), places in coupling.layers.items():
        kind = kind_of_layer(modules[path])
        dim = next((d for d, r in kind.tensors["weight"].items() if r == role), None) if kind and role == "in" else None
        if dim is None:
            continue
        weight = modules[path].weight
        assert isinstance(weight, Tensor)
        total = weight.detach().abs().double().movedim(dim, 0).flatten(1).sum(1).cpu()
        if means is not None:
            total = total * means[path]
        for g in places.groups:
            of_group = places.group == g
            importance[g].index_add_(0, places.unit[of_group], total[of_group])
    orders = {}
    for g, group in enumerate(coupling.groups):
        if group.fixed or group.is_output:
            continue
        order = torch.arange(group.num_units)
        for pattern in dict.fromkeys(patterns[g]):
            alike = torch.tensor([unit for unit, own in enumerate(patterns[g]) if own == pattern])
            order[alike] = alike[importance[g][alike].argsort(descending=True, stable=True)]
        orders[g] = order
    return orders


def _moves(
    model: nn.Module,
    coupling: Coupling,
    orders: Mapping[int, Tensor],
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield each tensor, a dimension of it, and from where each of its places is filled."""
    done: set[tuple[int, int]] = set()
    for path, module in model.named_modules():
        kind = kind_of_layer(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            dims = dict(coupling.tensors.get(f"{path}.{name}" if path else name, {}))
            for dim, role in kind.tensors.get(name, {}).items() if kind else ():
                if (path, role) in coupling.layers:
                    dims[dim] = coupling.layers[path, role]
            for dim, places in dims.items():
                of_dim = {g: orders[g] for g in places.groups if g in orders}
                if of_dim and (id(tensor), dim) not in done:  # weights that are tied are moved once
                    done.add((id(tensor), dim))
                    yield tensor, dim, places.reordered(of_dim).to(tensor.device)


def _mean_inputs(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the mean absolute value of each channel that a layer takes, on data."""
    totals: dict[str, Tensor] = {}
    numbers: Counter[str] = Counter()
    with _watching(model, totals, numbers):
        for batch in batches:
            runner(model, batch)()
    return {path: total / numbers[path] for path, total in totals.items()}


@contextmanager
def _watching(
    model: nn.Module,
    totals: dict[str, Tensor],
    numbers: Counter[str],
) -> Iterator[None]:
    def watch(path: str, dim: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tensors_in((args, kwargs))).detach().abs().double().movedim(dim, 0).flatten(1)
            totals[path] = totals.get(path, 0) + x.sum(1).cpu()
            numbers[path] += x.shape[1]

        return hook

    handles = []
    for path, module in model.named_modules():
        kind = kind_of_layer(module)
        if kind is not None and "in" in kind.attributes.values():
            handles.append(module.register_forward_pre_hook(watch(path, kind.dim), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
