"""Running statistics computed anew for one network, where those at hand are of another, or of many mixed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.execution.state import Forms

__all__: list[str] = []


@contextmanager
def statistics_anew(model: nn.Module, forms: Forms) -> Iterator[list[_BatchNorm]]:
    """Let BatchNorm's running statistics become the plain average over the batches that run in this context.

    All else is in eval form, and so is a norm that is not trained either. After the context the whole model is. After
    an error the statistics are as they were.

    Args:
        model: The model that runs.
        forms: Forms of its modules.

    Yields:
        The norms concerned; where there are none, no batch need run.
    """
    forms.train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    model.eval()
    momenta, before = [norm.momentum for norm in norms], [copy.deepcopy(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
            if isinstance(norm, nn.SyncBatchNorm):  # other processes may be at another network
                norm.forward = MethodType(_BatchNorm.forward, norm)  # type: ignore[method-assign]
        yield norms
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, value in buffers.items():
                if value is not None:
                    norm._buffers[name].copy_(value)  # type: ignore[union-attr]
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            if isinstance(norm, nn.SyncBatchNorm):
                norm.__dict__.pop("forward", None)
