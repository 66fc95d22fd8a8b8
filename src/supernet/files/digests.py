"""Digests of what a checkpoint holds: of tensors by their bits, of all else by how it is encoded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from supernet.files.encoding import PARTS_OF_SPARSE, encoded

__all__: list[str] = []


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor's elements in their order; where they are, if they lie on the CPU in that order.

    Of a sparse tensor they are those of its indices and values.
    """
    tensor = tensor.detach()
    if tensor.layout in PARTS_OF_SPARSE:
        return np.concatenate([bits(getattr(tensor, part)()) for part in PARTS_OF_SPARSE[tensor.layout]])
    tensor = tensor.int_repr() if tensor.is_quantized else tensor
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    result: np.ndarray[Any, Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return result


def digest_of(value: Any) -> str:
    """Return a digest of all that a checkpoint would hold of a value, the same in each process and for equal sets.

    Raises:
        TrainingError: A checkpoint cannot hold it; names what.
    """
    table = encoded(value, "state", order_of_sets=digest_of)
    result = hashlib.sha256(json.dumps([table.nodes, table.root]).encode())
    for tensor in table.tensors:
        result.update(bits(tensor).data)
    return result.hexdigest()
