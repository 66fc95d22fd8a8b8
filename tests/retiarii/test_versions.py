"""What differs between the versions of NNI: names, keywords, labels, and the values of architectures."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet
from supernet import SearchSpace
from supernet.errors import ArchitectureError, ChoiceError, TrainingError, UnresolvedChoiceError
from supernet.retiarii import apply_fixed_architecture, fixed_arch, model_wrapper, mutables
from supernet.retiarii.nn import pytorch as rnn
from supernet.retiarii.oneshot.pytorch import ProxylessTrainer, utils
from supernet.retiarii.oneshot.pytorch.darts import DartsInputChoice, DartsLayerChoice


@model_wrapper
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = rnn.LayerChoice([nn.ReLU(), nn.Tanh()])
        self.skip = rnn.InputChoice(3, n_chosen=2)

    def forward(self, x):
        return self.skip([self.op(x), x, x.sin()])


@model_wrapper
class Net(nn.Module):
    """In 2.6 to 2.10 a model inside another counts as one, then numbers its own below."""

    def __init__(self):
        super().__init__()
        self.first = rnn.LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()})
        self.blocks = nn.Sequential(Block(), Block())
        self.last = rnn.LayerChoice([nn.Sigmoid(), nn.Tanh()])

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


OLD = [f"_mutation_{i}" for i in range(1, 7)]
LATER = ["model_1", "model_2_1", "model_2_2", "model_3_1", "model_3_2", "model_4"]
DECISIONS = ["b", 1, [0, 2], 0, [1, 2], 1]


def expected(x):
    y = x.tanh()
    y = y.tanh() + y.sin()
    return (y + y.sin()).tanh()


def test_models_inside_models_do_not_share_their_automatic_labels():
    for _ in range(2):
        assert list(SearchSpace(Net())) == OLD
    assert list(SearchSpace(Block())) == OLD[:2]


@pytest.mark.parametrize("labels", [OLD, LATER])
def test_architectures_with_the_labels_of_either_version_are_read(labels):
    architecture, x = dict(zip(labels, DECISIONS, strict=True)), torch.linspace(-1, 1, 5)
    with fixed_arch(architecture, verbose=False):
        network = Net()
    torch.testing.assert_close(network(x), expected(x))
    built = Net()
    apply_fixed_architecture(built, architecture, verbose=False)
    torch.testing.assert_close(built(x), expected(x))


@model_wrapper
class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = rnn.Cell([nn.ReLU(), nn.Tanh()], 2, num_predecessors=2)
        self.bench = rnn.NasBench201Cell([lambda i, o: nn.Identity(), lambda i, o: nn.Tanh()], 1, 1, 2, label="bench")

    def forward(self, x):
        return self.bench(self.cell([x, 2 * x]))


@pytest.mark.parametrize("cell", ["_mutation_1__op_{}_0", "model_1/op_{}_0"])
def test_choices_in_cells_are_read_by_the_labels_of_either_version(cell):
    """Node 0 is tanh(2 x), node 1 is relu of that; since 2.6 the inputs are numbered before the nodes."""
    later = "/" in cell
    nodes = (2, 3) if later else (0, 1)
    inputs = cell.replace("__op", "/input").replace("/op", "/input")
    architecture = dict(zip([cell.format(node) for node in nodes], [1, "0"], strict=True))
    architecture |= dict(zip([inputs.format(node) for node in nodes], [[1], [2]], strict=True))
    architecture["bench/0_1" if later else "bench__0_1"] = 1
    with fixed_arch(architecture, verbose=False):
        network = Cells()
    built = Cells()
    apply_fixed_architecture(built, architecture, verbose=False)
    x = torch.linspace(-1, 1, 5).reshape(-1, 1)
    node = (2 * x).tanh()
    for module in (network, built):
        torch.testing.assert_close(module(x), torch.cat([node, node.relu()], 1).tanh())


def test_a_label_that_is_missing_in_either_form_is_named():
    with pytest.raises(
        ArchitectureError, match=r"LayerChoice '_mutation_6' .* has no decision; there are: model_1, model_2_1"
    ):
        apply_fixed_architecture(Net(), dict(zip(LATER[:-1], DECISIONS, strict=False)), verbose=False)


@pytest.mark.parametrize("decision", ["1", 1, [1]])
def test_a_candidate_is_read_as_nni_wrote_it(decision):
    for build in (
        lambda: rnn.LayerChoice([nn.ReLU(), nn.Tanh()], label="x"),
        lambda: mutables.LayerChoice([nn.ReLU(), nn.Tanh()], key="x"),
    ):
        with fixed_arch({"x": decision}, verbose=False):
            assert isinstance(build(), nn.Tanh)


@pytest.mark.parametrize(
    ("decision", "chosen"), [(0, [0]), ([0], [0]), ([2, 0], [0, 2]), ([0, 1, 2], [0, 1, 2]), ([], [])]
)
def test_any_number_of_inputs_is_read_for_nni_chose_so(decision, chosen):
    """Its ENAS took every `n_chosen` but 1 for any number."""
    with fixed_arch({"x": decision}, verbose=False):
        assert rnn.InputChoice(3, n_chosen=2, label="x").chosen == chosen
    with pytest.raises(ArchitectureError, match="no input 3"), fixed_arch({"x": [3]}, verbose=False):
        rnn.InputChoice(3, label="x")


def test_a_choice_that_runs_undecided_runs_its_first_with_a_warning_in_retiarii_only():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = rnn.LayerChoice([nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3, dilation=1)], label="conv")
            self.skip = rnn.InputChoice(2, label="skip")
            size = self.skip([self.conv(torch.zeros(1, 1, 8, 8)), None]).numel()
            self.head = nn.Linear(size, 3)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert Sized().head.in_features == 2 * 6 * 6
    assert [str(w.message).split(",")[0] for w in warned] == [
        "LayerChoice 'conv' (0",
        "InputChoice 'skip' (2 inputs) runs undecided",
    ]
    with pytest.raises(UnresolvedChoiceError):
        supernet.LayerChoice([nn.ReLU()], label="x")(torch.zeros(1))


def test_a_choice_shows_its_candidates_and_a_uniform_prior_that_changes_no_fingerprint():
    relu, tanh = nn.ReLU(), nn.Tanh()
    assert rnn.LayerChoice([relu, tanh], label="x").candidates == [relu, tanh]
    named = rnn.LayerChoice({"a": relu, "b": tanh}, label="x")
    assert named.candidates == {"a": relu, "b": tanh}
    assert named.prior == [0.5, 0.5]
    assert rnn.LayerChoice([relu, tanh], label="x", prior=[0.25, 0.75]).prior == [0.25, 0.75]
    assert rnn.InputChoice(4, label="y").prior == [0.25] * 4
    ours = nn.Sequential(supernet.LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, label="x"))
    assert SearchSpace(nn.Sequential(named)).fingerprint == SearchSpace(ours).fingerprint
    del named["a"]
    assert (named.candidates, named.prior) == ({"b": tanh}, [1.0])


def test_choices_are_replaced_in_the_root_module_by_that_keyword():
    model = Net()
    modules = utils.replace_layer_choice(root_module=model, init_fn=DartsLayerChoice)
    assert utils.replace_input_choice(root_module=model, init_fn=DartsInputChoice, modules=modules) is modules
    assert sorted(label for label, _ in modules) == OLD


# --- ProxylessNAS's latency ----------------------------------------------------------------------------------


def proxyless(**given):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = rnn.LayerChoice({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}, label="op")

        def forward(self, x):
            return self.op(x)

    model, x = Scaled(), torch.linspace(-1, 1, 8).reshape(-1, 1)
    return ProxylessTrainer(
        model, nn.functional.mse_loss, None, SGD(model.parameters(), 0.1), 1, TensorDataset(x, x), 0, 4, 0, **given
    )


def test_nothing_given_for_the_latency_is_taken_and_a_term_without_latencies_has_no_effect_but_a_warning(caplog):
    nothing = {"grad_reg_loss_type": None, "grad_reg_loss_params": None, "applied_hardware": None}
    assert proxyless(**nothing, dummy_input=None, ref_latency=None).cost == {}
    assert caplog.text == ""
    assert proxyless(grad_reg_loss_type="add#linear", grad_reg_loss_params={"lambda": 0.1}).cost == {}
    assert "grad_reg_loss_type='add#linear' has no effect without latencies, as in NNI; give cost={" in caplog.text


def test_a_linear_term_is_the_same_as_our_cost():
    """d/dp of `lambda * (p . latency - ref) / ref` is `lambda / ref * latency`, as of `cost_weight * p . cost`."""
    cost = {"op": {"a": 3.0, "b": 7.0}}
    trainer = proxyless(
        grad_reg_loss_type="add#linear", grad_reg_loss_params={"lambda": 0.5}, ref_latency=10, cost=cost
    )
    p = torch.tensor([0.3, 0.7], requires_grad=True)
    latency = torch.tensor([3.0, 7.0])
    theirs = torch.autograd.grad(0.5 * (p @ latency - 10) / 10, p)[0]
    torch.testing.assert_close(theirs, trainer.cost_weight * latency)
    assert trainer.cost_of({"op": "b"}) == 7
    assert proxyless(grad_reg_loss_type="add#linear", cost=cost).cost_weight == pytest.approx(0.2 / 65)
    assert proxyless(cost=cost).cost_weight == 1


def test_what_of_the_latency_has_no_equal_here_says_how_to_go_on():
    with pytest.raises(
        TrainingError, match=r"latencies are not predicted here, .* give cost=\{label: \{candidate: milli"
    ):
        proxyless(applied_hardware="cortexA76cpu_tflite21")
    with pytest.raises(TrainingError, match=r"'mul#log' multiplies the loss .* give 'add#linear', or cost_weight"):
        proxyless(grad_reg_loss_type="mul#log", cost={"op": {"a": 1, "b": 2}})
    with pytest.raises(TrainingError, match="is None, 'add#linear' or 'mul#log', not 'log'"):
        proxyless(grad_reg_loss_type="log")
    with pytest.raises(TrainingError, match="ref_latency is a number above 0, not None"):
        proxyless(grad_reg_loss_type="add#linear", ref_latency=None, cost={"op": {"a": 1, "b": 2}})


# --- names ---------------------------------------------------------------------------------------------------


OURS = [
    "nn.pytorch", "oneshot", "oneshot.interface", "oneshot.pytorch", "oneshot.pytorch.darts", "oneshot.pytorch.utils",
    "experiment.pytorch", "fixed", "serializer",
]  # fmt: skip


@pytest.mark.parametrize("name", ["supernet.retiarii", *(f"supernet.retiarii.{module}" for module in OURS)])
def test_a_name_that_is_absent_from_a_module_imports_and_says_so_when_it_is_used(name):
    theirs = name.replace("supernet.", "nni.", 1)
    Something = __import__(name, fromlist=["Something"]).Something  # as `from module import Something`
    with pytest.raises(ChoiceError, match=rf"^{theirs}.Something is not here: it belongs to"):
        Something(3)
    with pytest.raises(ChoiceError, match=rf"{theirs}.Something.part"):
        Something.part()
    assert not hasattr(__import__(name, fromlist=["x"]), "__wrapped__")


def test_reports_are_logged_and_traced_classes_stay_as_they_are(caplog):
    from supernet.retiarii import trial

    with caplog.at_level(logging.INFO, logger="supernet"):
        trial.report_intermediate_result(0.5)
        trial.report_final_result({"default": 1})
    assert [r.getMessage() for r in caplog.records] == ["intermediate result: 0.5", "final result: {'default': 1}"]
    assert trial.trace(Net) is Net
    assert trial.trace(kw_only=False)(Net) is Net
