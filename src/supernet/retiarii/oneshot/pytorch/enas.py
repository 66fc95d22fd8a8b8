"""`nni.retiarii.oneshot.pytorch.enas`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from supernet.retiarii.oneshot.pytorch.random import PathSamplingInputChoice, PathSamplingLayerChoice
from supernet.retiarii.oneshot.pytorch.utils import Split, halves
from supernet.trainers import EnasTrainer as OurEnasTrainer

__all__ = ["EnasTrainer"]


class EnasTrainer(OurEnasTrainer):
    """`supernet.EnasTrainer` with Retiarii's signature.

    Args:
        split: "sequential" cuts the data in the middle, as Retiarii did. Default: at random, by the seed.
        options: more of what ours takes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Any,
        reward_function: Callable[[Any, Any], Any],
        optimizer: Any,
        num_epochs: int,
        dataset: Any,
        batch_size: int = 64,
        workers: int = 4,
        device: Any = None,
        log_frequency: int | None = None,
        grad_clip: float | None = 5.0,
        entropy_weight: float = 0.0001,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
        ctrl_lr: float = 0.00035,
        ctrl_steps_aggregate: int = 20,
        ctrl_kwargs: Mapping[str, Any] | None = None,
        *,
        split: Split = "random",
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            loss,
            metrics,
            reward_function,
            optimizer,
            num_epochs,
            batch_size=batch_size,
            workers=workers,
            device=device,
            log_frequency=log_frequency,
            grad_clip=grad_clip,
            entropy_weight=entropy_weight,
            skip_weight=skip_weight,
            baseline_decay=baseline_decay,
            ctrl_lr=ctrl_lr,
            ctrl_steps_aggregate=ctrl_steps_aggregate,
            ctrl_kwargs=ctrl_kwargs,
            **{**halves(dataset, split), **options},
        )

    def take_over(self, layer: Any, input: Any, plan: dict[str, Any]) -> None:
        """Put modules of Retiarii's names in."""
        super().take_over(PathSamplingLayerChoice, PathSamplingInputChoice, plan)
