"""Running a script whose author has a module of this package's name, and what Python's own switches mean then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import supernet
from supernet.errors import NameTakenError
from supernet.retiarii.name_of_the_script import leave_name_to_script

SOURCE = Path(supernet.__file__).parents[1]

SCRIPT = """
import pickle, sys
from supernet import OneShot, nn
import supernet
from nni.retiarii.nn.pytorch import LayerChoice
from supernet.reports import plots  # this package's, under their full names
model = OneShot()
assert type(pickle.loads(pickle.dumps(model.op))) is LayerChoice
assert nn is __import__("torch").nn, "the author's own attribute"
print("ran", supernet.__file__, sys.argv[1:])
"""
MODULE = """
import torch.nn as nn
import nni.retiarii.nn.pytorch as rnn
class OneShot(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = rnn.LayerChoice([nn.ReLU(), nn.Tanh()], label="op")
"""


def python(*arguments, directory, path=(SOURCE,), **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, cwd=directory, env=environment, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def spos(tmp_path):
    """A directory with a script and a module of its author's, and the console script as pip writes it."""
    for name, text in {
        "spos/search.py": SCRIPT,
        "spos/supernet.py": MODULE,
        "bin/supernet-retiarii": "import sys\nfrom supernet_retiarii import main\nsys.exit(main())\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_console_script_is_the_one_that_is_tested_here():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'supernet-retiarii = "supernet_retiarii:main"' in project


@pytest.mark.parametrize(
    ("command", "script", "directory"),
    [
        (["../bin/supernet-retiarii"], "search.py", "spos"),
        (["-m", "supernet_retiarii"], "search.py", "spos"),
        (["-m", "supernet.retiarii"], "spos/search.py", "."),
    ],
)
def test_a_script_has_the_supernet_beside_it_and_the_package_works_under_its_full_names(
    spos, command, script, directory
):
    result = python(*command, script, "--epochs", "3", directory=spos / directory)
    assert result.returncode == 0, result.stderr
    assert f"ran {spos / 'spos' / 'supernet.py'} ['--epochs', '3']" in result.stdout


@pytest.mark.slow
def test_a_supernet_of_the_authors_on_pythonpath_is_found_where_python_finds_it(spos):
    (spos / "search.py").write_text("import supernet; print(supernet.__file__)")
    path = [spos / "spos", SOURCE]
    result = python(spos / "bin" / "supernet-retiarii", "search.py", directory=spos, path=path)
    assert result.stdout == f"{spos / 'spos' / 'supernet.py'}\n", result.stderr


@pytest.mark.slow
def test_a_process_that_is_spawned_to_load_data_finds_the_same_names(spos):
    (spos / "spos" / "search.py").write_text(
        """
import multiprocessing
from nni.retiarii.oneshot.pytorch import DartsTrainer
from supernet import OneShot
from torch.utils.data import DataLoader

class Data(list):
    pass

if __name__ == "__main__":
    data = Data([OneShot().op])
    loader = DataLoader(data, 1, num_workers=1, multiprocessing_context="spawn", collate_fn=list)
    print("loaded", *(type(op).__module__ for (op,) in loader))
"""
    )
    result = python(spos / "bin" / "supernet-retiarii", "search.py", directory=spos / "spos")
    assert result.stdout == "loaded supernet.retiarii.choices\n", result.stderr


@pytest.mark.slow
def test_safe_path_puts_no_directory_of_the_script_first_and_drops_none_of_pythons(tmp_path):
    if sys.version_info < (3, 11):
        pytest.skip("Python has -P from 3.11 on")
    (tmp_path / "script.py").write_text("import sys; print(sys.path); import beside")
    (tmp_path / "beside.py").write_text("")
    result = python("-P", "-m", "supernet.retiarii", "script.py", directory=tmp_path)
    assert "No module named 'beside'" in result.stderr
    before = eval(python("-P", "-c", "import sys; print(sys.path)", directory=tmp_path).stdout)
    ours = str(SOURCE / "supernet" / "retiarii" / "in_workers")
    assert [place for place in eval(result.stdout) if place != ours] == before


def test_a_package_of_the_same_name_works_unless_both_have_a_module_of_one_name(spos, monkeypatch):
    package = spos / "spos" / "supernet"
    package.mkdir()
    (spos / "spos" / "supernet.py").rename(package / "models.py")
    (package / "__init__.py").write_text("from supernet.models import OneShot, nn")
    result = python("-m", "supernet_retiarii", "search.py", directory=spos / "spos")
    assert result.returncode == 0, result.stderr
    (package / "space.py").write_text("")
    monkeypatch.syspath_prepend(spos / "spos")
    with pytest.raises(NameTakenError, match="modules that this one has too: space; rename it, or these"):
        leave_name_to_script()
    assert sys.modules["supernet"] is supernet
