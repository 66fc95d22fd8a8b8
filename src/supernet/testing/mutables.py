"""What a module that depends on values promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.execution import Selection, Supernet
from supernet.nn import Choice, Mutable
from supernet.space import Architecture, SearchSpace
from supernet.testing.choices import MOST, check_runs, check_space, frozen_network, host_of, some_of, told
from supernet.testing.comparing import in_words, promised

__all__ = ["check_mutable"]


def check_mutable(
    make: Callable[[], Mutable], *inputs: Any, narrowed: Callable[[Architecture], Sequence[Any]] | None = None
) -> None:
    """Check that a module that depends on values holds what spaces, supernets, trainers and `freeze` rely on.

    - `choices()` are those that the space finds in it, and `frozen` is a module without choices, whose parameters are
      views of the module's own: so what is frozen is what was trained, and what is tied stays tied.
    - On each path the supernet computes what the frozen network computes, in training and in eval form.
    - A mixture is the sum, by their weights, of what all sizes give, padded with zeros to the largest; where inputs
      are as wide as they can be, each takes its part.
    - Gates let the active size through, and their gradients are those of what the sizes give: `<dL/dy, y_k>`.
    - Two that are made alike, copies, and the module in a supernet give spaces of one fingerprint, and an architecture
      that is saved is loaded again.
    - A supernet's `state_dict` has the keys of the model as written, which loads it.

    All is checked in float64. What is drawn, as by dropout, is drawn alike where it has the same shape.

    Args:
        make: Returns a new module each time it is called, of the same kind and sizes.
        inputs: Arguments that it is called with, as wide as they can be; tensors of float32 become float64.
        narrowed: Function of an architecture that returns the arguments that its frozen network takes. Default: the
            same, for no choice decides how wide an input is.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> width = ValueChoice([2, 4], label="width")
    >>> check_mutable(lambda: supernet.nn.Linear(3, width), torch.ones(2, 3))
    """
    host = host_of(make, Mutable).double()
    inputs = tuple(map(_double, inputs))

    def arguments(architecture: Architecture) -> Sequence[Any]:
        return inputs if narrowed is None else tuple(map(_double, narrowed(architecture)))

    mutable, space = host.part, SearchSpace(host)
    labels = [str(choice.label) for choice in mutable.choices()]
    promise = "choices() are those that the space finds in the module"
    promised(promise, {*labels} <= {*space}, f"they are {in_words(labels)}, and the space has {in_words(list(space))}")
    promised("the module depends on choices", labels, "choices() returned none")
    architectures = some_of(space.enumerate(), space.size, space)
    _check_frozen(mutable, architectures)
    check_space(host, host_of(make, Mutable), space, architectures)
    _check_paths(host, architectures, arguments)
    _check_mixtures(host, space, labels, inputs, arguments)
    check_runs(host.eval(), host_of(make, Mutable).double(), architectures, arguments)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_frozen(mutable: Mutable, architectures: Sequence[Architecture]) -> None:
    own = {p.untyped_storage().data_ptr() for p in (*mutable.parameters(), *mutable.buffers())}
    for architecture in architectures:
        module = mutable.frozen(architecture)
        promised(f"frozen({architecture}) returns a module", isinstance(module, nn.Module), f"it returned {module!r}")
        left = [name for name, inner in module.named_modules() if isinstance(inner, Choice)]
        promised(f"frozen({architecture}) has no choices", not left, f"{in_words(left)} are left")
        new = [name for name, p in module.named_parameters() if p.untyped_storage().data_ptr() not in own]
        promise = f"the parameters of frozen({architecture}) are views of the module's own, which a search trains"
        promised(promise, not new, f"{in_words(new)} were made anew")


def _check_paths(
    host: nn.Module, architectures: Sequence[Architecture], arguments: Callable[[Architecture], Sequence[Any]]
) -> None:
    networks = [frozen_network(host, architecture) for architecture in architectures]
    supernet = Supernet(copy.deepcopy(host))
    for architecture, network in zip(architectures, networks, strict=True):
        for training in (True, False):
            network.train(training), supernet.train(training)
            expected = _output(network, arguments(architecture))
            form = "training" if training else "eval"
            with told(f"in {form} form the path {architecture} is as its frozen network"):
                with supernet.following(architecture):
                    found = _output(supernet.model, arguments(architecture))
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def _output(module: nn.Module, arguments: Sequence[Any]) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = copy.deepcopy(module.state_dict())  # running statistics that a pass in training form moves
        output = module(*arguments)
        module.load_state_dict(state)
    return output


def _check_mixtures(
    host: nn.Module,
    space: SearchSpace,
    labels: Sequence[str],
    inputs: Sequence[Any],
    arguments: Callable[[Architecture], Sequence[Any]],
) -> None:
    """Check mixtures, and gates, against the frozen networks."""
    joint = [dict(zip(labels, each, strict=True)) for each in product(*(space[label] for label in labels))]
    others = {label: next(iter(space[label])) for label in space if label not in labels}
    if len(joint) > MOST:
        raise ValueError(f"the module has {len(joint):,} joint sizes, and at most {MOST} are mixed; give it fewer")
    outputs = [_output(frozen_network(host, {**others, **one}), arguments({**others, **one})) for one in joint]
    if not all(isinstance(output, Tensor) for output in outputs):
        return  # of which no sum is known
    largest = [max(sizes) for sizes in zip(*(output.shape for output in outputs), strict=True)]
    padded = {repr(one): _padded(output, largest) for one, output in zip(joint, outputs, strict=True)}
    supernet, generator = Supernet(copy.deepcopy(host)).eval(), torch.Generator().manual_seed(0)
    weights = {label: torch.rand(space[label].size, generator=generator, dtype=torch.float64) for label in labels}
    expected = torch.zeros(largest, dtype=torch.float64)
    for one in joint:
        shares = (weights[label][list(space[label]).index(one[label])] for label in labels)
        expected = expected + math.prod(shares) * padded[repr(one)]
    # Of the model itself, for the supernet's own call tries first whether mixtures are as they must be.
    with torch.no_grad(), supernet.following({**others, **weights}):
        found = _padded(supernet.model(*inputs), largest)
    with told("a mixture is the weighted sum of what all sizes give, padded with zeros"):
        torch.testing.assert_close(found, expected)
    _check_gates(supernet, space, labels, inputs, others, padded, largest)


def _check_gates(
    supernet: Supernet,
    space: SearchSpace,
    labels: Sequence[str],
    inputs: Sequence[Any],
    others: Mapping[str, Any],
    padded: Mapping[str, Tensor],
    largest: Sequence[int],
) -> None:
    for label in labels:
        first, *_, last = list(space[label])
        if first == last:
            continue
        fixed = {other: next(iter(space[other])) for other in labels if other != label}
        gates = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        output = _padded(supernet(*inputs, {**others, **fixed, label: Selection((last, first), gates, 1)}), largest)
        active, other = (padded[repr({name: {**fixed, label: d}[name] for name in labels})] for d in (last, first))
        with told(f"gates of {label!r} let the active size through"):
            torch.testing.assert_close(output, active)
        factors = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        (found,) = torch.autograd.grad((output * factors).sum(), gates)
        with told(f"the gradient of gates of {label!r} is <dL/dy, y_k>, of what each size gives"):
            torch.testing.assert_close(found, torch.stack([(active * factors).sum(), (other * factors).sum()]))


def _padded(x: Tensor, shape: Sequence[int]) -> Tensor:
    return F.pad(
        x, [n for have, want in zip(reversed(x.shape), reversed(shape), strict=True) for n in (0, want - have)]
    )
