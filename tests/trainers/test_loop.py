"""What our trainers share: data, devices, epochs, metrics, files, and errors that leave the model as it was."""

import copy
import gc
import logging
import random

import pytest
import torch
import torchmetrics
from safetensors.torch import load_model
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from supernet import (
    DartsTrainer,
    InputChoice,
    LayerChoice,
    SearchSpace,
    SupernetTrainer,
    accuracy,
    freeze,
    load_architecture,
    replace_layer_choice,
    restore,
)
from supernet.data.loaders import loaders_of_two_parts
from supernet.data.split import DataSplit
from supernet.errors import AlreadyReplacedError, ChoiceError, DataError, NonFiniteError, TrainingError
from supernet.execution import InputSlot, LayerSlot
from supernet.training.metrics import Meter
from supernet.training.run_directory import read_metrics

LOSS = nn.functional.cross_entropy


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.stem = LayerChoice({"conv1": nn.Conv2d(1, channels, 1), "conv3": nn.Conv2d(1, channels, 3, padding=1)})
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.Dropout(0.1))
        self.skip = InputChoice(2, label="skip")
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.head(self.skip([x, x.relu()]).mean((2, 3)))


def images(count=48):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (count,), generator=generator)
    X = torch.randn(count, 1, 5, 5, generator=generator) + y[:, None, None, None]
    return TensorDataset(X, y)


def net_trainer(model=None, dataset=None, num_epochs=2, loss=LOSS, metrics=accuracy, lr=0.1, **options):
    torch.manual_seed(0)
    model = Net() if model is None else model
    optimizer = SGD(model.parameters(), lr, momentum=0.9)
    options = {"batch_size": 8, **options}
    return DartsTrainer(
        model, loss, metrics, optimizer, num_epochs, images() if dataset is None else dataset, **options
    )


def as_it_was(model, modules, state):
    return dict(model.named_modules()) == modules and all(
        torch.equal(v, state[k]) and v.is_contiguous() for k, v in model.state_dict().items()
    )


# --- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unrolled", [False, True])
def test_same_seed_same_result_bit_for_bit(unrolled):
    results = []
    for noise in (1, 2):  # whatever was drawn before
        torch.manual_seed(noise)
        random.seed(noise)
        trainer = net_trainer(unrolled=unrolled)
        torch.manual_seed(noise)
        trainer.fit()
        records = [{k: v for k, v in record.items() if k != "cost"} for record in trainer.history]
        results.append((trainer.model.state_dict(), trainer.alphas, records))
    (state, alphas, history), (state_2, alphas_2, history_2) = results
    assert all(torch.equal(v, state_2[k]) for k, v in state.items())
    assert all(torch.equal(v, alphas_2[k]) for k, v in alphas.items())
    assert history == history_2
    assert not torch.equal(net_trainer(seed=1).alphas["skip"], net_trainer(seed=0).alphas["skip"])


def test_random_numbers_outside_a_search_go_on_as_if_there_had_been_none():
    trainer = net_trainer()
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    trainer.fit()
    assert (torch.rand(1), random.random()) == expected


def test_the_garbage_collector_leaves_old_objects_alone_during_a_search_only():
    frozen = []
    trainer = net_trainer(num_epochs=1, stop_when=[lambda record: frozen.append(gc.get_freeze_count())])
    trainer.fit()
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0


def test_taking_a_model_over_leaves_its_weights_and_statistics_as_they_were():
    model = Net().train()
    state = copy.deepcopy(model.state_dict())
    net_trainer(model)
    restored = restore(model).state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in state.items())
    assert model.training


def test_restored_model_has_the_trained_weights_and_can_be_taken_again():
    trainer = net_trainer()
    trainer.fit()
    architecture = trainer.export()
    frozen = freeze(trainer.model, architecture).state_dict()
    model = restore(trainer.model)
    assert isinstance(model.stem, LayerChoice)
    assert isinstance(model.skip, InputChoice)
    assert all(torch.equal(value, frozen[name]) for name, value in freeze(model, architecture).state_dict().items())
    net_trainer(model).fit()


def test_frozen_network_of_a_search_holds_torch_modules_only():
    trainer = net_trainer()
    trainer.fit()
    network = freeze(trainer.model, trainer.export())
    network.eval()(torch.zeros(2, 1, 5, 5))
    assert not [m for m in network.modules() if type(m).__module__.startswith(("supernet", "lightning"))]
    assert not [k for m in network.modules() for k in vars(m) if "supernet" in k or "fabric" in k]


def test_taken_over_model_can_be_deep_copied_after_a_search():
    trainer = net_trainer(num_epochs=1)
    trainer.fit()
    copied = copy.deepcopy(trainer.model)
    network, expected = freeze(copied, trainer.export()).eval(), freeze(trainer.model, trainer.export()).eval()
    X = images()[:][0]
    assert torch.equal(network(X), expected(X))


def test_nested_choices_are_searched():
    model = nn.Sequential(
        LayerChoice(
            {"plain": nn.Linear(3, 3), "deep": nn.Sequential(nn.Linear(3, 3), LayerChoice([nn.ReLU(), nn.Tanh()]))}
        ),
        nn.Linear(3, 3),
    )
    X = torch.randn(32, 3)
    trainer = net_trainer(model, TensorDataset(X, X.argmax(1)))
    trainer.fit()
    assert list(trainer.alphas) == ["0", "0.deep.1"]
    trainer.space.validate(trainer.export())


# --- data --------------------------------------------------------------------------------------------------


class Recorded(Dataset):
    """Gives (index, index), and so shows which samples went where."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor(index)


def indices_of(loader, round=0):
    return [int(i) for X, _ in DataSplit(loader, lambda batch: batch).batches(round) for i in X]


def test_the_two_halves_share_no_sample_and_miss_none():
    first, second = loaders_of_two_parts(Recorded(20), None, batch_size=5, workers=0, seed=0)
    assert sorted(indices_of(first) + indices_of(second)) == list(range(20))
    assert set(indices_of(first)).isdisjoint(indices_of(second))
    assert sorted(indices_of(first)) != list(range(10))  # drawn, not cut in the middle


def test_a_loader_is_halved_through_its_dataset_and_keeps_batch_size_and_collation():
    def collate(samples):
        return {"first": torch.stack([x for x, _ in samples])}

    loader = DataLoader(Recorded(12), batch_size=3, collate_fn=collate)
    halves = loaders_of_two_parts(loader, None, batch_size=64, workers=0, seed=0)
    batches = [batch["first"] for half in halves for batch in half]
    assert sorted(torch.cat(batches).tolist()) == list(range(12))
    assert {len(batch) for batch in batches} == {3}


def test_a_loader_over_a_map_style_dataset_is_made_anew_and_shuffles_if_it_did():
    for shuffle in (False, True):
        given = DataLoader(Recorded(10), batch_size=4, shuffle=shuffle, drop_last=False)
        made, _ = loaders_of_two_parts(given, Recorded(4), batch_size=64, workers=0, seed=0)
        assert (indices_of(made) == list(range(10))) is not shuffle
        assert sorted(indices_of(made)) == list(range(10))
        assert [len(X) for X, _ in DataSplit(made, lambda batch: batch).batches(0)] == [4, 4, 2]
        assert indices_of(made, 1) == indices_of(made, 1)


def test_a_part_can_be_entered_at_any_batch():
    loader, _ = loaders_of_two_parts(Recorded(40), None, batch_size=5, workers=0, seed=0)
    part = DataSplit(loader, lambda batch: batch)
    whole = [X.tolist() for X, _ in part.batches(3)]
    assert [X.tolist() for X, _ in part.batches(3, 2)] == whole[2:]
    part.enter(3, 0)
    places, unrolled = [], []
    for _ in range(10):
        places.append((part.round, part.position))
        unrolled.append(next(part.cycle())[0].tolist())
    for start in (1, 4, 6, 9):  # in the first round, at its end, and in later ones
        part.enter(*places[start])
        assert [next(part.cycle())[0].tolist() for _ in range(10 - start)] == unrolled[start:]


def test_each_epoch_has_an_order_of_its_own_that_the_seed_decides():
    def orders(seed):
        loader, _ = loaders_of_two_parts(Recorded(40), None, batch_size=5, workers=0, seed=seed)
        return [indices_of(loader, epoch) for epoch in range(2)]

    first, second = orders(0)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(set(first))
    assert orders(0) == [first, second]


class OfDicts(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"x": torch.full((3,), float(index % 2)), "extra": (torch.ones(3), "name"), "label": index % 2}


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.full((3,), float(i % 2)), i % 2) for i in range(16)])


class Once(Stream):
    """A stream that can be read a single time."""

    def __init__(self):
        self.iterators = [super().__iter__()]

    def __iter__(self):
        return self.iterators.pop() if self.iterators else iter([])


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Linear(3, 2), nn.Linear(3, 2, bias=False)], label="op")

    def forward(self, batch):
        return self.op(batch["x"] + batch["extra"][0])


class TakesTuple(TakesDict):
    def forward(self, inputs):
        return self.op(inputs[0] * inputs[1])


def test_a_batch_that_is_a_dict_goes_whole_to_model_loss_and_metrics():
    trainer = net_trainer(
        TakesDict(),
        OfDicts(),
        loss=lambda output, batch: LOSS(output, batch["label"]),
        metrics=lambda output, batch: {"accuracy": accuracy(output, batch["label"])},
    )
    trainer.fit()
    assert 0 <= trainer.history[-1]["valid_accuracy"] <= 1


def test_a_batch_of_several_parts_gives_the_last_to_the_loss_and_the_others_to_the_model():
    dataset = TensorDataset(torch.randn(16, 3), torch.randn(16, 3), torch.zeros(16, dtype=torch.long))
    net_trainer(TakesTuple(), dataset).fit()


def test_streams_stand_where_datasets_may_if_both_parts_are_given():
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Linear(3, 2, bias=False)]))
    trainer = net_trainer(model, Stream(), valid_dataset=Stream())
    trainer.fit()
    assert len(trainer.history) == 2


def test_a_shorter_validation_part_is_gone_through_again():
    trainer = net_trainer(dataset=images(40), valid_dataset=images(8), num_epochs=1)
    steps = []
    trainer.train_model_weight = lambda X, y: (
        steps.append(len(X)) or trainer.meters["train"].update(torch.ones(()), X, y)
    )
    trainer.meters["train"]._function = None
    trainer.fit()
    assert steps == [8] * 5


def test_loader_workers_change_no_result():
    states = []
    for workers in (0, 2):
        trainer = net_trainer(num_epochs=1, workers=workers)
        trainer.fit()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_accumulated_gradients_are_averaged_into_one_step_and_the_last_group_may_be_smaller():
    """Five batches, two a step: three steps of each optimizer; the first one's gradient is that of both batches."""
    trainer = net_trainer(dataset=images(80), num_epochs=1, accumulate=2, grad_clip=None, precision="32-true")
    taken = []
    for name in ("optimizer", "architecture_optimizer"):
        optimizer = getattr(trainer, name)
        step, parameters = optimizer.step, optimizer.param_groups[0]["params"]

        def counted(name=name, step=step, parameters=parameters):
            taken.append((name, trainer.step, [p.grad.clone() for p in parameters if p.grad is not None]))
            step()

        optimizer.step = counted
    seen = []
    inner = trainer.train_architecture
    trainer.train_architecture = lambda X, y: (seen.append((X, y)), inner(X, y))
    alphas = {label: alpha.detach().clone().requires_grad_() for label, alpha in trainer.alphas.items()}
    weights = copy.deepcopy(trainer.model.state_dict())
    torch.manual_seed(0)
    trainer.model.norm[1].p = 0.0
    trainer.fit()
    assert [(name, step) for name, step, _ in taken] == [
        (name, step) for step in (1, 3, 4) for name in ("architecture_optimizer", "optimizer")
    ]
    trainer.model.load_state_dict(weights)
    plan = {label: alpha.softmax(-1) for label, alpha in alphas.items()}
    (LOSS(trainer.forward(*seen[0][:1], plan), seen[0][1]) / 2).backward(retain_graph=True)
    (LOSS(trainer.forward(*seen[1][:1], plan), seen[1][1]) / 2).backward()
    for gradient, alpha in zip(taken[0][2], alphas.values(), strict=True):
        torch.testing.assert_close(gradient, alpha.grad)


# --- metrics, scheduler, log -------------------------------------------------------------------------------


def test_epoch_metrics_are_means_over_samples_of_any_kind_of_metrics():
    kinds = {
        "function": accuracy,
        "dict": lambda output, target: {"right": accuracy(output, target), "one": 1.0},
        "metric": torchmetrics.classification.MulticlassAccuracy(3, average="micro"),
        "collection": torchmetrics.MetricCollection(
            [torchmetrics.classification.MulticlassAccuracy(3, average="micro")]
        ),
        "none": None,
    }
    seen = {}
    for name, metrics in kinds.items():
        trainer = net_trainer(num_epochs=1, metrics=metrics)
        trainer.fit()
        seen[name] = {k: v for k, v in trainer.history[0].items() if k.startswith("train_")}
    right = seen["function"]["train_accuracy"]
    assert seen["dict"] == {"train_loss": seen["none"]["train_loss"], "train_right": right, "train_one": 1.0}
    assert seen["metric"]["train_MulticlassAccuracy"] == pytest.approx(right, abs=1e-6)
    assert seen["collection"]["train_MulticlassAccuracy"] == pytest.approx(right, abs=1e-6)


def test_the_scheduler_is_stepped_once_an_epoch():
    model = Net()
    optimizer = SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    trainer = DartsTrainer(model, LOSS, None, optimizer, 3, images(), batch_size=8, scheduler=scheduler, grad_clip=0.01)
    trainer.fit()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_log_lines_come_each_epoch_and_every_log_frequency_steps(caplog):
    with caplog.at_level(logging.INFO, logger="supernet"):
        net_trainer(log_frequency=2).fit()
    text = caplog.text
    assert "Net runs in channels_last: a trial gave the same output" in text
    assert text.count("Step [2/3]") == 2
    assert "epoch 2/2  train_loss" in text


def test_nothing_is_printed_where_there_is_no_terminal(capfd):
    net_trainer(num_epochs=1).fit()
    assert capfd.readouterr() == ("", "")


def test_metrics_that_are_no_numbers_are_refused_and_named():
    with pytest.raises(TrainingError, match=r"numbers, but 'of' is \{'a': 1\}"):
        net_trainer(metrics=lambda output, target: {"of": {"a": 1}}).fit()


# --- memory format -----------------------------------------------------------------------------------------


class Viewing(Net):
    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x.view(len(x), -1)  # fails where x is laid out as NHWC
        return self.head(self.skip([x, x.relu()]).unflatten(1, (4, -1)).mean(2))


def test_a_model_that_bears_channels_last_runs_in_it():
    seen = []
    model = Net()
    model.norm.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last)))
    trainer = net_trainer(model)
    seen.clear()
    trainer.fit()
    assert all(seen)
    assert seen


def test_a_model_that_does_not_bear_channels_last_runs_as_it_was(caplog):
    with caplog.at_level(logging.INFO, logger="supernet"):
        trainer = net_trainer(Viewing())
    assert "usual memory format: in channels_last it raises: view size is not compatible" in caplog.text
    trainer.fit()


class Strided(Net):
    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x.as_strided(x.shape, x.flatten(1).unflatten(1, x.shape[1:]).contiguous().stride())  # reads memory as NCHW
        return self.head(self.skip([x, x.relu()]).cumsum(1).mean((2, 3)))


def test_a_model_whose_output_changes_in_channels_last_runs_as_it_was(caplog):
    with caplog.at_level(logging.INFO, logger="supernet"):
        net_trainer(Strided())
    assert "its output differs in channels_last" in caplog.text


# --- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unrolled", [False, True])
def test_bf16_mixed_runs_on_a_cpu_and_keeps_float32_weights(unrolled):
    trainer = net_trainer(precision="bf16-mixed", unrolled=unrolled)
    trainer.fit()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.history[-1]["train_loss"] < 2


# --- files -------------------------------------------------------------------------------------------------


def test_run_directory_holds_the_architecture_metrics_weights_and_plots(tmp_path, pictures):
    trainer = net_trainer(run_dir=tmp_path / "run")
    trainer.fit()
    names = {"run.json", "metrics.jsonl", "checkpoints", "architecture.json", "network.safetensors", ".lock"}
    plots = {f"{plot}.{kind}" for plot in ("architecture", "probabilities") for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names | plots
    assert read_metrics(tmp_path / "run") == trainer.history
    architecture = load_architecture(tmp_path / "run" / "architecture.json", SearchSpace(Net()))
    assert architecture == trainer.export()
    network, expected = freeze(Net(), architecture), freeze(trainer.model, architecture)
    load_model(network, tmp_path / "run" / "network.safetensors")
    weights = dict(expected.named_parameters())  # its running statistics are computed anew
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())


def test_a_run_directory_that_holds_a_run_is_refused_and_kept(tmp_path):
    net_trainer(num_epochs=1, run_dir=tmp_path).fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"holds a run already; go on with it by resume='auto', choose another"):
        net_trainer(run_dir=tmp_path).fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --- errors that leave the model as it was -----------------------------------------------------------------


class Lone(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(1, 5, 5)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"dataset": images(1)}, DataError, "dataset of 1 samples cannot be split .* at least 2"),
        ({"dataset": Stream()}, DataError, "Stream has no length.*give valid_dataset"),
        ({"dataset": Lone()}, DataError, r"a batch is \(X, y\) or a dict, but the loader gives Tensor"),
        ({"dataset": 3}, DataError, "int has no length"),
        ({"dataset": images(), "valid_dataset": images(0)}, DataError, "TensorDataset is empty"),
        ({"num_epochs": 0}, TrainingError, "num_epochs is a whole number from 1 on, not 0"),
        ({"batch_size": -1}, TrainingError, "batch_size is a whole number from 1 on, not -1"),
        ({"device": "tpu9000"}, TrainingError, "device 'tpu9000' .* is not to be had"),
        ({"precision": "12-bit"}, TrainingError, "precision '12-bit' .* is not to be had"),
        ({"run_dir": "/dev/null/run"}, TrainingError, "run_dir /dev/null/run cannot be made"),
        ({"metrics": 3}, TrainingError, "metrics is a function"),
        ({"loss": lambda output, y: output}, TrainingError, r"one number, but it returned a tensor of shape \(8, 3\)"),
        ({"loss": lambda output, y: 1.0}, TrainingError, "one number, but it returned 1.0"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_and_leaves_the_model_as_it_was(options, kind, match):
    torch.manual_seed(0)
    model = Net()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=match):
        net_trainer(model, **options)
    assert as_it_was(model, modules, state)


def test_a_model_without_choices_is_refused():
    with pytest.raises(TrainingError, match=r"Linear has no choices to search; mark some .* supernet\.train"):
        net_trainer(nn.Linear(3, 3))


def test_an_optimizer_that_lacks_parameters_is_refused_and_they_are_named():
    model = Net()
    with pytest.raises(TrainingError, match=r"or the loss: stem\.conv1\.weight.* and 5 more"):
        DartsTrainer(model, LOSS, None, SGD(nn.Linear(1, 1).parameters(), 0.1), 1, images())
    for p in model.stem.parameters():
        p.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    DartsTrainer(model, LOSS, None, SGD(rest, 0.1), 1, images()).fit()


def test_a_model_that_has_been_taken_over_is_refused_until_it_is_restored():
    model = Net()
    net_trainer(model)
    with pytest.raises(AlreadyReplacedError, match=r"restore\(model\)"):
        net_trainer(model)
    restore(model)
    replace_layer_choice(model, lambda choice: choice[0])
    with pytest.raises(AlreadyReplacedError, match=r"restore\(model\)"):
        net_trainer(model)


class Mismatched(Net):
    def __init__(self):
        super().__init__()
        self.stem["conv3"] = nn.Conv2d(1, 4, 3)


def test_outputs_that_differ_in_shape_are_refused_early_and_choice_and_shapes_named():
    model = Mismatched()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ChoiceError, match=r"'stem' differ.*'conv1' gives \(8, 4, 5, 5\), 'conv3' gives \(8, 4, 3, 3\)"):
        net_trainer(model)
    assert as_it_was(model, modules, state)


def test_a_nan_loss_stops_the_search_naming_epoch_and_step_with_the_weights_whole():
    seen = []

    def loss(output, target):
        seen.append(output)
        return LOSS(output, target) * (float("nan") if len(seen) > 9 else 1)

    trainer = net_trainer(loss=loss, num_epochs=3)
    seen.clear()  # of the trials
    with pytest.raises(NonFiniteError, match=r"the loss on the .* part is not finite .* in epoch 2, step 2"):
        trainer.fit()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_nan_alphas_stop_the_search():
    trainer = net_trainer()
    step = trainer.architecture_optimizer.step

    def broken(*args, **kwargs):
        step(*args, **kwargs)
        with torch.no_grad():
            trainer.alphas["skip"].fill_(float("inf"))

    trainer.architecture_optimizer.step = broken
    with pytest.raises(NonFiniteError, match=r"an architecture parameter is not finite .* epoch 1, step 1"):
        trainer.fit()


def test_where_asking_would_wait_for_the_device_the_first_bad_step_is_noted_and_named_later():
    trainer = net_trainer(num_epochs=1)
    trainer.fit()
    trainer.device, trainer.epoch = torch.device("cuda"), 0
    for step, value in enumerate([1.0, 2.0, float("nan"), 3.0, float("inf")]):
        trainer.step = step
        trainer.check_finite(torch.tensor([0.0, value]), "the loss")
    with pytest.raises(NonFiniteError, match="in epoch 1, step 3"):
        trainer._check_noted()


def test_an_epoch_without_a_step_is_an_error():
    loader = DataLoader(images(4), batch_size=8, drop_last=True)
    with pytest.raises(DataError, match="a TensorDataset has fewer samples than one batch; lower batch_size"):
        net_trainer(dataset=loader, valid_dataset=images())
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2)]))
    trainer = net_trainer(model, Once(), valid_dataset=Stream())
    with pytest.raises(TrainingError, match="an epoch had no step"):
        trainer.fit()


# --- the short way -----------------------------------------------------------------------------------------


class GumbelTrainer(SupernetTrainer):
    """Candidates mixed by a Gumbel-softmax sample (as SNAS, arXiv 1812.09926): a new algorithm in 25 lines."""

    def __init__(self, *args, temperature=1.0, **options):
        super().__init__(*args, **options)
        self.temperature = temperature
        self.alphas = {label: nn.Parameter(torch.zeros(len(list(domain)))) for label, domain in self.space.items()}
        self.architecture_optimizer = torch.optim.Adam(self.alphas.values(), 0.05)
        self.build_supernet(LayerSlot, InputSlot, self.plan())

    def stateful(self):
        return {"alphas": self.alphas, "architecture_optimizer": self.architecture_optimizer}

    def plan(self):
        return {k: nn.functional.gumbel_softmax(alpha, self.temperature) for k, alpha in self.alphas.items()}

    def train_step(self, trn_X, trn_y, val_X, val_y):
        with self.frozen_weights():
            output = self.forward(val_X, self.plan())
            self.optimizer_step(self.compute_loss("valid", output, val_y), self.architecture_optimizer)
        plan = {label: weights.detach() for label, weights in self.plan().items()}
        self.optimizer_step(
            self.compute_loss("train", self.forward(trn_X, plan), trn_y), self.optimizer, clip=self.grad_clip
        )

    def export(self):
        return {label: int(alpha.argmax()) for label, alpha in self.alphas.items()}


def test_a_new_differentiable_algorithm_is_its_plan_its_steps_and_its_read_off(tmp_path, pictures):
    model = Net()
    trainer = GumbelTrainer(
        model, LOSS, accuracy, SGD(model.parameters(), 0.1), 2, images(), batch_size=8, run_dir=tmp_path
    )
    trainer.fit()
    freeze(model, trainer.export())
    assert (tmp_path / "architecture.png").exists()


def test_the_state_of_torchmetrics_comes_back_to_the_device_of_the_search():
    metric = torchmetrics.classification.MulticlassAccuracy(3)
    written, read = (Meter(metric, torch.device(device)) for device in ("cpu", "meta"))
    written.update(torch.tensor(1.0), torch.eye(3), torch.arange(3))
    read.load_state_dict(written.state_dict())
    states = [value for value in vars(read._stateful).values() if isinstance(value, torch.Tensor)]
    assert states and all(state.is_meta for state in states)
