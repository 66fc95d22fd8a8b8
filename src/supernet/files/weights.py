"""The weights of a plain network in a safetensors file that knows its digest."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from supernet.errors import FileFormatError
from supernet.files.safetensors_file import read_safetensors, write_safetensors

__all__ = ["load_weights"]


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as `safetensors.torch.save_model` does, with a digest in the metadata."""
    of_library = path.with_name(f".{path.name}.tmp")
    try:
        save_model(network, str(of_library))  # which knows how tensors of one memory are kept as one
        metadata, tensors = read_safetensors(of_library)
    finally:
        of_library.unlink(missing_ok=True)
    write_safetensors(path, tensors, metadata)


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights of a run's `network.safetensors`, having compared its digest.

    Args:
        network: The network that the run has found: `freeze(model, architecture)`.
        path: Path of the file.

    Raises:
        FileFormatError: The file is damaged, or does not hold the weights of this network.
        OSError: It cannot be read, now; FileNotFoundError where there is no such file.

    >>> network, data = nn.Linear(1, 1), TensorDataset(torch.randn(8, 1), torch.randn(8, 1))
    >>> history = train(network, nn.MSELoss(), None, SGD(network.parameters(), 0.1), 1, data, run_dir="runs/of_weights")
    >>> load_weights(nn.Linear(1, 1), "runs/of_weights/network.safetensors")
    """
    path = Path(path)
    metadata, tensors = read_safetensors(path)
    # Before there were digests, metadata only said which tensors are kept under another's name.
    if "digest" not in metadata and not set(metadata.values()) <= tensors.keys():
        raise FileFormatError(f"{path} has metadata that it was not written with; it has been changed, or was damaged")
    try:
        load_model(network, path)
    except (SafetensorError, RuntimeError) as error:
        raise FileFormatError(f"{path} does not hold the weights of this network: {error}") from error
