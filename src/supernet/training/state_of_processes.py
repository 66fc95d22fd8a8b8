"""The states of several processes in one checkpoint: each has its own means, running statistics and random numbers.

What is the same in a process as in the first one, by digest, is written once: most of all weights and optimizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from supernet.files.digests import bits
from supernet.files.encoding import Encoded, decoded, encoded

if TYPE_CHECKING:
    from supernet.processes.messages import Processes

__all__: list[str] = []

WHAT = "the states of the processes"


def gather_states(processes: Processes, state: Mapping[str, Any], aside: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return what a checkpoint holds of each process's state; in other processes than the first one nothing.

    Args:
        processes: The processes, all of which call it together.
        state: State of this process.
        aside: Part of this process's state that is different in each: it is returned as it is, of all.
    """
    nodes, root, tensors = encoded(dict(state), "state")
    content = json.dumps([nodes, root], ensure_ascii=False, separators=(",", ":"))
    digests = [_digest(tensor) for tensor in tensors]
    of_first = processes.all_gather_object(WHAT, (_digest_of(content), digests) if processes.rank == 0 else None)[0]
    places = _places(digests, of_first[1])
    lacking = [tensor.cpu() for tensor, place in zip(tensors, places, strict=True) if place is None]
    told = None if _digest_of(content) == of_first[0] else content
    others = processes.gather_object(WHAT, None if processes.rank == 0 else (told, places, lacking, aside))
    if processes.rank != 0:
        return [], []
    entries = [{"content": content, "tensors": tensors}]
    every_aside = [aside]
    for told, places, lacking, of_other in others[1:]:
        every_aside.append(of_other)
        own = iter(lacking)  # any other is the first process's, and the same tensor in two entries is written once
        every = [next(own) if place is None else tensors[place] for place in places]
        entries.append({"content": told, "tensors": every})
    return entries, every_aside


def state_of(
    entries: Sequence[Mapping[str, Any]], rank: int, classes: Iterable[type], device: torch.device
) -> dict[str, Any]:
    """Return the state of one process out of what `gather_states` returned.

    Raises:
        FileFormatError: It is not to be read; says what is wrong.
    """
    entry = entries[rank]
    content = entries[0]["content"] if entry["content"] is None else entry["content"]
    nodes, root = json.loads(content)
    state: dict[str, Any] = decoded(Encoded(nodes, root, list(entry["tensors"])), classes, device)
    return state


def _places(digests: Sequence[bytes], of_first: Sequence[bytes]) -> list[int | None]:
    """Return where the first process has the same tensors, each for one of ours alone: else two would share memory."""
    free: dict[bytes, list[int]] = {}
    for place in reversed(range(len(of_first))):
        free.setdefault(of_first[place], []).append(place)
    return [free[digest].pop() if free.get(digest) else None for digest in digests]


def _digest(tensor: torch.Tensor) -> bytes:
    """Return a digest of a dense tensor's bits, and of how they are to be read."""
    result = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    result.update(bits(tensor).data)
    return result.digest()


def _digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
