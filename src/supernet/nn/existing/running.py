"""Running a model on an example, leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import ChoiceError
from supernet.nn.choice import Alternative
from supernet.nn.sizes import Sizes
from supernet.nn.value import ValueChoice

__all__: list[str] = []


def runner(model: nn.Module, example: Any) -> Callable[[], Any]:
    """Return a function that runs a model on its example."""
    if isinstance(example, Mapping):
        return lambda: model(**example)
    if isinstance(example, tuple | list):
        return lambda: model(*example)
    if not isinstance(example, Tensor):
        raise ChoiceError(
            f"example is a batch that the model runs on, a tensor, a tuple of arguments or a dict of named ones, not "
            f"{type(example).__name__}"
        )
    return lambda: model(example)


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Let a model run in evaluation form, and leave no trace of it but in what its forward itself stores."""
    forms = {module: module.training for module in model.modules()}
    random = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, form in forms.items():
            module.training = form
        torch.set_rng_state(random)


class _Decided(nn.Module):
    """Stands for a choice that has been decided."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def alternatives(self) -> list[Alternative]:
        return [Alternative(self.value)]

    def forward(self) -> Any:
        return self.value


@contextmanager
def decided(model: nn.Module, decisions: Mapping[str, Any]) -> Iterator[None]:
    """Let the elastic layers of a model be what is decided, for a moment."""
    done: list[tuple[Sizes, str, nn.Module]] = []
    try:
        for sizes in [module for module in model.modules() if isinstance(module, Sizes)]:
            for name, choice in list(sizes._modules.items()):
                assert isinstance(choice, ValueChoice)
                done.append((sizes, name, choice))
                sizes._modules[name] = _Decided(decisions[str(choice.label)])
        yield
    finally:
        for sizes, name, choice in done:
            sizes._modules[name] = choice


def is_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Say whether two outputs are the same but for rounding, relative to the largest of them."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
