"""Retiarii's names, signatures and behaviours; and that the layer holds nothing else."""

import ast
import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet
from supernet import SearchSpace, freeze
from supernet.errors import ArchitectureError, ChoiceError, DataError, FileFormatError, TrainingError
from supernet.retiarii import (
    apply_fixed_architecture,
    basic_unit,
    fixed_arch,
    model_wrapper,
    mutables,
    serialize,
    serialize_cls,
)
from supernet.retiarii.experiment.pytorch import RetiariiExperiment
from supernet.retiarii.nn import pytorch as rnn
from supernet.retiarii.oneshot import pytorch as oneshot
from supernet.retiarii.oneshot.pytorch.darts import DartsInputChoice, DartsLayerChoice
from supernet.retiarii.oneshot.pytorch.random import PathSamplingInputChoice, PathSamplingLayerChoice
from supernet.retiarii.oneshot.pytorch.utils import AverageMeter, AverageMeterGroup, to_device

SOURCE = Path(supernet.__file__).parent / "retiarii"

NO = inspect.Parameter.empty
COMMON = {"model": NO, "loss": NO, "metrics": NO, "optimizer": NO, "num_epochs": NO}
LOADING = {"batch_size": 64, "workers": 4, "device": None, "log_frequency": None}
PATHS = {**COMMON, "dataset_train": NO, "dataset_valid": NO, "mutator": None, **LOADING}
SIGNATURES = {
    "DartsTrainer": {
        **COMMON, "dataset": NO, "grad_clip": 5.0, "learning_rate": 2.5e-3, **LOADING,
        "arc_learning_rate": 3e-4, "unrolled": False,
    },
    "EnasTrainer": {
        "model": NO, "loss": NO, "metrics": NO, "reward_function": NO, "optimizer": NO, "num_epochs": NO, "dataset": NO,
        **LOADING, "grad_clip": 5.0, "entropy_weight": 0.0001, "skip_weight": 0.8, "baseline_decay": 0.999,
        "ctrl_lr": 0.00035, "ctrl_steps_aggregate": 20, "ctrl_kwargs": None,
    },
    "ProxylessTrainer": {
        **COMMON, "dataset": NO, "warmup_epochs": 0, **LOADING, "arc_learning_rate": 1e-3, "grad_reg_loss_type": None,
        "grad_reg_loss_params": None, "applied_hardware": None, "dummy_input": (1, 3, 224, 224), "ref_latency": 65,
    },
    "SinglePathTrainer": PATHS,
    "RandomTrainer": PATHS,
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_have_retiariis_order_and_defaults(name):
    parameters = inspect.signature(getattr(oneshot, name).__init__).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.name != "self"}
    assert list(positional.items()) == list(SIGNATURES[name].items())


def test_the_layer_is_thin_and_has_steps_only_in_the_parts_that_subclasses_override():
    """Elsewhere it computes no gradient and builds no optimizer; each file is short."""
    with_steps = {"darts.py", "enas.py", "proxyless.py", "random.py"}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        tree = ast.parse(text)
        assert len({node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}) < 260, path
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} | {
            alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
        }
        forbidden = {"torch.autograd", "torch.nn.functional", "torch.distributions", "lightning_fabric"}
        assert not imported & forbidden, path
        if path.name not in with_steps:
            assert "torch.optim" not in imported
            assert ".backward(" not in text
            assert ".step(" not in text


# --- choices -------------------------------------------------------------------------------------------------


@model_wrapper
class Net(rnn.Module):
    def __init__(self):
        super().__init__()
        self.first = rnn.LayerChoice([rnn.Linear(3, 4), rnn.Sequential(rnn.Linear(3, 4), rnn.ReLU())])
        self.named = rnn.LayerChoice({"a": rnn.Linear(4, 4), "b": rnn.Tanh()}, label="named")
        self.skip = rnn.InputChoice(3, n_chosen=2)
        self.head = rnn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.skip([x, self.named(x), x.sin()]))


def test_unlabelled_choices_are_numbered_and_a_wrapped_model_begins_anew():
    for _ in range(2):
        assert list(SearchSpace(Net())) == ["_mutation_1", "named", "_mutation_2"]
    label = rnn.LayerChoice([nn.ReLU()]).label
    assert label == "_mutation_3"
    assert rnn.InputChoice(2).key == "_mutation_4"


def test_deprecated_arguments_and_attributes_warn_and_key_does_not():
    with pytest.warns(DeprecationWarning, match="use label="):
        choice = rnn.LayerChoice([nn.ReLU(), nn.Tanh()], key="k")
    assert choice.key == choice.label == "k"
    with pytest.warns(DeprecationWarning, match="return_mask= is deprecated and ignored"):
        rnn.InputChoice(2, return_mask=True, label="x")
    with pytest.warns(DeprecationWarning, match=r"use list\(layer_choice\)"):
        assert choice.choices == list(choice)
    with pytest.warns(DeprecationWarning, match=r"use len\(layer_choice\)"):
        assert choice.length == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        rnn.LayerChoice([nn.ReLU()], labels="k")


def test_the_older_signatures_take_keys_and_names_of_inputs():
    layer = mutables.LayerChoice([nn.ReLU()], key="layer")
    assert layer.key == "layer"
    choice = mutables.InputChoice(choose_from=["x", "y", mutables.InputChoice.NO_KEY], n_chosen=2, key="skip")
    assert (choice.n_candidates, choice.n_chosen, choice.key) == (3, 2, "skip")
    fixed = choice.resolve([0, 2])
    tensors = [torch.ones(1), torch.zeros(1), torch.full((1,), 5.0)]
    assert fixed(tensors) == fixed(dict(zip("xyz", tensors, strict=True))) == 6
    assert mutables.MutableScope("scope").key == "scope"
    with pytest.raises(ChoiceError, match="needs n_candidates or choose_from"):
        mutables.InputChoice()


def test_a_fixed_input_choice_gives_none_or_the_tensor_itself_or_the_sum():
    x, y = torch.ones(2), torch.full((2,), 3.0)
    assert rnn.ChosenInputs([], "sum")([x, y]) is None
    assert rnn.ChosenInputs(1, "sum")([x, y]) is y
    assert torch.equal(rnn.ChosenInputs([0, 1], "mean")([x, y]), torch.full((2,), 2.0))


def test_cells_number_their_labels_and_freeze():
    class WithCells(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = rnn.Cell([nn.Identity(), nn.Tanh()], 1)
            self.bench = rnn.NasBench201Cell([lambda i, o: nn.Linear(i, o)], 3, 3, 2, label="bench")

    model = model_wrapper(WithCells)()
    assert list(SearchSpace(model)) == ["_mutation_1__op_0_0", "_mutation_1/input_0_0", "bench__0_1"]
    network = freeze(model, {"_mutation_1__op_0_0": 1, "_mutation_1/input_0_0": 0, "bench__0_1": 0})
    assert torch.equal(network.cell([torch.ones(1, 2)]), torch.ones(1, 2).tanh())


# --- fixed architectures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decisions", [("1", "b", [0, 2]), (1, 1, [2, 0])])
def test_names_and_positions_of_old_files_are_understood(tmp_path, decisions):
    architecture = dict(zip(["_mutation_1", "named", "_mutation_2"], decisions, strict=True))
    (tmp_path / "fixed.json").write_text(json.dumps(architecture))
    torch.manual_seed(0)
    whole = Net()
    torch.manual_seed(0)
    for fixed in (tmp_path / "fixed.json", str(tmp_path / "fixed.json"), architecture):
        with fixed_arch(fixed, verbose=False):
            network = Net()
        assert isinstance(network.first, nn.Sequential)
        assert isinstance(network.named, nn.Tanh)
        assert network.skip.chosen == [0, 2]
    x = torch.randn(5, 3)
    built = copy.deepcopy(whole)
    apply_fixed_architecture(built, architecture)
    torch.testing.assert_close(built(x), freeze(whole, architecture)(x))


def test_a_built_model_takes_one_hot_lists_too():
    for first, skip in (([False, True], [True, False, True]), ([0.0, 1.0], [1.0, 0.0, 1.0]), (["1"], [0, 2])):
        model = Net()
        apply_fixed_architecture(model, {"_mutation_1": first, "named": ["b"], "_mutation_2": skip}, verbose=False)
        assert isinstance(model.first, nn.Sequential)
        assert isinstance(model.named, nn.Tanh)
        assert model.skip.chosen == [0, 2]


def test_what_a_fixed_architecture_cannot_mean_is_an_error_that_says_why(tmp_path, caplog):
    with (
        pytest.raises(ArchitectureError, match="choice 'named' has no candidate 'c'; it has: a, b"),
        fixed_arch({"named": "c"}),
    ):
        Net()
    with pytest.raises(ArchitectureError, match=r"no choice with a label .* @model_wrapper"), fixed_arch({"other": 0}):
        Net()
    with pytest.raises(ArchitectureError, match=r"InputChoice '_mutation_2' .* has no decision"):
        apply_fixed_architecture(Net(), {"_mutation_1": 0, "named": 0})
    for text, message in (("{", "is not a whole JSON file"), ("[1]", "holds no architecture")):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(FileFormatError, match=message), fixed_arch(tmp_path / "broken.json"):
            pass
    with fixed_arch({"named": "a"}, verbose=False):
        Net()
    assert "choice '_mutation_1' is not decided by this architecture" in caplog.text


def test_decorators_keep_a_class_usable_as_before():
    class Layer(nn.Module):
        def __init__(self, size=1):
            super().__init__()
            self.size = size

    assert basic_unit(Layer) is serialize_cls(Layer) is Layer
    assert serialize(Layer, size=3).size == 3

    @model_wrapper
    class Base(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

    class Derived(Base):
        def __init__(self):
            super().__init__(4)

    assert (Base(2).size, Derived().size) == (2, 4)


# --- trainers ------------------------------------------------------------------------------------------------


def data(count=64):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 3, generator=generator), torch.arange(count) % 2)


def darts(**options):
    torch.manual_seed(0)
    model = Net()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"num_epochs": 2, "dataset": data(), "batch_size": 8, "workers": 0, **options}
    metrics = lambda output, target: {"acc": (output.argmax(1) == target).float().mean().item()}  # noqa: E731
    return oneshot.DartsTrainer(model, nn.functional.cross_entropy, metrics, optimizer, **options)


def test_the_modules_that_darts_puts_in_show_what_scripts_look_at_and_alphas_stay_out_of_the_model():
    trainer = darts()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert not any("alpha" in name for name in before)
    trainer.fit()
    modules = dict(trainer.nas_modules)
    assert isinstance(modules["named"], DartsLayerChoice)
    assert isinstance(modules["_mutation_2"], DartsInputChoice)
    assert modules["named"].name == "named"
    assert list(modules["named"].op_choices) == ["a", "b"]
    assert modules["named"].alpha is trainer.alphas["named"]
    assert {name: module.export() for name, module in modules.items()} == trainer.export()
    assert trainer.valid_loader is not trainer.train_loader
    assert json.loads(json.dumps(trainer.export())) == trainer.export()
    freeze(trainer.model, trainer.export())


def test_learning_rate_is_warned_about_and_grad_clip_is_honoured():
    with pytest.warns(DeprecationWarning, match="learning_rate is ignored"):
        assert darts(learning_rate=0.5).given_optimizer.param_groups[0]["lr"] == 0.1
    assert darts(grad_clip=0.25).grad_clip == 0.25


def test_data_is_split_at_random_or_cut_in_the_middle_where_asked_for():
    def trained_on(trainer):
        dataset = trainer.train_loader.dataset.dataset
        return sorted(dataset.indices)

    assert trained_on(darts(split="sequential")) == list(range(32))
    assert trained_on(darts()) != list(range(32))
    assert len(trained_on(darts())) == 32
    with pytest.raises(DataError, match="split is 'random' or 'sequential', not 'middle'"):
        darts(split="middle")


def test_ours_options_go_through(tmp_path):
    trainer = darts(run_dir=tmp_path, seed=3, progress=False)
    trainer.fit(resume="auto")
    assert (tmp_path / "metrics.jsonl").exists()
    assert trainer.seed == 3


def test_log_lines_have_value_and_average(caplog):
    with caplog.at_level("INFO", logger="supernet"):
        darts(log_frequency=2, num_epochs=1).fit()
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Epoch [1/1] Step [2/4]")]
    for name in ("train_loss", "train_acc", "valid_loss"):
        value, average = line.split(f"{name} ")[1].split()[:2]
        assert float(value) > 0
        assert average.startswith("(")
        assert average.endswith(")")


def test_path_modules_run_in_a_trainer_of_ones_own():
    model = Net()
    modules = oneshot.replace_layer_choice(model, PathSamplingLayerChoice)
    oneshot.replace_input_choice(model, PathSamplingInputChoice, modules)
    for _, module in modules:
        module.sampled = [0, 2] if isinstance(module, PathSamplingInputChoice) else len(module) - 1
    torch.testing.assert_close(
        model(torch.ones(1, 3)), freeze(model, {"_mutation_1": 1, "named": 1, "_mutation_2": [0, 2]})(torch.ones(1, 3))
    )
    layers, inputs = dict(modules)["named"], dict(modules)["_mutation_2"]
    assert (layers.sampled, layers.mask.tolist()) == (1, [False, True])
    assert (inputs.sampled, inputs.mask.tolist()) == ([0, 2], [True, False, True])
    assert len(inputs) == 3


def test_mixing_modules_run_in_a_trainer_of_ones_own_and_have_alphas_of_their_own():
    model = Net()
    modules = oneshot.replace_layer_choice(model, DartsLayerChoice)
    oneshot.replace_input_choice(model, DartsInputChoice, modules)
    model(torch.ones(1, 3)).sum().backward()
    assert all(module.alpha.grad is not None for _, module in modules)
    with torch.no_grad():
        dict(modules)["named"].alpha.copy_(torch.tensor([0.0, 1.0]))
        dict(modules)["_mutation_2"].alpha.copy_(torch.tensor([0.0, 1.0, 2.0]))
    assert dict(modules)["named"].export() == "b"
    assert dict(modules)["_mutation_2"].export() == [1, 2]


def test_an_experiment_runs_a_one_shot_trainer_and_refuses_anything_else():
    trainer = darts(num_epochs=1)
    experiment = RetiariiExperiment(trainer.model, trainer)
    experiment.run()
    assert experiment.export_top_models(top_k=1) == trainer.export()
    with pytest.raises(TrainingError, match="runs one-shot trainers, and str is none"):
        RetiariiExperiment(trainer.model, "multi-trial")


def test_random_ignores_a_mutator_with_a_warning_and_exports_names():
    model = Net()
    with pytest.warns(DeprecationWarning, match="mutator is ignored"):
        trainer = oneshot.RandomTrainer(
            model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.1), 1, data(), data(16), object(), 8, 0,
            num_samples=4,
        )  # fmt: skip
    trainer.fit()
    exported = trainer.export()
    assert set(exported) == {"_mutation_1", "named", "_mutation_2"}
    assert exported["named"] in ("a", "b")


def test_averages_and_devices():
    group = AverageMeterGroup()
    group.update({"loss": 1.0, "acc": 0.5})
    group.update({"loss": 3.0, "acc": 1.0})
    assert group["loss"].avg == group.loss.avg == 2.0
    assert group.summary() == "loss: 2.000000  acc: 0.750000"
    assert str(group).startswith("loss 3.000000 (2.000000)")
    meter = AverageMeter("x", ":.1f")
    meter.update(2, n=3)
    meter.update(6)
    assert (meter.avg, meter.val, str(meter)) == (3.0, 6.0, "x 6.0 (3.0)")
    moved = to_device({"a": [torch.ones(1), "text"], "b": (torch.zeros(2),)}, "meta")
    assert moved["a"][0].device.type == moved["b"][0].device.type == "meta"
    assert moved["a"][1] == "text"
