"""Evaluations in a file, so that whatever is searched for later, nothing is evaluated twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from supernet.errors import FileFormatError, TrainingError
from supernet.processes.messages import Place, Processes
from supernet.search.evaluator import Evaluator
from supernet.search.workers import Workers
from supernet.space import Architecture, SearchSpace
from supernet.space.files import DIGITS, digest_of_json, flush, has_digest, parsed_json

__all__: list[str] = []

FILE = "evaluations.jsonl"

Metrics: TypeAlias = dict[str, float]


class KeptEvaluations:
    """Evaluations of architectures that a file keeps, a line each; called with some, it evaluates those it lacks.

    A line is added as soon as its architecture has been evaluated; of a function, unless that is `Workers`, as soon as
    it has returned. The last line is cut off where a process died in writing it; every other knows its digest. Several
    processes may write to one file.

    Args:
        evaluate: An evaluator, or a function that returns a dict name -> number of each of some architectures.
        directory: Directory of the file, which is made where it is not there.
        space: The space of the architectures.
        identity: What the evaluations are of, such as a digest of weights and data: only those of the same are taken.
    """

    def __init__(
        self,
        evaluate: Evaluator | Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]],
        directory: Path,
        space: SearchSpace,
        identity: str,
    ) -> None:
        self._evaluate = evaluate.evaluate_many if isinstance(evaluate, Evaluator) else evaluate
        # An evaluator's processes share the work, and the first one has the file. A function does with all as it likes.
        self._processes = evaluate.processes if isinstance(evaluate, Evaluator) else Processes(Place(), 0)
        self._at_once = self._processes.count if isinstance(evaluate, Evaluator) else None
        self.path, self.space, self.identity = directory / FILE, space, identity
        self._known: dict[str, dict[str, float]] = {}
        self._read_up_to, self._lines = 0, 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"evaluations cannot be kept in {directory}: {error}") from error
        self._lock = FileLock(directory / f".{FILE}.lock")

    def __call__(
        self, architectures: Sequence[Architecture], *, progress: Callable[[int], None] | None = None
    ) -> list[dict[str, float]]:
        """Return what was measured of each.

        Args:
            architectures: Dicts label -> decision.
            progress: Is called as soon as something is known, with of how many of them it is.

        Raises:
            FileFormatError: A line of the file is broken.
        """
        canonical = list(map(self.space.canonical, architectures))
        names = list(map(json.dumps, canonical))
        paths, times = dict(zip(names, canonical, strict=True)), Counter(names)

        def note(known: Iterable[str]) -> None:
            if progress is not None:
                progress(sum(times[name] for name in known))

        kept = self._processes.first("the evaluations that are kept", self._kept(list(paths)))
        note(kept)
        lacking = [path for name, path in paths.items() if name not in kept]
        count = self._at_once or max(len(lacking), 1)
        # As many as an evaluator's processes do at once, so that each is in the file before the next ones begin.
        for start in range(0, len(lacking), count):
            some = lacking[start : start + count]
            for evaluated, metrics in self._measured(some):
                if self._processes.rank == 0:
                    self._append(evaluated, metrics)
                new = dict(zip(map(json.dumps, evaluated), metrics, strict=True))
                kept |= new
                note(new)
        return [dict(kept[name]) for name in names]

    def _measured(self, architectures: list[Architecture]) -> Iterator[tuple[list[Architecture], list[Metrics]]]:
        """Yield what is measured of some architectures: of workers as each is done, else of all at once."""
        if isinstance(self._evaluate, Workers):
            for architecture, metrics in self._evaluate.as_evaluated(architectures):
                yield [architecture], [checked_metrics(metrics)]
        else:
            yield architectures, list(map(checked_metrics, checked_many(self._evaluate(architectures), architectures)))

    def _kept(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Return those that the file has, in the process that has the file."""
        if self._processes.rank != 0:
            return {}
        with self._lock:
            self._read()
        return {name: self._known[name] for name in names if name in self._known}

    def _read(self) -> None:
        """Read what has been added since; with the lock held, what has no end is of a process that died."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_up_to)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            self._take(line)
        self._read_up_to += len(whole)

    def _take(self, line: bytes) -> None:
        try:
            content = parsed_json(line)
            digest = content.pop("digest")
            is_whole = has_digest(content, digest)
            of, architecture = content["of"], content["architecture"]
            metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise FileFormatError(
                f"line {self._lines} of {self.path} is broken: it has been changed, or was damaged; take it out, and "
                "its architecture is evaluated again"
            )
        if of == self._of:
            self._known[json.dumps(architecture)] = metrics

    @property
    def _of(self) -> str:
        return f"{self.space.fingerprint[:DIGITS]} {self.identity}"

    def _append(self, architectures: Sequence[Architecture], measured: Sequence[Mapping[str, float]]) -> None:
        lines = []
        for architecture, metrics in zip(architectures, measured, strict=True):
            numbers = {name: value if value - value == 0 else str(value) for name, value in metrics.items()}  # or "nan"
            content: dict[str, Any] = {"of": self._of, "architecture": architecture, "metrics": numbers}
            lines.append(json.dumps({**content, "digest": digest_of_json(content)[:DIGITS]}) + "\n")
        with self._lock:
            self._read()
            with self.path.open("ab") as file:
                file.truncate(self._read_up_to)  # what a process that died has begun to write
                file.write("".join(lines).encode())
                flush(file)
            self._read()


def checked_many(measured: Any, architectures: Sequence[Architecture]) -> Sequence[Any]:
    """Return what was measured of each of some architectures, if it is as many."""
    if not isinstance(measured, list | tuple) or len(measured) != len(architectures):
        raise TrainingError(
            f"evaluate returns a list of a dict for each of {len(architectures)} architectures, not {measured!r:.80}"
        )
    return measured


def checked_metrics(metrics: Any) -> dict[str, float]:
    """Return name -> number, or raise `TrainingError`."""
    if not isinstance(metrics, Mapping) or not all(_is_number(value) for value in metrics.values()):
        raise TrainingError(f"evaluate returns dicts name -> number, not {metrics!r:.80}")
    return {str(name): float(value) for name, value in metrics.items()}


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
