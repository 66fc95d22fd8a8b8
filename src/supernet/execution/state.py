"""What must be left as it was: forms, gradients nobody uses, weights, running statistics, random numbers."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__: list[str] = []


@contextmanager
def no_grad_for(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient of these parameters inside this context."""
    wanted = [p for p in parameters if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def preserve_values(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Bring these parameters back to their values, bit by bit, after this context."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def overwritten(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the tensor, which has the values of another one now; where it is expanded, they are written once."""
    try:
        return tensor.copy_(value)
    except RuntimeError:
        strides = tensor.stride() if tensor.layout == torch.strided else ()
        expanded = [dim for dim, stride in enumerate(strides) if stride == 0 and tensor.shape[dim] > 1]
        if not expanded:
            raise
    overwritten(tensor.narrow(expanded[0], 0, 1), value.narrow(expanded[0], 0, 1))
    return tensor


Noted = list[tuple[nn.Module, dict[str, torch.Tensor | None]]]

# What these give in training does not depend on their running statistics.
_NORMS = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")


class Buffers:
    """The buffers of a model: running statistics and the like. Found once, for a module walk has no place in a step.

    Those too that a forward fills or registers first. Other attributes of modules are their own affair.

    Attributes:
        are_there: Whether there have been any yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._used = [module for module in self._modules if type(module).__module__ not in _NORMS]
        self._places = {(module, name) for module in self._modules for name in module._buffers}
        self.are_there = any(module._buffers.get(name) is not None for module, name in self._places)

    @contextmanager
    def preserve(self, only_after: type[Exception] | None = None) -> Iterator[None]:
        """Bring the buffers back to their values after this context, also where a forward puts in new tensors.

        Args:
            only_after: An exception: values are brought back only where the context is left by it. Default: always.
        """
        before = [(m, name, b, b.clone()) for m in self._modules for name, b in m._buffers.items() if b is not None]
        brings_back = only_after is None
        try:
            yield
        except BaseException as error:
            brings_back |= only_after is not None and isinstance(error, only_after)
            raise
        finally:
            with torch.no_grad():
                for module, name, buffer, value in before if brings_back else ():
                    module._buffers[name] = overwritten(buffer, value)
            if sum(b is not None for m in self._modules for b in m._buffers.values()) > len(before):
                self._found_new({(module, name) for module, name, *_ in before}, brings_back)

    def _found_new(self, known: set[tuple[nn.Module, str]], taken_out: bool) -> None:
        """Note that there are others than those known, and take these out if asked to."""
        self.are_there = True
        present = [(m, name) for m in self._modules for name, b in m._buffers.items() if b is not None]
        new = [place for place in present if place not in known]
        for module, name in new if taken_out else ():
            if (module, name) in self._places:
                module._buffers[name] = None
            else:
                del module._buffers[name]

    def noted(self) -> Noted:
        """Return copies of what a forward may use: of all but the running statistics of torch's own norms."""
        return [(m, {name: b if b is None else b.clone() for name, b in m._buffers.items()}) for m in self._used]

    def put(self, noted: Noted) -> None:
        """Let the modules find what was noted; within `preserve`, which brings back what they have now."""
        for module, buffers in noted:
            module._buffers.clear()  # of what has been registered since
            module._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})


class Forms:
    """The forms, training or eval, of a model's modules.

    In a model in training form, what is in eval form was put there on purpose, say the BatchNorm of a pretrained
    backbone: it stays so. So does what a module's own `train` keeps in eval form. A model that is in eval form itself
    is trained as a whole.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._in_eval: frozenset[nn.Module] = frozenset()
        self.note()

    def note(self) -> None:
        """Take what is in eval form now as put there on purpose, unless that is the model itself."""
        if self._model.training:
            self._in_eval = frozenset(module for module in self._model.modules() if not module.training)

    def train(self) -> None:
        """Put the model into training form, all but the parts that are to stay in eval form."""
        self._model.train()
        _put_into([(m, m.training and m not in self._in_eval) for m in self._model.modules()])

    @contextmanager
    def preserve(self) -> Iterator[None]:
        """Bring each module back to its form after this context."""
        before = [(module, module.training) for module in self._model.modules()]
        try:
            yield
        finally:
            _put_into(before)

    @contextmanager
    def evaluating(self, loss: Any = None) -> Iterator[None]:
        """Let the model, and a loss that is a module, be in eval form in this context, and all as it was after it."""
        with self.preserve(), Forms(loss).preserve() if isinstance(loss, nn.Module) else nullcontext():
            self._model.eval()
            if isinstance(loss, nn.Module):
                loss.eval()
            yield


def _put_into(forms: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in forms:  # outer before inner, each by its own `train`, which may do more than set a flag
        if module.training != training:
            module.train(training)
    for module, training in forms:  # and what a `train` keeps as it is, or a module of two parents was put to
        if module.training != training:
            module.training = training


class RandomState:
    """The state of Python's, NumPy's and torch's random numbers at one moment, to come back to.

    Args:
        device: Device whose numbers count too. Default: none beside the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if (numpy := sys.modules.get("numpy")) else None
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device else None

    def put_back(self) -> None:
        """Draw from here on as from that moment on."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None and self._device is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    def to_tree(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, texts, lists and dicts of these."""
        version, internal, gauss = self._python
        numpy = None
        if self._numpy is not None:
            kind, keys, position, has_gauss, cached = self._numpy
            numpy = [kind, keys.tolist(), int(position), int(has_gauss), float(cached)]
        return {"python": [version, list(internal), gauss], "numpy": numpy, "cpu": self._cpu, "cuda": self._cuda}

    @classmethod
    def from_tree(cls, tree: dict[str, Any], device: torch.device) -> RandomState:
        """Return the state that `to_tree` wrote."""
        state = cls(device)
        version, internal, gauss = tree["python"]
        state._python = (version, tuple(internal), gauss)
        if tree["numpy"] is not None and (numpy := sys.modules.get("numpy")):
            kind, keys, position, has_gauss, cached = tree["numpy"]
            state._numpy = (kind, numpy.array(keys, dtype="uint32"), position, has_gauss, cached)
        state._cpu = tree["cpu"]
        if tree["cuda"] is not None and state._device is not None:
            state._cuda = tree["cuda"]
        return state


@contextmanager
def preserve_random_numbers(device: torch.device | None = None) -> Iterator[None]:
    """Put all random numbers back after this context, as if nothing had been drawn inside."""
    state = RandomState(device)
    try:
        yield
    finally:
        state.put_back()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's random numbers inside this context, and put them back after."""
    with preserve_random_numbers(device):
        reseed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def reseed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers on the CPU."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):  # who does not use NumPy need not have it
        numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def derive_seed(*numbers: int) -> int:
    """Return one seed for several numbers, far apart for neighbours, below 2**63."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
