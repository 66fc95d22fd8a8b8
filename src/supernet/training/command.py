"""The command of a run: its parts by Python's own rules, and digests of the files that it executes."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from supernet.errors import TrainingError

__all__: list[str] = []


def working_directory() -> str | None:
    """Return the working directory; None where it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


DIRECTORY = working_directory()  # where the run was started: a script may change it after its imports

_WITH_ARGUMENT = "WX"  # of the interpreter's options of one letter, those that take one
_LONG_WITH_ARGUMENT = "--check-hash-based-pycs"
_RUNNERS = ("supernet.retiarii", "supernet-retiarii")  # run the script that is their first argument


@dataclass(frozen=True)
class Command:
    """What a run was started by.

    Attributes:
        options: Options of the interpreter.
        module: Name that stands after `-m`; None where a file is run.
        script: The file, as it was given; None where a module is run.
        arguments: Arguments that the program was given.
    """

    options: tuple[str, ...]
    module: str | None
    script: str | None
    arguments: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The command without the interpreter."""
        program = ["-m", self.module] if self.module is not None else [str(self.script)]
        return [*self.options, *program, *self.arguments]


def parsed(words: Sequence[str]) -> Command:
    """Return the parts of a command, whose first word is the interpreter.

    Raises:
        TrainingError: It has no script or module, so that nothing can be run again; says what it has.
    """
    options: list[str] = []
    rest = list(words[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word.startswith("--"):
            options.append(word)
            if word == _LONG_WITH_ARGUMENT:
                options += rest[:1]
                rest = rest[1:]
            continue
        for place, letter in enumerate(word[1:], 1):
            if letter not in f"cm{_WITH_ARGUMENT}":
                continue
            if place > 1 and letter in "cm":
                options.append(word[:place])
            attached = word[place + 1 :]
            argument = attached or (rest.pop(0) if rest else None)
            if letter == "c":
                raise TrainingError("it was made by python -c: code on the command line is not run again")
            if argument is None:
                raise TrainingError(f"its command ends with {word!r}, which lacks its argument")
            if letter == "m":
                return Command(tuple(options), argument, None, tuple(rest))
            options += [word] if attached else [word, argument]
            break
        else:
            options.append(word)
    if not rest:
        raise TrainingError("it was made from an interactive session, whose commands are not known")
    if rest[0] == "-" or rest[0].startswith(("/dev/", "/proc/")):
        raise TrainingError(f"its code came through {rest[0]!r}, which is read once")
    return Command(tuple(options), None, rest[0], tuple(rest[1:]))


def digests(command: Command, directory: Path) -> dict[str, str | None]:
    """Return path -> digest of the files that a command executes, as far as the command says them; None: not there.

    They are the script, or the file of the module, and where that runs another script, that one.
    """
    files = [_file_of(str(command.module), directory)]
    if command.script is not None:
        script = directory / command.script
        files = [script / "__main__.py" if script.is_dir() else script]
    if (command.module or Path(str(command.script)).name) in _RUNNERS:
        files += [directory / word for word in command.arguments if not word.startswith("-")][:1]
    return {str(file): _digest(file) for file in files}


def is_of_the_user(command: Command, directory: Path) -> bool:
    """Say whether what a command runs is a program of the user's, and none that may run any code it is given.

    Modules and scripts of Python itself and of installed packages are such, as `timeit`, `pdb` and `ipython` are; ours
    are not.
    """
    if command.module is not None:
        if command.module.split(".")[0] == "supernet":
            return True
        file = _file_of(command.module, directory)
    else:
        file = directory / str(command.script)
        if file.name in ("supernet", "supernet-retiarii"):
            return True
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    places = [*map(sysconfig.get_path, kinds), f"{sys.base_prefix}/bin"]
    return not any(file.resolve().is_relative_to(Path(place).resolve()) for place in places)


def _digest(file: Path) -> str | None:
    try:
        return sha256(file.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def _file_of(module: str, directory: Path) -> Path:
    """Return the file that `python -m module` executes, without importing anything; one that is not there if none."""
    paths: Sequence[str] | None = [str(directory), *sys.path]
    spec: ModuleSpec | None = None
    name = ""
    for part in [*module.split("."), "__main__"]:
        name = f"{name}.{part}" if name else part
        found = _found(name, paths)
        if part == "__main__" and spec is not None and spec.submodule_search_locations is None:
            break  # a module, and no package
        if found is None:
            return directory / f"{module.replace('.', os.sep)}.py"
        spec, paths = found, found.submodule_search_locations
    return Path(str(spec.origin)) if spec is not None else directory


def _found(name: str, paths: Sequence[str] | None) -> ModuleSpec | None:
    finders: list[Any] = [PathFinder, *(finder for finder in sys.meta_path if finder is not PathFinder)]
    for finder in finders:
        try:
            spec = finder.find_spec(name, paths)
        except (AttributeError, ImportError, ValueError):
            continue
        if spec is not None:
            return spec
    return None
