"""Scripts of NNI that search values and depths: as arguments of layers, in forward, and in Repeat."""

import copy
import json
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import supernet
import supernet.retiarii.nn.pytorch as nn
from supernet import SearchSpace, freeze
from supernet.errors import ArchitectureError, ChoiceError, TrainingError
from supernet.retiarii import apply_fixed_architecture, fixed_arch, model_wrapper
from supernet.retiarii.oneshot.pytorch import (
    DartsTrainer,
    EnasTrainer,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
)


class DepthwiseSeparableConv(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.depthwise = nn.Conv2d(in_ch, in_ch, kernel_size=3, groups=in_ch)
        self.pointwise = nn.Conv2d(in_ch, out_ch, kernel_size=1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


@model_wrapper
class ModelSpace(nn.Module):
    """As NNI's first tutorial has it, smaller, with a Repeat."""

    def __init__(self):
        super().__init__()
        channels = nn.ValueChoice([2, 4], label="channels")
        kernel = nn.ValueChoice([1, 3])
        self.conv1 = nn.Conv2d(1, channels, kernel, 1, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 4, 1)
        self.conv3 = nn.LayerChoice([nn.Conv2d(4, 4, 3), DepthwiseSeparableConv(4, 4)])
        self.body = nn.Repeat(lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), (1, 3))
        self.dropout1 = nn.Dropout(nn.ValueChoice([0.25, 0.5, 0.75]))
        feature = nn.ValueChoice([6, 12])
        self.fc1 = nn.Linear(4, feature)
        self.fc2 = nn.Linear(feature, 2)

    def forward(self, x):
        x = self.conv3(self.conv2(F.relu(self.norm(self.conv1(x)))))
        x = self.body(x).mean((2, 3))
        return self.fc2(F.relu(self.fc1(self.dropout1(x))))


LABELS = ["channels", *(f"_mutation_{i}" for i in range(1, 6))]


def new_model(cls=ModelSpace):
    torch.manual_seed(0)
    return cls()


def data(*shape):
    X = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    return TensorDataset(X, (X.flatten(1).sum(1) > 0).long())


def accuracy(output, target):
    return {"acc1": (output.argmax(1) == target).float().mean().item()}


def reward(output, target):
    return accuracy(output, target)["acc1"]


def trained(kind, model, dataset):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()
    if kind in (SinglePathTrainer, RandomTrainer):
        few = (
            {"num_evaluations": 4, "population": 3, "num_parents": 2}
            if kind is SinglePathTrainer
            else {"num_samples": 3}
        )
        trainer = kind(model, loss, accuracy, optimizer, 1, dataset, dataset, batch_size=8, workers=0, **few)
    elif kind is EnasTrainer:
        trainer = kind(model, loss, accuracy, reward, optimizer, 1, dataset, 8, 0, num_samples=2)
    else:
        trainer = kind(model, loss, accuracy, optimizer, num_epochs=1, dataset=dataset, batch_size=8, workers=0)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("kind", [DartsTrainer, EnasTrainer, ProxylessTrainer, SinglePathTrainer, RandomTrainer])
def test_a_script_with_values_and_a_repeat_trains_exports_and_is_fixed(kind, tmp_path):
    model = new_model()
    trainer = trained(kind, model, data(1, 6, 6))
    assert not any("alpha" in name for name, _ in model.named_parameters())
    (tmp_path / "checkpoint.json").write_text(json.dumps(trainer.export()))
    with fixed_arch(tmp_path / "checkpoint.json"):
        network = ModelSpace()
    exported = json.loads((tmp_path / "checkpoint.json").read_text())
    assert sorted(exported) == sorted(LABELS)
    assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"torch", "test_values"}
    frozen = freeze(model, exported)
    network.load_state_dict(frozen.state_dict())
    x = data(1, 6, 6).tensors[0]
    torch.testing.assert_close(network.eval()(x), frozen.eval()(x))
    assert (network.conv1.out_channels, len(network.body)) == (exported["channels"], exported["_mutation_3"])


def test_labels_are_numbered_in_order_of_construction():
    assert list(SearchSpace(new_model())) == LABELS
    assert SearchSpace(new_model()).size == 2 * 2 * 2 * 3 * 3 * 2


@model_wrapper
class WithFixedDepth(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Repeat(nn.Linear(2, 2), 2)
        self.second = nn.LayerChoice([nn.ReLU(), nn.Tanh()])


def test_a_repeat_of_a_number_takes_a_label_as_in_2_5_and_none_as_later():
    model = WithFixedDepth()
    assert type(model.first) is torch.nn.Sequential
    assert (model.second.label, model.second.label_of_2_6) == ("_mutation_2", "model_1")


@model_wrapper
class InForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale, self.rate = nn.Linear(4, 2), nn.ValueChoice([0.5, 2.0]), nn.ValueChoice([0.0, 1.0])

    def forward(self, x):
        return self.scale() * self.fc(F.dropout(x, self.rate(), self.training))


@pytest.mark.parametrize("kind", [SinglePathTrainer, EnasTrainer])
def test_values_that_forward_asks_for_are_searched_and_fixed(kind):
    model = new_model(InForward)
    exported = trained(kind, model, data(4)).export()
    assert exported["_mutation_1"] in (0.5, 2.0) and exported["_mutation_2"] in (0.0, 1.0)
    x = torch.ones(2, 4)
    torch.testing.assert_close(freeze(model, exported).eval()(x), exported["_mutation_1"] * model.fc(x))


def test_arithmetic_gives_what_python_does():
    a, b = nn.ValueChoice([1, 2], label="a"), nn.ValueChoice([3, 5], label="b")
    expressions = [
        (a + b * 2 - 1, lambda a, b: a + b * 2 - 1),
        (nn.ValueChoice.max(a * 2, b), lambda a, b: max(a * 2, b)),
        (nn.ValueChoice.min([a, b]), lambda a, b: min(a, b)),
        (nn.ValueChoice.to_int(b / a), lambda a, b: int(b / a)),
        (nn.ValueChoice.to_float(a), lambda a, b: float(a)),
        (nn.ValueChoice.condition(a > 1, b, 0), lambda a, b: b if a > 1 else 0),
        (round(b / 2), lambda a, b: round(b / 2)),
    ]
    for expression, function in expressions:
        for decisions in ({"a": x, "b": y} for x in (1, 2) for y in (3, 5)):
            found, expected = expression.evaluate(decisions), function(**decisions)
            assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("blocks", "depth", "depths"),
    [
        (lambda: nn.Linear(4, 4), (1, 3), [1, 2, 3]),
        (lambda index: nn.Linear(4, 4), nn.ValueChoice([1, 3], label="d"), [1, 3]),
        (lambda: nn.Linear(4, 4), nn.ValueChoice([1, 2], label="d") * 2, [2, 4]),
        ([nn.Linear(4, 4) for _ in range(5)], [1, 2], [1, 2]),
        (nn.Linear(4, 4), (1, 2), [1, 2]),
    ],
)
def test_repeat_takes_what_nnis_did(blocks, depth, depths):
    repeat = nn.Repeat(blocks, depth)
    assert [len(repeat.resolve(decision)) for decision in repeat.domain()] == depths
    assert len(repeat.blocks) == max(depths)


def test_a_label_beside_a_value_is_ignored_with_a_warning_as_there():
    with pytest.warns(UserWarning, match="label= of a Repeat is ignored"):
        assert nn.Repeat(nn.Tanh(), nn.ValueChoice([1, 2], label="d"), label="e").label == "d"


def test_an_undecided_model_runs_the_first_values_and_all_blocks_with_a_warning():
    model = new_model().eval()
    x = data(1, 6, 6).tensors[0]
    expected = freeze(
        model, {label: 3 if label == "_mutation_3" else d.outcomes[0] for label, d in SearchSpace(model).items()}
    )
    with pytest.warns(UserWarning, match="runs undecided") as found:
        torch.testing.assert_close(model(x), expected(x))
    said = {str(warning.message) for warning in found}
    assert any("Repeat '_mutation_3' runs undecided, so it gives what all its blocks give" in line for line in said)


def test_a_model_that_is_built_is_fixed_in_place():
    model = new_model()
    exported = SearchSpace(model).sample(torch.Generator().manual_seed(3))
    expected = freeze(model, exported).eval()
    apply_fixed_architecture(model, exported)
    x = data(1, 6, 6).tensors[0]
    assert torch.equal(model.eval()(x), expected(x))
    assert {type(module).__module__.split(".")[0] for module in model.modules()} == {"torch", "test_values"}
    with pytest.raises(ArchitectureError, match="choice 'channels' has no decision"):
        apply_fixed_architecture(
            new_model(), {label: value for label, value in exported.items() if label != "channels"}
        )


def test_architectures_with_the_labels_of_later_versions_are_read():
    later = {"channels": 4, **{f"model_{i}": d for i, d in enumerate([3, "1", 2, 0.5, 12], start=1)}}
    with fixed_arch(later):
        network = ModelSpace()
    assert (network.conv1.kernel_size, len(network.body), network.fc1.out_features) == ((3, 3), 2, 12)
    model = new_model()
    apply_fixed_architecture(model, later)
    assert str(model) == str(network)


@model_wrapper
class OfCells(nn.Module):
    def __init__(self):
        super().__init__()
        ops = [lambda c: nn.Conv2d(c, c, 3, padding=1), lambda c: nn.MaxPool2d(3, 1, 1)]
        self.stem = nn.LayerChoice([nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)])
        self.cell = nn.NasBench101Cell(ops, 4, 6, lambda c_in, c_out: nn.Conv2d(c_in, c_out, 1), 5, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.cell(self.stem(x)).mean((2, 3)))


def test_a_cell_of_nas_bench_101_is_searched_and_fixed_by_files_of_all_versions():
    model = new_model(OfCells)
    exported = trained(RandomTrainer, model, data(1, 4, 4)).export()
    assert exported["_mutation_2/num_nodes"] in (2, 3, 4, 5)
    frozen, x = freeze(model, exported), data(1, 4, 4).tensors[0]
    later = {label.replace("_mutation_", "model_"): decision for label, decision in exported.items()}
    for architecture in (exported, later):
        with fixed_arch(architecture):
            network = OfCells()
        assert {type(module).__module__.split(".")[0] for module in network.modules()} <= {"torch", "test_values"}
        network.load_state_dict(frozen.state_dict())
        assert torch.equal(network(x), frozen(x))
        built = new_model(OfCells)
        built.load_state_dict(supernet.restore(model).state_dict())
        apply_fixed_architecture(built, architecture)
        assert torch.equal(built(x), frozen(x))


def test_layers_without_a_value_are_torchs_own():
    for made in (
        nn.Conv2d(1, 2, 3),
        nn.Linear(in_features=2, out_features=3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ):
        assert type(made) is getattr(torch.nn, type(made).__name__)
    assert isinstance(torch.nn.Conv2d(1, 2, 3), nn.Conv2d) and issubclass(torch.nn.Conv2d, nn.Conv2d)
    assert not isinstance(torch.nn.Linear(1, 1), nn.Conv2d) and nn.Conv2d != nn.Linear
    assert type(nn.Conv2d(1, 2, 3)) == nn.Conv2d and {nn.Conv2d: 1}[torch.nn.Conv2d] == 1  # noqa: E721
    elastic = nn.Conv2d(1, nn.ValueChoice([1, 2], label="c"), 3)
    assert isinstance(elastic, nn.Conv2d) and isinstance(elastic, supernet.nn.Conv2d)
    assert pickle.loads(pickle.dumps(nn.Conv2d)) is nn.Conv2d


class Scaled(nn.Linear):
    def __init__(self, features, factor):
        super().__init__(features, features)
        self.factor = factor

    def forward(self, x):
        return super().forward(x) * self.factor


def test_layers_are_bases_of_a_users_own():
    module = copy.deepcopy(Scaled(3, 2.0))
    assert (
        isinstance(module, Scaled) and isinstance(module, nn.Linear) and not isinstance(torch.nn.Linear(3, 3), Scaled)
    )
    assert module(torch.ones(1, 3)).shape == (1, 3)


def test_layers_without_weights_follow_any_argument():
    kernel = nn.ValueChoice([3, 5], label="k")
    model = nn.Sequential(
        nn.MaxPool2d((kernel, 3), stride=1, padding=(kernel // 2, 1)),
        nn.LeakyReLU(nn.ValueChoice([0.1, 0.2], label="s")),
    )
    x = torch.randn(2, 3, 6, 6)
    found = supernet.Supernet(model)(x, {"k": 5, "s": 0.2})
    expected = torch.nn.Sequential(torch.nn.MaxPool2d((5, 3), 1, (2, 1)), torch.nn.LeakyReLU(0.2))
    assert torch.equal(found, expected(x)) and str(freeze(model, {"k": 5, "s": 0.2})) == str(expected)
    weights = {"k": torch.tensor([0.25, 0.75]), "s": 0.1}
    pools = [torch.nn.MaxPool2d((k, 3), 1, (k // 2, 1))(x) for k in (3, 5)]
    mixed = F.leaky_relu(0.25 * pools[0] + 0.75 * pools[1], 0.1)
    torch.testing.assert_close(supernet.Supernet(supernet.restore(model))(x, weights), mixed)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nn.ValueChoice([(1, 3), (3, 1)]), ChoiceError, r"not \(1, 3\); .*ValueChoice.lookup\(table, choice\)"),
        (lambda: nn.ValueChoice([{"width": 1}]), ChoiceError, "ValueChoice.lookup"),
        (lambda: nn.ValueChoice([nn.ReLU(), nn.Tanh()]), ChoiceError, "use a LayerChoice"),
        (lambda: nn.ValueChoice([nn.ReLU, torch.nn.Tanh]), ChoiceError, "use a LayerChoice"),
        (lambda: nn.PReLU(nn.ValueChoice([1, 4])), ChoiceError, "PReLU has weights, and takes no ValueChoice"),
        (lambda: nn.LSTM(4, hidden_size=nn.ValueChoice([4, 8])), ChoiceError, "LSTM has weights, .*LayerChoice"),
    ],
)
def test_what_cannot_be_is_refused_with_a_mend(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_mixture_of_windows_that_give_other_shapes_is_refused_by_name():
    model = nn.Sequential(nn.MaxPool1d(nn.ValueChoice([2, 3], label="k"), stride=1))
    with pytest.raises(ChoiceError, match=r"MaxPool1d gives \(1, 1, 4\) and \(1, 1, 5\) for values of 'k'"):
        supernet.Supernet(model)(torch.ones(1, 1, 6), {"k": torch.tensor([0.5, 0.5])})


class OwnEpoch(SinglePathTrainer):
    def _train_one_epoch(self, epoch):
        pass


def test_a_subclass_that_runs_in_retiariis_loop_says_which_choice_that_does_not_know():
    model, dataset = new_model(), data(1, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(TrainingError, match=r"knows LayerChoice and InputChoice only, not ValueChoice 'channels'"):
        OwnEpoch(model, torch.nn.CrossEntropyLoss(), accuracy, optimizer, 1, dataset, dataset)


def test_no_warning_is_given_while_values_are_searched():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(RandomTrainer, new_model(), data(1, 6, 6))
