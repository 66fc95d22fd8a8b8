"""What was run, with what: enough to run it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__: list[str] = []


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return versions, the command, the device and the state of git, as JSON has them."""
    packages = ("supernet", "torch", "lightning-fabric", "numpy")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
        "command": sys.orig_argv,
        "directory": str(Path.cwd()),
        "environment": {key: os.environ[key] for key in ("WORLD_SIZE", "OMP_NUM_THREADS") if key in os.environ},
        "device": {"kind": device.type, "name": name, "threads": torch.get_num_threads()},
        "git": _git(),
    }


def plain(param_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an optimizer's settings, group by group, with the number of parameters of each group."""
    return [
        {
            **{
                name: value
                for name, value in group.items()
                if isinstance(value, bool | int | float | str | tuple | None)
            },
            "parameters": sum(p.numel() for p in group["params"]),
        }
        for group in param_groups
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit of the working directory, and whether files differ from it; None where there is no git."""
    try:
        commit = _ask_git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_ask_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()
