"""What tests of all rooms share."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from supernet.training import run_directory

sys.path.insert(0, str(Path(__file__).parent / "trainers"))  # searches.py, which other processes run too

# Tests are small, and sums come in another order with another number of threads: with one, processes that the tests
# start give the same bits, and cores that are shared with other work do not make threads wait for each other.
torch.set_num_threads(1)

# The same examples each time, and no example fails because other work has the cores.
settings.register_profile("supernet", deadline=None, derandomize=True)
settings.load_profile("supernet")


def pytest_configure(config):
    """Let tests that name no device run on the CPU, whatever the machine has; test_cuda.py by itself has its GPU."""
    if {Path(word.split("::")[0]).name for word in config.args} != {"test_cuda.py"}:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


PICTURES = {name: getattr(run_directory, name) for name in ("plot_architecture", "plot_probabilities")}


@pytest.fixture(autouse=True, scope="session")
def _without_pictures_and_waiting():
    """Let searches draw nothing, which takes several times as long as a small one itself, nor wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in PICTURES:
            patch.setattr(run_directory, name, lambda *_: [])
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Let searches draw what they find."""
    for name, plot in PICTURES.items():
        monkeypatch.setattr(run_directory, name, plot)
