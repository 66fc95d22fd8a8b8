"""The files that a run leaves behind."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from supernet.errors import MissingExtraError, TrainingError
from supernet.reports import plot_architecture, plot_probabilities
from supernet.space import Architecture, SearchSpace, freeze, save_architecture

__all__: list[str] = []

logger = logging.getLogger(__name__)


class RunDirectory:
    """A directory with `metrics.jsonl` as it grows, and the result at the end.

    Raises:
        TrainingError: another run's files are there, or the directory cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._metrics = self.path / "metrics.jsonl"
        if self._metrics.exists():
            raise TrainingError(f"{self.path} holds a run already; choose another run_dir, or move it away")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"run_dir {self.path} cannot be made: {error}") from error

    def append_epoch(self, record: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write_result(
        self, model: nn.Module, architecture: Architecture, space: SearchSpace, history: list[dict[str, Any]]
    ) -> None:
        """Write `architecture.json`, `network.safetensors`, and plots as PNG and SVG."""
        save_architecture(architecture, self.path / "architecture.json", space)
        save_model(freeze(model, architecture), str(self.path / "network.safetensors"))
        try:
            plot_architecture(model, architecture, self.path / "architecture")
            plot_probabilities(space, history, self.path / "probabilities")
        except MissingExtraError as error:
            logger.warning("%s holds no plots: %s", self.path, error)
