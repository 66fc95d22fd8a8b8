"""Scripts as Retiarii's examples were run to the end, export, and reload through `fixed_arch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import programs

SCRIPTS = Path(__file__).with_name("scripts")


def run(script, *arguments, directory, check=True):
    return programs.run("-m", "supernet.retiarii", SCRIPTS / script, *arguments, cwd=directory, check=check)


@pytest.mark.parametrize(
    ("script", "arguments", "log"),
    [
        ("naive.py", [], None),
        ("naive.py", ["--random"], None),
        ("darts.py", [], "Epoch [1/1] Step [4/4]  train_loss "),
        ("darts.py", ["--unrolled"], "Epoch [1/1] Step [2/4]  train_loss "),
        ("enas.py", ["--search-for", "macro"], "Model Epoch [2/2] Step [4/5]  train_loss "),
        ("enas.py", ["--search-for", "micro"], "RL Epoch [1/2] Step [1/5]  train_loss "),
        ("spos.py", [], "Epoch [1/2] Step [6/7]  train_loss "),
        ("custom.py", [], None),
    ],
)
def test_a_script_of_retiarii_searches_exports_and_reloads(tmp_path, script, arguments, log):
    result = run(script, *arguments, directory=tmp_path)
    assert "retrained" in result.stdout
    exported = json.loads((tmp_path / "checkpoint.json").read_text())
    assert exported
    assert all(isinstance(decision, str | list) for decision in exported.values())
    if log is not None:
        assert log in result.stderr


def test_proxylessnas_is_searched_and_retrained_by_two_runs(tmp_path):
    run("proxylessnas.py", directory=tmp_path)
    assert list(json.loads((tmp_path / "checkpoint.json").read_text())) == ["_mutation_1", "_mutation_2", "_mutation_3"]
    assert "retrained" in run("proxylessnas.py", "--train-mode", "retrain", directory=tmp_path).stdout


@pytest.mark.slow
def test_a_line_at_the_top_of_a_script_does_the_same(tmp_path):
    line = "import supernet.retiarii; supernet.retiarii.install()\n"
    (tmp_path / "script.py").write_text(line + (SCRIPTS / "naive.py").read_text())
    (tmp_path / "data.py").write_text((SCRIPTS / "data.py").read_text())
    command = [sys.executable, "script.py", "--output", "out.json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False)
    assert "retrained" in result.stdout, result.stderr
    assert (tmp_path / "out.json").exists()


def test_a_script_that_is_not_there_is_named(tmp_path):
    result = run("nothing.py", directory=tmp_path, check=False)
    assert result.returncode == 2
    assert "there is no file" in result.stderr


def python(code, directory, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_nothing_is_registered_under_the_name_nni_unless_asked_for(tmp_path):
    code = (
        "import sys, supernet.retiarii.oneshot.pytorch; assert not any(m.split('.')[0] == 'nni' for m in sys.modules)"
    )
    assert python(code + "\nimport nni", tmp_path).stderr.endswith("ModuleNotFoundError: No module named 'nni'\n")


@pytest.mark.slow
def test_where_a_real_nni_is_installed_an_error_says_which_wins_and_how_to_choose(tmp_path):
    (tmp_path / "nni").mkdir()
    (tmp_path / "nni" / "__init__.py").write_text("real = True")
    result = python("import supernet.retiarii as r; r.install()", tmp_path)
    assert "NameTakenError: a real nni is installed" in result.stderr
    assert str(tmp_path / "nni") in result.stderr
    assert "install(over_real_nni=True)" in result.stderr
    chosen = (
        "import nni; import supernet.retiarii as r; r.install(over_real_nni=True); from nni.retiarii import fixed_arch"
    )
    assert python(chosen + "; assert fixed_arch is r.fixed_arch", tmp_path).returncode == 0
    command = [sys.executable, "-m", "supernet.retiarii", str(SCRIPTS / "naive.py")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert refused.returncode == 2
    assert "--over-real-nni" in refused.stderr


LINES = """
import nni.retiarii.nn.pytorch as nn
from nni.retiarii.nn.pytorch import LayerChoice, InputChoice, NasBench101Cell, NasBench201Cell
from nni.retiarii.nn.pytorch import Cell, ValueChoice, Repeat
from nni.retiarii.oneshot import BaseOneShotTrainer
from nni.retiarii.oneshot.pytorch import DartsTrainer, ProxylessTrainer, SinglePathTrainer, RandomTrainer, EnasTrainer
from nni.retiarii.oneshot.pytorch import replace_layer_choice, replace_input_choice
from nni.retiarii.oneshot.pytorch.enas import EnasTrainer
from nni.retiarii.oneshot.pytorch.random import PathSamplingInputChoice, PathSamplingLayerChoice
from nni.retiarii.oneshot.pytorch.darts import DartsLayerChoice, DartsInputChoice
from nni.retiarii.oneshot.pytorch.proxyless import ProxylessTrainer
from nni.retiarii.oneshot.pytorch.utils import AverageMeterGroup, AverageMeter, to_device
from nni.retiarii import serialize, basic_unit, model_wrapper, serialize_cls, fixed_arch
from nni.retiarii.serializer import model_wrapper
from nni.retiarii.experiment.pytorch import RetiariiExperiment, RetiariiExeConfig
from nni.nas.pytorch import mutables
from nni.nas.pytorch.mutables import LayerChoice, InputChoice, MutableScope
from nni.nas.pytorch.utils import AverageMeter, AverageMeterGroup
from nni.nas.pytorch.fixed import apply_fixed_architecture
from nni.retiarii.trainer.pytorch import BaseOneShotTrainer, DartsTrainer
from nni.retiarii.trainer.pytorch.utils import replace_layer_choice, replace_input_choice
import nni.retiarii.strategy as strategy
import nni.retiarii.evaluator.pytorch.lightning as pl
from nni.retiarii import strategy, Mutator
from nni.retiarii.evaluator import FunctionalEvaluator
from nni.retiarii.execution.python import PurePythonExecutionEngine
from nni.algorithms.nas.pytorch.darts import DartsTrainer as OldDartsTrainer
from nni.retiarii.oneshot import interface
from nni.nas import fixed_arch, model_wrapper
from nni.nas.fixed import fixed_arch
from nni.nas.experiment import RetiariiExperiment
from nni.nas.experiment.pytorch import RetiariiExperiment, RetiariiExeConfig
from nni.nas.utils import model_wrapper, basic_unit
from nni.nas.utils.serializer import model_wrapper
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.nn.pytorch.choice import InputChoice
import nni.nas.nn.pytorch.layers as layers
import nni.nas.strategy
import nni.nas.hub.pytorch
import nni.retiarii.trainer.pytorch as trainers
from nni.retiarii import hub, register_trainer
import nni
assert issubclass(interface.BaseOneShotTrainer, trainers.BaseOneShotTrainer) and LayerChoice is layers.LayerChoice
assert nni.report_intermediate_result(1) is nni.report_final_result(2) and nni.trace(dict) is dict
assert issubclass(nn.Conv2d, nn.Module) and nn.functional and nn.Parameter and nn.ModuleDict
for refused in (lambda: strategy.Random(), lambda: pl.Classification(), lambda: OldDartsTrainer(None),
                lambda: nn.ModelParameterChoice([1, 2]), lambda: nn.Placeholder("here"), lambda: Mutator(),
                lambda: nni.nas.strategy.DARTS(), lambda: hub.pytorch.MobileNetV3Space(),
                lambda: register_trainer(), lambda: nn.MultiheadChoice()):
    try:
        refused()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_every_line_of_the_list_imports_and_what_could_never_run_says_so_when_used(tmp_path):
    result = python("import supernet.retiarii as r; r.install(); r.install()" + LINES, tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert len(said) == 10
    assert all(
        line.startswith("ChoiceError") and ("one-shot trainers" in line or "is not here" in line) for line in said
    )
    assert "nni.retiarii.strategy.Random" in said[0]
    assert "use a ValueChoice as an argument of a layer" in said[3]
