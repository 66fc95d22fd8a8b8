"""The card beside a network's file: what the network is, what it costs, how well it does, and digests of its files."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernet.errors import ExportError, FileFormatError
from supernet.space.files import read_json, write_json

__all__ = ["read_card"]

FORMAT, VERSION = "supernet/network", 1
CARD = "card.json"  # in a directory


def card_path(path: Path) -> Path:
    """Return where the card of a network's file stands; that of a directory stands in it."""
    return path / CARD if path.is_dir() else path.with_name(f"{path.name}.json")


def write_card(path: Path, files: Mapping[str, Path], content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card of the network at a path, and return what it says.

    Args:
        path: Path of the network's file or directory.
        files: The network's files, by name in the card.
        content: What else the card says.
    """
    digests = {name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for name, file in sorted(files.items())}
    write_json(card_path(path), FORMAT, VERSION, {**content, "files": digests})
    return read_card(path)


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card of a network that `export_network` wrote, having compared its digest and those of the files.

    A digest tells damage, and files that are not of this card; it does not tell who wrote both. See `export_network`
    for an example.

    Args:
        path: Path of the network's file or directory.

    Raises:
        FileFormatError: The card or a file is damaged, or is not of this network; names it.
        FileNotFoundError: There is no card, or no such file.
    """
    path = Path(path)
    card = read_json(card_path(path), FORMAT, VERSION, "is not the card of a network")
    files = card.get("files")
    if not isinstance(files, dict) or not files:
        raise FileFormatError(f"{card_path(path)} names no files of a network")
    directory = path if path.is_dir() else path.parent
    for name, known in files.items():
        if Path(name).name != name or not isinstance(known, dict):
            raise FileFormatError(f"{card_path(path)} names a file {name!r:.80}, which none of a network is")
        if (found := _sha256(directory / name)) != known.get("sha256"):
            raise FileFormatError(
                f"{directory / name} has the digest {found[:12]}, but its card says {str(known.get('sha256'))[:12]}: "
                "the file has been changed or was damaged, or the card is of another; export the network again"
            )
    if not path.is_dir() and path.name not in files:
        raise FileFormatError(f"{card_path(path)} is of another file than {path.name}")
    return card


def checked_numbers(what: str, numbers: Mapping[str, Any] | None) -> dict[str, float]:
    """Return numbers by name, as JSON has them.

    Raises:
        ExportError: One is none, or not finite; names it.
    """
    if not (numbers is None or isinstance(numbers, Mapping)):
        raise ExportError(
            f"{what} of a card are finite numbers by name, such as {{'accuracy': 0.9}}, not {numbers!r:.80}"
        )
    found = {}
    for name, number in (numbers or {}).items():
        is_number = hasattr(number, "__float__") and getattr(number, "ndim", 0) == 0
        if not is_number or not math.isfinite(number):
            raise ExportError(f"{what} of a card are finite numbers by name, and {name!r} is {number!r:.80}")
        found[str(name)] = int(number) if float(number).is_integer() else float(number)
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
