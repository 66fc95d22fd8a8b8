"""`RetiariiExperiment` around a one-shot trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from supernet.errors import TrainingError
from supernet.retiarii.absent import names_absent_from
from supernet.trainers import BaseOneShotTrainer

__all__ = ["RetiariiExeConfig", "RetiariiExperiment"]


class RetiariiExeConfig(SimpleNamespace):
    """Takes any attribute; a one-shot trainer reads none of them."""

    def __init__(self, training_service_platform: str | None = None, **settings: Any) -> None:
        super().__init__(training_service_platform=training_service_platform, **settings)


class RetiariiExperiment:
    """Runs a one-shot trainer.

    Raises:
        TrainingError: The trainer is not a one-shot trainer: multi-trial search is not part of this library.
    """

    def __init__(self, base_model: nn.Module, trainer: Any, applied_mutators: Any = None, strategy: Any = None) -> None:
        if not isinstance(trainer, BaseOneShotTrainer):
            raise TrainingError(
                f"RetiariiExperiment runs one-shot trainers, and {type(trainer).__name__} is none: inherit "
                "BaseOneShotTrainer, or use one of supernet's trainers"
            )
        self.base_model, self.trainer = base_model, trainer

    def run(self, config: Any = None, port: int = 8080, debug: bool = False) -> None:
        """Run the search."""
        self.trainer.fit()

    def export_top_models(self, top_k: int = 1, **options: Any) -> Any:
        """Return the architecture that the search ended with."""
        return self.trainer.export()


__getattr__ = names_absent_from(__name__, "nni.retiarii.experiment.pytorch")
