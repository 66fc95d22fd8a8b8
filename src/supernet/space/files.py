"""Architectures in files: JSON with a format version and the space's fingerprint.

A file of a newer format version is refused. A change that old readers cannot read raises the version; this
library goes on reading every version that it has ever written.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from supernet.errors import ArchitectureError, FileFormatError
from supernet.space.space import Architecture, SearchSpace

__all__ = ["load_architecture", "save_architecture"]

FORMAT = "supernet/architecture"
VERSION = 1


def save_architecture(architecture: Mapping[str, Any], path: str | os.PathLike[str], space: SearchSpace) -> None:
    """Write an architecture of `space` to a JSON file.

    Raises:
        ArchitectureError: it is not an architecture of this space; nothing is written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "space": space.fingerprint,
        "architecture": space.canonical(architecture),
    }
    write_whole(Path(path), json.dumps(content, indent=2) + "\n")


def load_architecture(path: str | os.PathLike[str], space: SearchSpace) -> Architecture:
    """Read an architecture of `space` from a file that `save_architecture` wrote.

    Raises:
        FileFormatError: the file is not such a file, is broken, or belongs to another space.
        FileNotFoundError: there is no such file.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a whole JSON file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not an architecture's file: it does not say format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise FileFormatError(f"{path} has format version {content.get('version')!r}; this library reads {VERSION}")
    if content.get("space") != space.fingerprint:
        raise FileFormatError(
            f"{path} holds an architecture of another space (fingerprint {str(content.get('space'))[:12]}, this "
            f"space has {space.fingerprint[:12]}); load it with the space of the model that it was searched in"
        )
    try:
        return space.canonical(content.get("architecture"))  # type: ignore[arg-type]
    except ArchitectureError as error:
        raise FileFormatError(f"{path} holds no architecture of this space: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file such that whoever reads it finds the old one or the new one whole."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path`, on the disk itself, once it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            flush(file)
        unfinished.replace(path)
        _flush_directory(path.parent)
    finally:
        with suppress(OSError):  # what could not be written cannot be removed either, and has been reported
            unfinished.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Bring what has been written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    """Bring a directory's names to the disk itself, where the system can: Windows opens no directories."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems say that have no such thing
            raise
    finally:
        os.close(descriptor)
