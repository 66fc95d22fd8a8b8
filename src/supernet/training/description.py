"""What was run, with what: enough to run it again."""

from __future__ import annotations

import enum
import functools
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer

from supernet.errors import TrainingError
from supernet.training.command import DIRECTORY, digests, parsed

__all__: list[str] = []


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return versions, the command, the device and the state of git, as JSON has them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "command": sys.orig_argv,
        "directory": DIRECTORY,
        "script": _digests_of_the_command(),
        "environment": {key: os.environ[key] for key in ("WORLD_SIZE", "OMP_NUM_THREADS") if key in os.environ},
        "device": {"kind": device.type, "name": name, "threads": torch.get_num_threads()},
        "git": git_state(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that a result may depend on."""
    packages = ("supernet", "torch", "lightning-fabric", "numpy")
    return {"python": platform.python_version(), **{package: version_of(package) for package in packages}}


def as_json(value: Any) -> Any:
    """Return an option as JSON has it: functions and classes by their qualified names, other objects by their class's.

    Such an object's own plain values stand beside its class: `StableStopping(5)` is {"class": ..., "epochs": 5}. So do
    those of the modules that a module has, and the weights of torch's own losses.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy, or a tensor of one
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        items = [as_json(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, os.PathLike | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, functools.partial):
        return {"partial": as_json(value.func), "args": as_json(value.args), "keywords": as_json(value.keywords)}
    if hasattr(value, "__qualname__"):
        return name_of(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if hasattr(value, "tolist") and math.prod(value.shape) <= 100:  # NumPy's numbers and small tensors
        return as_json(value.tolist())
    attributes = {
        name: item
        for name, item in getattr(value, "__dict__", {}).items()
        if not name.startswith("_") and name != "training" and is_plain(item)
    }
    return {"class": name_of(type(value)), **as_json(attributes), **_inside(value)}


def _inside(value: Any) -> dict[str, Any]:
    """Return what a module is made of, as JSON has it: inner modules, where they are few, and weights of classes."""
    if not isinstance(value, nn.Module):
        return {}
    inner = {name: as_json(module) for name, module in value.named_children()} if len([*value.modules()]) <= 20 else {}
    weights = {
        name: buffer.tolist()
        for name in ("weight", "pos_weight")
        if isinstance(value, _Loss) and isinstance(buffer := value._buffers.get(name), torch.Tensor)
    }
    return {**inner, **weights}


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return an optimizer's settings, group by group, with the number of parameters of each group."""
    return [
        {
            **as_json({name: value for name, value in group.items() if name != "params" and is_plain(value)}),
            "parameters": sum(p.numel() for p in group["params"]),
        }
        for group in optimizer.param_groups
    ]


def schedule(scheduler: Any) -> Any:
    """Return a scheduler's class and plain values, those of what it is made of too; None for none."""
    inner = [schedule(one) for one in getattr(scheduler, "_schedulers", ())]
    return None if scheduler is None else {**as_json(scheduler), **({"schedulers": inner} if inner else {})}


def name_of(of: Any) -> str:
    """Return the qualified name of a class or a function."""
    module = of.__module__
    if module == "__main__":  # one name for it, whether the script is run or imported
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return ".".join(filter(None, (module, of.__qualname__)))


def is_plain(value: Any) -> bool:
    """Say whether a value is small and made of numbers and texts, as settings are and data is not."""
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= 100 and all(map(is_plain, value))
    if isinstance(value, Mapping):
        return len(value) <= 100 and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def version_of(package: str) -> str | None:
    """Return the version of a package; None where it is on the path but not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache  # as it was at first: a script may be edited while it runs
def _digests_of_the_command() -> dict[str, str | None] | None:
    """Return path -> digest of what the command of this process executes; None where it has no file."""
    try:
        return digests(parsed(sys.orig_argv), Path(DIRECTORY or "."))
    except TrainingError:
        return None


# What a partial clone lacks is not fetched, which may run any program that its configuration names.
_NOTHING_FETCHED = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": ""}


def git_state(directory: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """Return the commit of a directory, and whether files differ from it; None where git cannot say.

    Args:
        directory: Directory of the repository, or inside it. Default: the working directory.
    """
    try:
        commit = _ask_git(directory, "rev-parse", "HEAD").decode(errors="replace").strip()
        options = _without_filters(directory)
        changed = _ask_git(
            directory, *options, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed.strip())}


def _without_filters(directory: str | os.PathLike[str] | None) -> list[str]:
    """Return options by which git runs none of the programs by which a repository wants its files filtered."""
    asked = ("config", "-z", "--name-only", "--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$")
    try:
        names = os.fsdecode(_ask_git(directory, *asked)).split("\0")
    except subprocess.CalledProcessError as error:
        if error.returncode != 1:
            raise
        return []  # there is none
    names = [name for name in dict.fromkeys(names) if name]
    if any("=" in name for name in names):
        raise ValueError("a filter whose name cannot be said in an option of git")
    # One that is required and has no program would be an error.
    values = {name: "false" if name.endswith(".required") else "" for name in names}
    return [word for name, value in values.items() for word in ("-c", f"{name}={value}")]


def _ask_git(directory: str | os.PathLike[str] | None, *arguments: str) -> bytes:
    """Return what git says, without running a program that the repository names, and without waiting for anybody."""
    options = ["-c", "core.fsmonitor=", "-c", f"core.hooksPath={os.devnull}"]
    result = subprocess.run(
        ["git", *options, *arguments],
        capture_output=True,
        check=True,
        timeout=10,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", **_NOTHING_FETCHED},
    )
    return result.stdout
