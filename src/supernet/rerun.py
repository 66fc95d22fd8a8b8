"""Running a run again by its directory, and saying whether the result is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from supernet.errors import FileFormatError, TrainingError
from supernet.trainers.description import surroundings
from supernet.trainers.run_directory import RERUN, RERUN_ONLY, read_description, read_metrics, redirected

__all__ = ["rerun"]


def rerun(run_dir: Path, into: Path | None = None) -> list[str]:
    """Run a run's command again and return in what its result differs from the first: nothing, if it is the same.

    The command is taken from `run.json` and executed, so the directory must be one that you trust. Of several runs that
    it makes this one alone is run: those before it take their state from their own directories, where they have
    finished, and the command ends with this one.

    Args:
        run_dir: of the run, which must have finished.
        into: the directory below which the command makes its run directories. Default: beside `run_dir`, numbered.

    Raises:
        FileFormatError: `run_dir` is no run directory, or its files are broken.
        TrainingError: the run cannot be run again, or its command fails; says why.
    """
    first = read_description(run_dir)
    if first.get("status") != "finished":
        raise TrainingError(
            f"{run_dir} has not finished (it says {first.get('status')!r}), so there is nothing to compare"
        )
    command, environment = _command(first, run_dir)
    into = _new_directory(run_dir) if into is None else into
    for note in _changes(first):
        print(f"note: {note}", flush=True)
    print(f"runs again, below {into}: {' '.join(command)}", flush=True)
    only = {RERUN: str(into.resolve()), RERUN_ONLY: str(run_dir.resolve())}
    environment = {**os.environ, **environment, **only}
    result = subprocess.run(command, cwd=first["directory"], env=environment, check=False)
    if result.returncode:
        raise TrainingError(f"the command of {run_dir} failed with exit status {result.returncode}")
    again = redirected(run_dir, into.resolve())
    if not (again / "run.json").exists():
        raise TrainingError(f"the command made no run directory in the place of {run_dir}; is run_dir= still the same?")
    return differences(run_dir, again)


def differences(first: Path, second: Path) -> list[str]:
    """Return in what the results of two finished runs differ, a line each; what time and memory cost aside."""
    found = []
    descriptions = [read_description(directory) for directory in (first, second)]
    if descriptions[0].get("result") != descriptions[1].get("result"):
        found.append("weights or architecture parameters differ")
    if _architecture(first) != _architecture(second):
        found.append(f"architectures differ: {_architecture(first)} and {_architecture(second)}")
    histories = [[_without_cost(record) for record in read_metrics(directory)] for directory in (first, second)]
    if len(histories[0]) != len(histories[1]):
        found.append(f"{len(histories[0])} and {len(histories[1])} epochs were run")
    for one, other in zip(*histories, strict=False):
        if one != other:
            names = [name for name in one if one[name] != other.get(name)]
            found.append(f"from epoch {one.get('epoch')} on, figures differ: {', '.join(names)}")
            break
    return found


def _without_cost(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "cost"}


def _architecture(directory: Path) -> Any:
    try:
        return json.loads((directory / "architecture.json").read_bytes())
    except FileNotFoundError:
        return None  # the run trained a network, and did not search
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{directory / 'architecture.json'} cannot be read: {error}") from error


def _command(description: Mapping[str, Any], run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that repeat the run."""
    command = description.get("command")
    if not isinstance(command, Sequence) or len(command) < 2 or not all(isinstance(word, str) for word in command):
        raise TrainingError(f"{run_dir} was made from an interactive session, whose commands are not known")
    if "-c" in command[:3]:
        raise TrainingError(f"{run_dir} was made by python -c, which has no script to run again")
    arguments = [word for word in command[1:] if word != "-u"]
    threads = description.get("device", {}).get("threads")
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    processes = description.get("processes", 1)
    if processes == 1:
        return [sys.executable, *arguments], environment
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *arguments], environment


def _changes(description: Mapping[str, Any]) -> list[str]:
    """Return what differs between the surroundings of the run and those now."""
    now = surroundings(torch.device(description["device"]["kind"]) if "device" in description else torch.device("cpu"))
    return [
        f"{name} was {description.get(name)}, is {now[name]}"
        for name in ("versions", "git")
        if description.get(name) != now[name]
    ]


def _new_directory(run_dir: Path) -> Path:
    number = 1
    while (path := run_dir.with_name(f"{run_dir.name}-rerun-{number}")).exists():
        number += 1
    return path
