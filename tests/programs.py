"""Scripts in processes of their own, as `python` and `torchrun` run them, without the seconds of imports in each.

Each process is a fork of one that has imported all and done nothing else. Tests of how Python or torchrun themselves
begin start these.

Searches draw no pictures and do not wait for the disk, as in all tests.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from supernet.training import run_directory

GRACE = 10.0  # seconds

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    ["supernet", "supernet.cli", "supernet.retiarii", "sklearn.datasets", "torchmetrics", "torch._dynamo"]
)


class Program:
    """A script that runs, with what `subprocess.Popen` has.

    Args:
        words: what would stand after `python` on a command line: a script or -m and a module, then arguments.
        cwd: where it runs. Default: here.
        environment: variables beside those of this process.
        start_new_session: whether it leads a group of processes of its own.
    """

    def __init__(self, *words, cwd=None, environment=None, start_new_session=False):
        self._files = [Path(tempfile.mkstemp(prefix="supernet-output-")[1]) for _ in range(2)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        how = [str(word) for word in words], str(cwd or Path.cwd()), environment, start_new_session
        self._process = forks.Process(target=_run, args=(*map(str, self._files), *how))
        self._process.start()
        self.pid, self.kill = self._process.pid, self._process.kill

    def poll(self):
        return self._process.exitcode

    returncode = property(poll)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait_for(self, condition, timeout=60):
        """Wait until something is true while it runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, f"it has ended: {self._files[1].read_text()}"
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.01)

    def has_printed(self, text):
        return text in self._files[0].read_text()

    def communicate(self, timeout=120):
        """Return what it has printed, and its errors, once it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired("the program", timeout)
        texts = tuple(file.read_text() for file in self._files)
        for file in self._files:
            file.unlink()
        return texts


def run(*words, processes=1, check=True, timeout=120, **how):
    """Run a script to its end, in several processes as `torchrun --standalone` does; return what `subprocess.run` does.

    As there the launcher has the store by which they meet, and ends the others once one has failed; but not before they
    have had the time to notice it themselves.
    """
    if processes == 1:
        programs = [Program(*words, **how)]
    else:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        programs = [
            Program(*words, **how, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
    deadline, has_failed = time.monotonic() + timeout, False
    while any(program.poll() is None for program in programs) and time.monotonic() < deadline:
        if not has_failed and any(program.poll() for program in programs):
            has_failed, deadline = True, min(deadline, time.monotonic() + GRACE)
        time.sleep(0.01)
    for program in programs:
        program.kill()
    outputs, errors = zip(*(program.communicate() for program in programs), strict=True)
    code = next((program.poll() for program in programs if program.poll()), 0)
    result = subprocess.CompletedProcess(words, code, "".join(outputs), "".join(errors))
    assert not check or code == 0, result.stderr
    return result


def _run(output, errors, words, cwd, environment, start_new_session):
    if start_new_session:
        os.setsid()
    for number, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY), number)
    multiprocessing.set_start_method(None, force=True)  # the default again, for loaders of data
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # what is killed loses nothing that it has handed over
    run_directory.plot_architecture = run_directory.plot_probabilities = lambda *_: []
    sys.orig_argv = [sys.executable, *words]
    sys.exit(_code_of(words, cwd))  # here the frames of the script are gone, and what they held


def _code_of(words, cwd):
    """Run the script and return its exit code."""
    try:
        if words[0] == "-m":
            sys.path.insert(0, cwd)
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
