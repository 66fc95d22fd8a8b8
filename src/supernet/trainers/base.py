"""The contract that every trainer keeps, and all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["BaseOneShotTrainer"]


class BaseOneShotTrainer(ABC):
    """A one-shot trainer: it trains a supernet and names an architecture.

    Inherit it and write `fit` and `export`; `__init__` takes whatever you like. A model with choices cannot
    run as it is: put modules of your own in their place by `replace_layer_choice` and `replace_input_choice`.
    """

    @abstractmethod
    def fit(self) -> None:
        """Train the supernet and search."""

    @abstractmethod
    def export(self) -> Any:
        """Return the best architecture: a dict, label -> decision."""
