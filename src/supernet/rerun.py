"""Running a run again by its directory, and saying whether the result is the same."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from supernet.errors import FileFormatError, TrainingError
from supernet.printable import printable
from supernet.space.files import read_architecture_file
from supernet.training.command import Command, digests, is_of_the_user, parsed
from supernet.training.description import git_state, versions
from supernet.training.run_directory import DESCRIPTION, RERUN, RERUN_ONLY, read_description, read_metrics, redirected

__all__ = ["rerun"]


def rerun(run_dir: Path, into: Path | None = None, *, trust: bool = False) -> list[str]:
    """Run a run's command again and return in what its result differs from the first: nothing, if it is the same.

    The command is taken from `run.json` and executed, so the directory must be one that you trust. Of several runs that
    it makes this one alone is run: those before it take their state from their own directories, where they have
    finished, and the command ends with this one. What is compared is read before: a command that begins by removing
    `run_dir` removes it here too.

    Args:
        run_dir: Directory of the run, which must have finished.
        into: Directory below which the command makes its run directories. Default: beside `run_dir`, numbered.
        trust: Whether to run a script that is not, byte by byte, the one that made the run, and modules of Python
            itself or of installed packages, which may run any code that the command gives them. Default: not.

    Raises:
        FileFormatError: `run_dir` is no run directory, or its files are broken.
        TrainingError: The run cannot be run again, or its command fails; says why.
    """
    first = read_description(run_dir)
    if first.get("status") != "finished":
        raise TrainingError(
            f"{run_dir} has not finished (it says {first.get('status')!r}), so there is nothing to compare"
        )
    command, directory = _command(first, run_dir)
    if not trust:
        _check_script(first, command, directory, run_dir)
    words, environment = _repeating(first, command, run_dir)
    into = _new_directory(run_dir) if into is None else into
    for note in _changes(first, directory):
        print(printable(f"note: {note}"), flush=True)
    print(printable(f"runs again, below {into}: {shlex.join(words)}"), flush=True)
    result, again = _result_of(run_dir), redirected(run_dir, into.resolve())  # the command may remove run_dir
    only = {RERUN: str(into.resolve()), RERUN_ONLY: str(run_dir.resolve())}
    try:
        process = subprocess.run(
            words, cwd=directory, env={**os.environ, **environment, **only}, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"the command of {run_dir} cannot be started: {error}") from error
    if process.returncode:
        raise TrainingError(f"the command of {run_dir} failed with exit status {process.returncode}")
    if not (run_dir / DESCRIPTION).exists():
        print(printable(f"note: the command has removed {run_dir}; its result was read before"), flush=True)
    if not (again / DESCRIPTION).exists():
        raise TrainingError(f"the command made no run directory in the place of {run_dir}; is run_dir= still the same?")
    return _differences(result, _result_of(again))


def differences(first: Path, second: Path) -> list[str]:
    """Return in what the results of two finished runs differ, a line each; what time and memory cost aside."""
    return _differences(_result_of(first), _result_of(second))


class _Result(NamedTuple):
    digests: dict[str, Any]  # of weights and state, by name
    architecture: Any
    records: list[dict[str, Any]]  # of the epochs


def _result_of(directory: Path) -> _Result:
    digests = read_description(directory).get("result")
    records = [_without_cost(record) for record in read_metrics(directory)]
    return _Result(digests if isinstance(digests, dict) else {}, _architecture(directory), records)


def _differences(first: _Result, second: _Result) -> list[str]:
    found = []
    for name in sorted({"weights"} | (first.digests.keys() & second.digests.keys())):  # older runs have digests of less
        if first.digests.get(name) != second.digests.get(name):
            what = "weights" if name == "weights" else "architecture parameters or other state of the trainer"
            found.append(f"{what} differ")
    if first.architecture != second.architecture:
        found.append(f"architectures differ: {first.architecture} and {second.architecture}")
    if len(first.records) != len(second.records):
        found.append(f"{len(first.records)} and {len(second.records)} epochs were run")
    for one, other in zip(first.records, second.records, strict=False):
        if one != other:
            names = [name for name in one if one[name] != other.get(name)]
            found.append(f"from epoch {one.get('epoch')} on, figures differ: {', '.join(names)}")
            break
    return found


def _without_cost(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "cost"}


def _architecture(directory: Path) -> Any:
    try:
        return read_architecture_file(directory / "architecture.json")
    except FileNotFoundError:
        return None  # the run trained a network, and did not search


def _command(description: Mapping[str, Any], run_dir: Path) -> tuple[Command, Path]:
    """Return the command of a run, and the directory that it was started in."""
    words, directory = description.get("command"), description.get("directory")
    if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise FileFormatError(f"{run_dir / DESCRIPTION} has no command but {words!r}")
    if not isinstance(directory, str) or "\0" in directory:
        raise FileFormatError(f"{run_dir / DESCRIPTION} has no directory but {directory!r}")
    try:
        command = parsed(words)
    except TrainingError as error:
        raise TrainingError(f"{run_dir} cannot be run again: {error}") from error
    if not Path(directory).is_dir():
        raise TrainingError(
            f"{run_dir} was run in {directory}, which is not here; run it again on the machine that made it, or put "
            "its script there"
        )
    return command, Path(directory)


def _check_script(description: Mapping[str, Any], command: Command, directory: Path, run_dir: Path) -> None:
    """Raise `TrainingError` unless the command runs the very script that made the run."""
    if not is_of_the_user(command, directory):
        raise TrainingError(
            f"{run_dir} was made by {shlex.join(command.words)}, a program of Python itself or of an installed "
            "package, which may run any code that it is given; if you know it, give --trust"
        )
    known, present = description.get("script"), digests(command, directory)
    absent = [path for path, digest in present.items() if digest is None]
    if absent and command.module is not None:
        raise TrainingError(
            f"{run_dir} cannot be run again, for the module {command.module}, which made it, is not found; is "
            "PYTHONPATH as it was?"
        )
    if absent:
        raise TrainingError(f"{run_dir} cannot be run again, for {absent[0]}, which made it, is not there")
    if known != present:
        changed = [path for path in present if not isinstance(known, dict) or known.get(path) != present[path]]
        raise TrainingError(
            f"{run_dir} is not run again, for {', '.join(changed) or 'its script'} is not the file that made it; to "
            "run what stands there now, give --trust"
        )


def _repeating(description: Mapping[str, Any], command: Command, run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """Return the words and the environment that repeat the run."""
    device, processes = description.get("device"), description.get("processes", 1)
    threads = device.get("threads") if isinstance(device, dict) else None
    for name, number in {"threads": threads, "processes": processes}.items():
        if number is not None and (type(number) is not int or number < 1):
            raise FileFormatError(f"{run_dir / DESCRIPTION} has no number of {name} but {number!r}")
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, *command.words]
    if processes > 1:
        # With its own interpreter, for the launcher gives that no options.
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
        words = [sys.executable, "-m", *launcher, *words]
    return words, environment


def _changes(description: Mapping[str, Any], directory: Path) -> list[str]:
    """Return what differs between the surroundings of the run and those now."""
    now = {"versions": versions(), "git": git_state(directory)}
    return [f"{name} was {description.get(name)}, is {now[name]}" for name in now if description.get(name) != now[name]]


def _new_directory(run_dir: Path) -> Path:
    number = 1
    while (path := run_dir.with_name(f"{run_dir.name}-rerun-{number}")).exists():
        number += 1
    return path
