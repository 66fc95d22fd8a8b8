"""`nni.retiarii.oneshot.pytorch.proxyless`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from supernet.retiarii.oneshot.pytorch.utils import Split, halves
from supernet.trainers import ProxylessTrainer as OurProxylessTrainer

__all__ = ["ProxylessTrainer"]


class ProxylessTrainer(OurProxylessTrainer):
    """`supernet.ProxylessTrainer` with Retiarii's signature.

    Args:
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        options: more of what ours takes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Any,
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        warmup_epochs: int = 0,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        arc_learning_rate: float = 1e-3,
        *,
        split: Split = "random",
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            loss,
            metrics,
            optimizer,
            num_epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            arc_learning_rate=arc_learning_rate,
            **{**halves(dataset, split), **options},
        )
