"""Architectures in files: JSON with a format version and the space's fingerprint.

A file of a newer format version is refused. A change that old readers cannot read raises the version; this
library goes on reading every version that it has ever written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from supernet.errors import FileFormatError
from supernet.space.space import Architecture, SearchSpace, check_space

__all__ = ["load_architecture", "save_architecture"]

FORMAT = "supernet/architecture"
VERSION = 1
_IS_WINDOWS = os.name == "nt"
_DEPTH = 100  # of JSON
_LAST_TEXTS = ("space", "error", "stopped")  # with one of which a file from before there were digests may end
DIGITS = 16  # of a digest that stands in a line, at least


def save_architecture(architecture: Mapping[str, Any], path: str | os.PathLike[str], space: SearchSpace) -> None:
    """Write an architecture of `space` to a JSON file.

    Args:
        architecture: Label -> decision.
        path: Path of the file.
        space: The space that it belongs to; the file has its fingerprint.

    Raises:
        ArchitectureError: It is not an architecture of this space; nothing is written.
        SpaceError: `space` is none.

    >>> space = SearchSpace(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="act")))
    >>> save_architecture({"act": "1"}, "best.json", space)
    >>> load_architecture("best.json", space)
    {'act': '1'}
    """
    check_space(space)
    content = {"space": space.fingerprint, "architecture": space.canonical(architecture)}
    write_json(Path(path), FORMAT, VERSION, content)


def load_architecture(path: str | os.PathLike[str], space: SearchSpace) -> Architecture:
    """Read an architecture of `space` from a file that `save_architecture` wrote; see there for an example.

    Args:
        path: Path of the file.
        space: The space that it must belong to.

    Raises:
        FileFormatError: The file is not such a file, is broken, or belongs to another space.
        FileNotFoundError: There is no such file.
        SpaceError: `space` is none.
    """
    check_space(space)
    content = read_architecture_file(Path(path))
    mend = "load it with the space of the model that it was searched in"
    check_fingerprint(content.get("space"), space, f"{path} holds an architecture", mend)
    try:
        return space.canonical(content["architecture"])
    except Exception as error:  # whatever wrong content leads to
        raise FileFormatError(f"{path} holds no architecture of this space: {error}") from error


def read_architecture_file(path: Path) -> dict[str, Any]:
    """Return what stands in a file of `save_architecture`, of whatever space: "space" and "architecture" among it.

    Raises:
        FileFormatError: The file is not such a file, or is broken.
        FileNotFoundError: There is no such file.
    """
    content = read_json(path, FORMAT, VERSION, "is not an architecture's file")
    # Of one that does not know its digest, a name that has been damaged is noticed too.
    if unknown := content.keys() ^ {"format", "version", "space", "architecture"}:
        name = min(unknown)
        what = f"has an entry {name!r:.80}, which is none of such a file" if name in content else f"lacks {name!r}"
        raise FileFormatError(f"{path} {what}; it has been changed, or was damaged")
    return content


def check_fingerprint(known: Any, space: SearchSpace, what: str, mend: str) -> None:
    """Raise `FileFormatError` where what was read is of another space.

    Args:
        known: The fingerprint that was read.
        space: The space that it must be that of.
        what: Where it was read and what that is, such as "best.json holds an architecture".
        mend: What to do where it is another.
    """
    if known != space.fingerprint:
        raise FileFormatError(
            f"{what} of another space (fingerprint {str(known)[:12]}, this space has {space.fingerprint[:12]}); {mend}"
        )


# --- JSON that knows its digest ----------------------------------------------------------------------------


def write_json(path: Path, format: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a JSON file that says its format and has a digest of its content.

    The digest is of the content and not of the bytes, so such a file may be indented in another way.
    """
    content = {"format": format, "version": version, **content}
    write_atomically(path, json.dumps({**content, "digest": digest_of_json(content)}, indent=2) + "\n")


def read_json(path: Path, format: str, version: int, otherwise: str) -> dict[str, Any]:
    """Return the content of a JSON file without its digest, which is compared; older files have none.

    Args:
        path: Path of the file.
        format: The format that it must say.
        version: The newest version of the format that is known.
        otherwise: What a message says of a file of another format.

    Raises:
        FileFormatError: The file is broken, or of another format or version.
        FileNotFoundError: There is no such file.
    """
    try:
        content = parsed_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise FileFormatError(f"{path} is not a whole JSON file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != format:
        raise FileFormatError(f"{path} {otherwise}: it does not say format {format!r}")
    if type(content.get("version")) is not int or content["version"] != version:
        raise FileFormatError(f"{path} has format version {content.get('version')!r:.80}; this library reads {version}")
    knows_digest, digest = "digest" in content, content.pop("digest", None)
    if knows_digest and not has_digest(content, digest):
        raise FileFormatError(
            f"{path} does not have the digest that it was written with: it has been changed, or was damaged; if you "
            'changed it on purpose, take out its line "digest"'
        )
    if not knows_digest and _seems_a_digest(*list(content.items())[-1]):
        name = list(content)[-1]
        raise FileFormatError(f"{path} has a digest by the name {name!r:.80}; it has been changed, or was damaged")
    return content


def parsed_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is none, or so deep, or of numbers so large, that not all who read it could follow.
    """
    content = json.loads(text, parse_int=_whole_number)
    level, depth = [content], 0
    while level := [value for value in level if isinstance(value, dict | list)]:
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        depth += 1
        if depth > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} deep")
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def digest_of_json(content: Any, before: str = "") -> str:
    """Return a digest of what JSON holds of the content, however it is laid out.

    Args:
        content: Any tree of dicts, lists, numbers, texts, truth values and None.
        before: The digest that this one follows, where they make a chain. Default: it is the first.
    """
    content = json.loads(json.dumps(content))  # tuples are lists then, and keys are texts
    return hashlib.sha256((before + json.dumps(content)).encode()).hexdigest()


def has_digest(content: Any, digest: Any, before: str = "") -> bool:
    """Say whether the content has that digest, or one that begins with it."""
    try:
        known = digest_of_json(content, before)
    except (ValueError, RecursionError):  # what was read can be too deep to write
        return False
    return isinstance(digest, str) and len(digest) >= DIGITS and known.startswith(digest)


def _seems_a_digest(name: str, value: Any) -> bool:
    """Say whether the last entry looks like a digest whose name, or some of whose digits, have been damaged."""
    return name not in _LAST_TEXTS and isinstance(value, str) and re.search("[0-9a-f]{20}", value) is not None


# --- files that are whole or not there ---------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
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
    if _IS_WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems say that have no such thing
            raise
    finally:
        os.close(descriptor)
