"""Distillation: what a taught step descends, by hand; every trainer; every kind of teacher; and what is refused."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softmax
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import supernet.nn
from supernet import (
    DartsTrainer,
    Distillation,
    EnasTrainer,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    ValueChoice,
    WithLogits,
    accuracy,
    freeze,
    kl_divergence,
    store_logits,
    train,
)
from supernet.errors import ArchitectureError, DataError, FileFormatError, TrainingError
from supernet.testing import check_trainer
from supernet.trainers import Taught


class Net(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        width = ValueChoice([4, 8, 16], label="width")
        self.stem = supernet.nn.Linear(6, width)
        self.norm = supernet.nn.BatchNorm1d(width) if norm else nn.Identity()
        self.head = supernet.nn.Linear(width, 3)
        self.op = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="op")

    def forward(self, x):
        return self.head(self.op(self.norm(self.stem(x))))


def teacher_network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))


def data(count=32):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)


def trainer_of(trainer_class=SinglePathTrainer, model=None, norm=True, **options):
    torch.manual_seed(0)
    model = Net(norm) if model is None else model
    its_own = {
        EnasTrainer: {"reward_function": accuracy, "num_samples": 2},
        RandomTrainer: {"num_samples": 2, "num_finalists": 1},
        SinglePathTrainer: {"num_evaluations": 4, "population": 2, "num_parents": 1},
    }.get(trainer_class, {})
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    task = {"loss": cross_entropy, "metrics": accuracy, "optimizer": optimizer, "num_epochs": 2, "dataset": data()}
    return trainer_class(model, **{**task, "batch_size": 8, "device": "cpu", "progress": False, **its_own, **options})


# --- the loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_the_closed_form_times_the_squared_temperature(temperature):
    """T^2 sum_k p_k log(p_k / q_k), the mean over samples, in float64."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    q, p = ((z / temperature).exp() for z in (student, teacher))
    q, p = q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=temperature), expected)
    over_rows = kl_divergence(student.T, teacher.T, temperature=temperature, dim=0)
    torch.testing.assert_close(over_rows, expected)


def test_the_gradient_of_the_divergence_is_temperature_times_the_difference_of_probabilities():
    """d/dz_k of T^2 KL(p || softmax(z / T)) is T (q_k - p_k), for each sample: 1/N of it in the mean."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4).double()
    kl_divergence(student, teacher, temperature=3.0).backward()
    difference = softmax(student.detach() / 3, 1) - softmax(teacher / 3, 1)
    torch.testing.assert_close(student.grad, 3 * difference / 5)


def test_classes_that_a_teacher_rules_out_have_no_share_in_the_divergence():
    teacher = torch.tensor([[0.0, -math.inf]])
    assert kl_divergence(torch.tensor([[1.0, 1.0]]), teacher).item() == pytest.approx(math.log(2))


def test_the_divergence_of_16_bits_is_that_of_32():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    result = kl_divergence(student, teacher)
    assert result.dtype == torch.float32
    assert result == kl_divergence(student.float(), teacher.float())


# --- a step --------------------------------------------------------------------------------------------------


def first_batches(trainer):
    return next(trainer.train_part.batches(0))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_taught_step_is_one_down_the_weighted_sum_of_both_losses(weight):
    teacher = teacher_network()
    trainer = trainer_of(distillation=Distillation(teacher, temperature=2.0, weight=weight), grad_clip=None)
    path = {"width": 8, "op": "relu"}
    trainer.sample = lambda: path
    X, y = first_batches(trainer)
    assert isinstance(y, Taught)
    plain = copy.deepcopy(teacher).eval()
    network = freeze(trainer.model, path).train()
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9)
    output = network(X)
    of_teacher = kl_divergence(output, plain(X).detach(), temperature=2.0)
    ((1 - weight) * cross_entropy(output, y.target) + weight * of_teacher).backward()
    optimizer.step()
    trainer.train_model_weight(X, y)
    expected, got = network.state_dict(), freeze(trainer.model, path).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_a_teacher_in_place_is_the_largest_in_training_form_and_neither_trained_nor_moved():
    trainer = trainer_of(distillation=Distillation("largest"))
    assert trainer.teaching.architecture["width"] == 16
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.model.train()
    X, y = first_batches(trainer)
    network = freeze(trainer.model, trainer.teaching.architecture).train()
    torch.testing.assert_close(y.output, network(X).detach())
    assert not y.output.requires_grad
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.sample = lambda: {"width": 4, "op": "relu"}
    trainer.train_model_weight(X, y)
    rest = trainer.model.stem.weight.grad
    assert rest is not None and not rest[4:].any()


def test_an_architecture_of_ones_own_teaches_in_place():
    trainer = trainer_of(distillation=Distillation({"width": 8, "op": "tanh"}))
    assert trainer.teaching.architecture == {"width": 8, "op": "tanh"}


def test_architecture_steps_and_evaluations_take_the_loss_of_the_task_alone():
    trainer = trainer_of(DartsTrainer, distillation=Distillation(teacher_network(), weight=1.0))
    _, target = next(trainer.valid_part.cycle())
    assert isinstance(target, torch.Tensor)
    architecture = {"width": 4, "op": "relu"}
    assert trainer.evaluate(architecture) == trainer_of(DartsTrainer).evaluate(architecture)


def test_the_record_has_what_is_descended_and_the_loss_of_the_task():
    """With a weight of one half, KL = 2 train_loss - train_task_loss; a teacher that says nothing else gives 0."""
    teacher = teacher_network()
    trainer = trainer_of(
        distillation=Distillation(teacher, weight=0.5, loss=lambda output, of_teacher: output.sum() * 0 + 3)
    )
    trainer.fit()
    for record in trainer.history:
        assert record["train_loss"] == pytest.approx(0.5 * record["train_task_loss"] + 1.5)
        assert 0 <= record["train_accuracy"] <= 1
        assert "valid_task_loss" not in record


def test_a_second_order_step_looks_through_the_taught_step():
    """At weight 1 and a loss of zero the weights' virtual step is none, so the gradient is that of first order."""
    nothing = Distillation(teacher_network(), weight=1.0, loss=lambda output, of_teacher: output.sum() * 0)
    gradients = []
    for unrolled in (False, True):
        trainer = trainer_of(DartsTrainer, norm=False, distillation=nothing, unrolled=unrolled)
        X, y = first_batches(trainer)
        val_X, val_y = data().tensors[0][:8], data().tensors[1][:8]
        trainer.train_architecture(val_X, val_y, *((X, y) if unrolled else ()))
        gradients.append([p.grad.clone() for p in trainer.architecture_parameters])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


# --- every trainer, every teacher ------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["largest", "module"])
@pytest.mark.parametrize(
    "trainer_class", [DartsTrainer, ProxylessTrainer, EnasTrainer, SinglePathTrainer, RandomTrainer]
)
def test_every_trainer_can_be_taught(trainer_class, teacher):
    teacher = teacher_network() if teacher == "module" else teacher
    trainer = trainer_of(trainer_class, distillation=Distillation(teacher, temperature=2.0))
    trainer.fit()
    assert all("train_task_loss" in record for record in trainer.history)
    freeze(trainer.model, trainer.export())


def taught(trainer_class, teacher, **options):
    torch.manual_seed(1)
    teacher = teacher_network() if teacher == "module" else teacher
    return trainer_of(trainer_class, distillation=Distillation(teacher, temperature=2.0), **options)


@pytest.mark.parametrize(
    ("trainer_class", "teacher"),
    [
        (SinglePathTrainer, "module"),
        pytest.param(SinglePathTrainer, "largest", marks=pytest.mark.slow),
        pytest.param(DartsTrainer, "largest", marks=pytest.mark.slow),
    ],
)
def test_taught_trainers_hold_what_trainers_promise(trainer_class, teacher):
    check_trainer(partial(taught, trainer_class, teacher))


def test_a_single_network_is_taught_by_train():
    torch.manual_seed(0)
    network, teacher = nn.Linear(6, 3), teacher_network()
    optimizer = SGD(network.parameters(), 0.5)
    how = {"batch_size": 8, "device": "cpu", "progress": False}
    history = train(
        network, cross_entropy, None, optimizer, 40, data(), distillation=Distillation(teacher, weight=1.0), **how
    )
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    with pytest.raises(TrainingError, match="'largest' is an architecture of a supernet, and Linear is none"):
        train(network, cross_entropy, None, optimizer, 1, data(), distillation=Distillation("largest"), **how)


def test_several_batches_of_a_step_are_each_taught():
    """Two batches of one step have the gradient of both together, where nothing depends on the batch."""
    steps = []
    for size, accumulate in ((16, 1), (8, 2)):
        options = {"batch_size": size, "accumulate": accumulate, "grad_clip": None, "num_epochs": 1}
        trainer = trainer_of(RandomTrainer, norm=False, distillation=Distillation("largest"), **options)
        trainer.sample = lambda: {"width": 8, "op": "relu"}
        trainer.fit()
        steps.append(trainer.model.state_dict())
    for name, value in steps[0].items():
        torch.testing.assert_close(steps[1][name], value, msg=name)


def test_a_teacher_in_mixed_precision_runs_under_autocast_and_one_beside_it_in_its_own():
    seen = []
    teacher = teacher_network()
    teacher[3].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    trainer_of(distillation=Distillation(teacher), precision="bf16-mixed").fit()
    assert {*seen} == {torch.bfloat16}
    seen.clear()
    trainer_of(distillation=Distillation(teacher), precision="bf16-true").fit()
    assert {*seen} == {torch.float32}


def test_a_loss_fn_is_taught_by_its_output():
    def loss_fn(model, batch):
        X, y = batch
        output = model(X)
        return cross_entropy(output, y), output, y

    by_fn = trainer_of(loss=None, loss_fn=loss_fn, distillation=Distillation(teacher_network()))
    by_loss = trainer_of(distillation=Distillation(teacher_network()))
    by_fn.fit()
    by_loss.fit()
    for a, b in zip(by_fn.history, by_loss.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"])
        assert a["train_task_loss"] == pytest.approx(b["train_task_loss"])
        assert a["train_accuracy"] == pytest.approx(b["train_accuracy"])


def test_a_loss_of_the_distillation_that_learns_is_trained_and_saved():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.adapter = nn.Linear(3, 5)

        def forward(self, output, of_teacher):
            return (self.adapter(output) - of_teacher).square().mean()

    torch.manual_seed(0)
    beside, model = Adapted(), Net()
    before = beside.adapter.weight.detach().clone()
    optimizer = SGD([*model.parameters(), *beside.parameters()], 0.1)
    trainer = trainer_of(model=model, optimizer=optimizer, distillation=Distillation(nn.Linear(6, 5), loss=beside))
    trainer.fit()
    assert not torch.equal(beside.adapter.weight, before)
    with pytest.raises(TrainingError, match=r"the optimizer lacks parameters of the model or the loss: loss\.beside"):
        trainer_of(distillation=Distillation(nn.Linear(6, 5), loss=Adapted()))


# --- stored logits ---------------------------------------------------------------------------------------------


def test_stored_logits_teach_as_their_teacher_does(tmp_path):
    teacher, path = teacher_network(), tmp_path / "logits.safetensors"
    store_logits(teacher, data(), path, batch_size=5)
    assert teacher.training
    stored = trainer_of(SinglePathTrainer, distillation=Distillation("stored"), dataset=WithLogits(data(), path))
    alive = trainer_of(SinglePathTrainer, distillation=Distillation(teacher))
    stored.fit()
    alive.fit()
    for name, value in alive.model.state_dict().items():
        torch.testing.assert_close(stored.model.state_dict()[name], value, msg=name)
    assert stored.export() == alive.export()


def stored_search(path, **options):
    loader = DataLoader(WithLogits(data(), path), batch_size=8, shuffle=True)
    return trainer_of(DartsTrainer, dataset=loader, distillation=Distillation("stored"), **options)


@pytest.mark.slow
def test_a_trainer_taught_by_stored_logits_holds_what_trainers_promise(tmp_path):
    store_logits(teacher_network(), data(), tmp_path / "logits.safetensors")
    check_trainer(partial(stored_search, tmp_path / "logits.safetensors"))


def test_stored_logits_of_another_dataset_or_a_broken_file_are_refused(tmp_path):
    path = tmp_path / "logits.safetensors"
    store_logits(teacher_network(), data(), path)
    with pytest.raises(DataError, match="outputs for 32 samples of another dataset than this TensorDataset of 16"):
        WithLogits(data(16), path)
    other = TensorDataset(data().tensors[0] + 1, data().tensors[1])
    with pytest.raises(DataError, match="of another dataset"):
        WithLogits(other, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError):
        WithLogits(data(), path)
    with pytest.raises(DataError, match=r"a row a sample, and Sequential gives \[\(32, 6\), \(32, 6\)\]|gives"):
        store_logits(Pair(), data(), path)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_storing_logits_of_samples_that_change_warns(tmp_path, caplog):
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            X, y = super().__getitem__(index)
            return X + torch.rand(()), y

    store_logits(teacher_network(), Noisy(*data().tensors), tmp_path / "logits.safetensors")
    assert "samples of Noisy differ from one reading to the next" in caplog.text


# --- what is refused, and resumes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distillation", "error", "message"),
    [
        (lambda: nn.Linear(6, 3), TrainingError, "distillation is a supernet.Distillation or None, not Linear"),
        (
            lambda: Distillation("best"),
            TrainingError,
            "teacher is a module, 'largest', an architecture, or 'stored', not 'best'",
        ),
        (lambda: Distillation("largest", weight=1.5), TrainingError, "weight is a number from 0 to 1, not 1.5"),
        (lambda: Distillation("largest", temperature=0), TrainingError, "temperature is a number above 0"),
        (lambda: Distillation("largest", temperature=2, loss=cross_entropy), TrainingError, "give one of them"),
        (lambda: Distillation({"width": 5, "op": "relu"}), ArchitectureError, "5"),
        (
            lambda: Distillation(nn.Linear(6, 4)),
            TrainingError,
            r"does not fit: the model gives \(8, 3\), the teacher Linear \(8, 4\)",
        ),
        (lambda: Distillation(nn.Linear(5, 3)), TrainingError, "the teacher Linear does not run on a batch"),
        (lambda: Distillation(Net()), TrainingError, "the teacher Net has choices; give the network, freeze"),
        (lambda: Distillation("stored"), TrainingError, "give WithLogits"),
        (lambda: Distillation(nn.Linear(6, 4), loss=nn.MSELoss()), TrainingError, "the loss of the distillation fails"),
        (lambda: Distillation(nn.Linear(6, 3), loss=torch.sub), TrainingError, "a tensor of one number"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_teacher_that_does_not_fit_is_refused_before_anything_has_changed(distillation, error, message):
    model = Net()
    written = repr(model)
    with pytest.raises(error, match=message):
        trainer_of(model=model, distillation=distillation())
    assert repr(model) == written


def test_outputs_of_more_dimensions_need_a_loss_that_says_where_the_classes_are():
    class Dense(Net):
        def forward(self, x):
            return super().forward(x)[:, :, None]

    def loss(output, y):
        return cross_entropy(output[..., 0], y)

    task = {"loss": loss, "metrics": None}
    with pytest.raises(TrainingError, match=re.escape("a divergence is taken of outputs (N, classes)")):
        trainer_of(model=Dense(), distillation=Distillation("largest"), **task)
    trainer_of(model=Dense(), distillation=Distillation("largest", loss=partial(kl_divergence, dim=1)), **task).fit()


def test_parts_of_the_model_do_not_teach_it():
    model = Net()
    with pytest.raises(TrainingError, match="the teacher Sequential has parameters of the model"):
        trainer_of(model=model, distillation=Distillation(nn.Sequential(nn.Linear(6, 4), model.head)))


def test_stored_outputs_that_nothing_takes_are_refused(tmp_path):
    store_logits(teacher_network(), data(), tmp_path / "logits.safetensors")
    dataset = WithLogits(data(), tmp_path / "logits.safetensors")
    with pytest.raises(TrainingError, match=r"give distillation=Distillation\('stored'\)"):
        trainer_of(dataset=dataset)
    with pytest.raises(TrainingError, match="give one teacher"):
        trainer_of(dataset=dataset, distillation=Distillation("largest"))


def test_a_search_goes_on_with_the_same_teacher_only(tmp_path):
    trainer_of(distillation=Distillation(teacher_network()), run_dir=tmp_path, num_epochs=1).fit()
    other = teacher_network()
    nn.init.zeros_(other[3].bias)
    for distillation, message in (
        (Distillation(other), "teacher was 'torch.nn.modules.container.Sequential"),
        (Distillation(teacher_network(), temperature=2.0), "distillation was"),
        (None, "distillation was"),
    ):
        with pytest.raises(TrainingError, match=message):
            trainer_of(distillation=distillation, run_dir=tmp_path).fit(resume="auto")
    trainer_of(distillation=Distillation(teacher_network()), run_dir=tmp_path).fit(resume="auto")


def test_a_trainer_whose_steps_take_other_batches_is_told_that_nothing_teaches():
    class Own(SinglePathTrainer):
        def train_model_weight(self, trn_X, trn_y):
            super().train_model_weight(trn_X, trn_y.target)

    with pytest.raises(TrainingError, match="no step of epoch 1 was taught"):
        trainer_of(Own, distillation=Distillation("largest")).fit()
