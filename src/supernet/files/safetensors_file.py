"""safetensors files that know a digest of themselves: written and read in one pass, tensor by tensor.

The format is safetensors' own (an 8-byte length, a JSON header, the tensors' bytes), so its library reads these files
too. Ours has the digest at a fixed place, at the beginning of the header: that of all bytes of the file, with zeros in
the digest's place. No tensor is copied to write it, and what is read has been compared byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch

from supernet.errors import FileFormatError, TrainingError
from supernet.files.digests import bits
from supernet.files.encoding import OUT_OF_MEMORY
from supernet.space.files import replacing

__all__: list[str] = []

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # of safetensors' library, in bytes
_BEFORE_DIGEST = b'{"__metadata__":{"digest":"'
_BLANK = b"0" * hashlib.sha256().digest_size * 2


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors such that a kill at any moment leaves the old file of that name, or none, or a whole one.

    Args:
        path: Path of the file.
        tensors: Dense tensors by name, on any device, of the types in `DTYPES`.
        metadata: Further texts for the header.

    Raises:
        TrainingError: The header would be larger than safetensors allows; nothing is written.
        OSError: The file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"digest": _BLANK.decode(), **metadata}}
    end = 0
    # The widest first, as the library has them, so that each begins at a multiple of its width.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LARGEST_HEADER:
        raise TrainingError(
            f"{path} would have {len(tensors):,} tensors, whose header of {len(text):,} bytes is more than the "
            f"{_LARGEST_HEADER:,} that a safetensors file can have; keep them as fewer, larger tensors"
        )
    with replacing(path) as file:
        digest = hashlib.sha256()
        contents: Iterator[Any] = (bits(tensor).data for _, tensor in ordered if tensor.numel())
        for content in chain((len(text).to_bytes(8, "little"), text), contents):
            file.write(content)
            digest.update(content)
        file.seek(8 + len(_BEFORE_DIGEST))
        file.write(digest.hexdigest().encode())


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return metadata and tensors of a safetensors file; where it knows its digest, having compared that.

    Files of others, and ours from before there were digests, have no "digest" in what is returned as metadata.

    Raises:
        FileFormatError: The file is truncated, changed, or none of safetensors; names it and what is wrong.
        OSError: It cannot be read, now; FileNotFoundError where there is no such file.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, *OUT_OF_MEMORY):
        raise  # which says nothing of what the file holds
    except Exception as error:  # whatever wrong content leads to
        raise FileFormatError(f"{path} is not a whole safetensors file: {error}") from error


def _read(file: BinaryIO) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"its header is longer than the file of {size} bytes, or than {_LARGEST_HEADER:,} bytes")
    text = file.read(length)
    digest = hashlib.sha256(prefix)
    at = len(_BEFORE_DIGEST)
    knows_digest = text.startswith(_BEFORE_DIGEST)
    digest.update(text[:at] + _BLANK + text[at + len(_BLANK) :] if knows_digest else text)
    header = json.loads(text)
    metadata = header.pop("__metadata__", {})
    entries = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        entries.append((begin, end, DTYPES[entry["dtype"]], entry["shape"], name))
    tensors, place = {}, 0
    for begin, end, dtype, shape, name in sorted(entries, key=lambda entry: entry[:2]):
        numel = 1
        for extent in shape:
            if type(extent) is not int or extent < 0:
                raise ValueError(f"tensor {name} has the shape {shape}")
            numel *= extent
        if (type(begin), type(end)) != (int, int) or begin != place or end - begin != numel * dtype.itemsize:
            raise ValueError(f"tensor {name} does not stand where the one before it ends, or is not of its size")
        if end > size - 8 - length:
            raise ValueError(f"tensor {name} is cut off")
        content = _memory(end - begin)
        view = bits(content).data
        if numel and file.readinto(view) != end - begin:  # type: ignore[attr-defined]
            raise ValueError(f"tensor {name} is cut off")
        digest.update(view)
        if dtype == torch.bool and numel and int(content.max()) > 1:
            raise ValueError(f"tensor {name} has truth values that are neither true nor false")
        tensors[name], place = content.view(dtype).reshape(shape), end
    if place != size - 8 - length:
        raise ValueError(f"{size - 8 - length - place} bytes follow the last tensor")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    if ("digest" in metadata) != knows_digest:
        raise ValueError("its digest does not stand where it is written")
    if knows_digest and metadata["digest"] != digest.hexdigest():
        raise ValueError(
            f"its bytes have the digest {digest.hexdigest()[:12]}, but were written with {metadata['digest'][:12]}: "
            "the file has been changed, or was damaged"
        )
    return metadata, tensors


def _memory(size: int) -> torch.Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:  # as which torch tells that the CPU has no memory
        raise MemoryError(f"no memory of {size:,} bytes: {error}") from error
