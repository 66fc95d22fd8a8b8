"""Weights of a network in a safetensors file, and a network for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from supernet.deploy.example import Example
from supernet.errors import ArchitectureError, FileFormatError
from supernet.files.weights import load_weights, save_weights
from supernet.space import SearchSpace
from supernet.space.freeze import freeze

__all__: list[str] = []


def write_weights(network: nn.Module, example: Example, path: Path) -> None:
    """Write a network's parameters and buffers."""
    save_weights(network, path)


def read_weights(path: Path, card: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    """Return the network of a model with choices, or a plain network, with the weights of a file.

    Raises:
        FileFormatError: The card has no architecture, or one of another space; or the weights are of another network.
    """
    assert model is not None
    if SearchSpace(model):
        if card.get("architecture") is None:
            raise FileFormatError(
                f"the card of {path} has no architecture by which to freeze {type(model).__name__}; give the network"
            )
        try:
            model = freeze(model, card["architecture"])
        except ArchitectureError as error:
            raise FileFormatError(f"the card of {path} is of another model than this: {error}") from error
    load_weights(model, path)
    return model
