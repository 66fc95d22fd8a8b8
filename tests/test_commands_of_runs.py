"""Commands of runs: read by Python's own rules, and nothing run again that is not what made the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from supernet.cli import main
from supernet.errors import FileFormatError, TrainingError
from supernet.printable import printable
from supernet.rerun import rerun
from supernet.training import description as describing
from supernet.training.command import digests, is_of_the_user, parsed
from supernet.training.description import git_state

SHOW = "import json, sys; print(json.dumps([sys.orig_argv, sys.argv[1:], sys.flags.optimize, sys.flags.dev_mode]))"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "package" / "__main__.py").write_text(SHOW)
    (tmp_path / "package" / "inner.py").write_text(SHOW)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["show.py"],
        ["-u", "show.py", "-u", "-c", "cfg", "-m", "model"],
        ["-uBO", "show.py", "--lr", "0.1"],
        ["-Xdev", "-W", "ignore", "-Wignore", "-X", "utf8", "show.py", "-m"],
        ["-OO", "--check-hash-based-pycs", "never", "show.py", ""],
        ["-m", "show", "-c", "cfg"],
        ["-uOm", "show", "x y"],
        ["-mshow", "-m", "show"],
        ["-B", "-W", "-m", "show.py"],
    ],
)
def test_a_command_is_taken_apart_as_python_takes_it(directory, words):
    """Python itself is the reference: it says what it gave the program, and runs what was put together again alike."""

    def run(words):
        result = subprocess.run([sys.executable, *words], cwd=directory, capture_output=True, text=True, check=True)
        return json.loads(result.stdout)

    original, arguments, *flags = run(words)
    command = parsed(original)
    assert list(command.arguments) == arguments
    assert command.script == (None if command.module else "show.py")
    assert run(command.words)[1:] == [arguments, *flags]
    assert list(digests(command, directory)) == [str(directory / "show.py")]
    assert None not in digests(command, directory).values()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["-c", "print()"], "code on the command line"),
        (["-cprint()"], "code on the command line"),
        (["-uBc", "print()"], "code on the command line"),
        (["-X", "dev", "-Wignore", "-ucprint()", "x"], "code on the command line"),
        (["-c"], "code on the command line"),
        (["-"], "read once"),
        (["/dev/fd/63"], "read once"),
        (["/proc/self/fd/3", "x"], "read once"),
        ([], "interactive session"),
        (["-i"], "interactive session"),
        (["-m"], "lacks its argument"),
    ],
)
def test_code_that_is_in_no_file_is_not_run_again(words, match):
    with pytest.raises(TrainingError, match=match):
        parsed(["python", *words])


def test_the_file_of_a_module_is_found_without_importing_anything(directory):
    for module, file in {"package": "package/__main__.py", "package.inner": "package/inner.py"}.items():
        assert list(digests(parsed(["python", "-m", module]), directory)) == [str(directory / file)]
    (digest,) = digests(parsed(["python", "-m", "package.absent"]), directory).values()
    assert digest is None
    assert "package" not in sys.modules


def test_a_directory_is_run_by_its_main_file(directory):
    assert list(digests(parsed(["python", "package", "x"]), directory)) == [str(directory / "package" / "__main__.py")]


def test_a_runner_is_known_by_the_script_that_it_runs_too(directory):
    command = parsed(["python", "-m", "supernet.retiarii", "--over-real-nni", "show.py", "other.py"])
    assert [Path(path).name for path in digests(command, directory)] == ["__main__.py", "show.py"]


@pytest.mark.parametrize("words", [["-m", "timeit", "1"], ["-m", "pytest"], [str(Path(sys.executable).parent / "pip")]])
def test_programs_that_run_any_code_are_not_the_users(directory, words):
    assert not is_of_the_user(parsed(["python", *words]), directory)
    assert is_of_the_user(parsed(["python", "-m", "show"]), directory)
    assert is_of_the_user(parsed(["python", "show.py"]), directory)


@pytest.fixture
def run(directory):
    """A finished run whose script leaves a trace, should it be run again."""
    (directory / "search.py").write_text("open('trace', 'w')")
    command = [sys.executable, "search.py"]
    described = {"format": "supernet/run", "version": 1, "status": "finished", "command": command}
    described |= {"directory": str(directory), "script": digests(parsed(command), directory), "processes": 1}
    (directory / "run").mkdir()
    (directory / "run" / "metrics.jsonl").touch()

    def described_as(**changes):
        (directory / "run" / "run.json").write_text(json.dumps({**described, **changes}))
        return directory / "run"

    return described_as


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"script": {}}, TrainingError, "search.py is not the file that made it"),
        ({"script": None}, TrainingError, "search.py is not the file that made it"),
        ({"command": ["python", "absent.py"]}, TrainingError, "absent.py, which made it, is not there"),
        (
            {"command": ["python", "-m", "absent.one"]},
            TrainingError,
            "absent.one, which made it, is not found",
        ),
        ({"command": ["python", "show.py"]}, TrainingError, "show.py is not the file that made it"),
        ({"command": ["python", "-m", "timeit", "open('trace', 'w')"]}, TrainingError, "may run any code"),
        ({"command": ["python", "-ucopen('trace', 'w')"]}, TrainingError, "code on the command line"),
        ({"command": "search.py"}, FileFormatError, "has no command but 'search.py'"),
        ({"command": ["python", "a\0b"]}, FileFormatError, "has no command"),
        ({"directory": "/not/here"}, TrainingError, "was run in /not/here, which is not here"),
        ({"directory": None}, FileFormatError, "has no directory but None"),
        ({"processes": "2; rm"}, FileFormatError, "no number of processes but '2; rm'"),
        ({"device": {"kind": "cuda", "threads": [1]}}, FileFormatError, "no number of threads"),
        ({"device": {"kind": "cuda", "threads": True}}, FileFormatError, "no number of threads"),
    ],
)
def test_nothing_is_run_from_a_directory_whose_command_is_not_that_of_its_script(run, changes, error, match):
    path = run(**changes)
    with pytest.raises(error, match=match):
        rerun(path)
    assert not (path.parent / "trace").exists()


def test_a_run_of_another_machine_is_tried_with_what_is_here(run):
    path = run(device={"kind": "cuda", "name": "a GPU"}, versions={"torch": "1.0"}, git={"commit": "x"})
    with pytest.raises(TrainingError, match="made no run directory in the place of"):
        rerun(path)
    assert (path.parent / "trace").exists()


def test_control_characters_of_a_file_are_shown_and_not_obeyed(run, capfd):
    assert main(["rerun", str(run(status="\x1b[2Kfinished"))]) == 1
    assert (
        main(["rerun", "--trust", str(run(command=["python", "search.py", "\x1b]0;x\x07", "a\r\nb", "\u202eli"]))]) == 1
    )
    shown = "".join(capfd.readouterr())
    assert not set("\x1b\x07\r\u202e") & set(shown)
    assert r"\x1b]0;x\x07" in shown
    assert printable("größer\n漢字") == "größer\n漢字"


def test_git_runs_no_program_that_a_repository_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    (tmp_path / "file").write_text("2")
    spy = tmp_path / "spy.sh"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path / 'trace'}\n")
    spy.chmod(0o755)
    for hook in ("post-index-change", "fsmonitor-watchman"):
        (tmp_path / ".git" / "hooks" / hook).write_text(spy.read_text())
        (tmp_path / ".git" / "hooks" / hook).chmod(0o755)
    git("config", "core.fsmonitor", str(spy))
    (tmp_path / ".gitattributes").write_text("file filter=its.own\n")
    for program in ("clean", "smudge", "process"):
        git("config", f"filter.its.own.{program}", str(spy))
    git("config", "filter.its.own.required", "true")
    state = git_state()
    assert state is not None
    assert state["changed"]
    assert not (tmp_path / "trace").exists()

    git("config", "filter.a=b.clean", str(spy))  # an option -c would name another one
    (tmp_path / ".gitattributes").write_text("file filter=a=b\n")
    assert git_state() is None
    assert not (tmp_path / "trace").exists()


def test_git_fetches_nothing_that_a_repository_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *name, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    tree = git("rev-parse", "HEAD^{tree}")
    (tmp_path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    trace = tmp_path / "trace"
    settings = {"core.repositoryFormatVersion": "1", "extensions.partialClone": "origin"}
    settings |= {"remote.origin.url": f"ext::sh -c touch% {trace}", "remote.origin.promisor": "true"}
    settings |= {"protocol.ext.allow": "always"}
    for name, value in settings.items():
        git("config", name, value)
    git_state()
    assert not trace.exists()


def test_git_never_fails_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_state() is None  # no repository
    assert git_state(tmp_path / "absent") is None
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nprintf '\\377\\376'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert git_state() is not None  # what it says is no text, but says something
    monkeypatch.setenv("PATH", str(tmp_path / "absent"))
    assert git_state() is None
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert git_state() is None
    assert describing.surroundings(torch.device("cpu"))["git"] is None
