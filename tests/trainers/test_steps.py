"""From losses of batches to steps: accumulation with skipped batches, losses without a gradient, schedulers by step."""

import logging
import math

import pytest
import torch
from searches import search
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from supernet import DartsTrainer, LayerChoice, ProxylessTrainer, RandomTrainer, SinglePathTrainer
from supernet.errors import NonFiniteError, TrainingError
from supernet.trainers import Checkpointing


class Sum(nn.Module):
    """One weight, of which the loss is linear: its gradient is the mean of what the batch holds."""

    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Identity()], label="op")
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.op(x) * self.weight


def numbers(values):
    x = torch.tensor(values)[:, None]
    return TensorDataset(x, torch.zeros(len(values)))


def linear(values, **options):
    """A search over these numbers in their order, one a batch; the weight is minus the sum of its gradients."""
    model = Sum()
    return DartsTrainer(
        model,
        lambda output, y: output.mean(),
        None,
        SGD(model.parameters(), 1.0),
        1,
        DataLoader(numbers(values), batch_size=1),
        valid_dataset=DataLoader(numbers([0.0] * len(values)), batch_size=1),
        grad_clip=None,
        **options,
    )


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([1.0, 2.0, 4.0, 8.0], [1.5, 6.0]),
        ([math.nan, 2.0, 4.0, 8.0], [2.0, 6.0]),  # no gradient of the step before is applied twice
        ([1.0, 2.0, math.nan, 8.0], [1.5, 8.0]),
        ([1.0, math.nan, 4.0, 8.0], [1.0, 6.0]),  # the step of the others is taken all the same
        ([math.nan, math.nan, 4.0, 8.0], [6.0]),
        ([1.0, 2.0, 4.0, math.nan], [1.5, 4.0]),
        ([1.0, 2.0, 4.0], [1.5, 4.0]),
        ([1.0, 2.0, math.nan], [1.5]),
    ],
)
def test_each_step_is_the_mean_gradient_of_its_batches_that_were_not_skipped(values, steps):
    trainer = linear(values, accumulate=2, on_nonfinite="skip")
    trainer.fit()
    assert trainer.model.weight.item() == pytest.approx(-sum(steps))
    assert trainer.history[0]["skipped_steps"] == sum(map(math.isnan, values))


def of_samples(count, bad=()):
    X = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    X[list(bad)] = math.nan
    return DataLoader(TensorDataset(X, (X[:, 0] > 0).long()), batch_size=8)


def small(kind, train, valid, loss=nn.functional.cross_entropy, **options):
    torch.manual_seed(0)
    op = LayerChoice({name: nn.Linear(3, 3) for name in "abcde"}, label="op")
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), op, nn.Linear(3, 2))
    optimizer = SGD(model.parameters(), 0.1)
    return kind(model, loss, None, optimizer, 1, train, valid_dataset=valid, on_nonfinite="skip", **options)


@pytest.mark.parametrize(("kind", "options"), [(DartsTrainer, {}), (SinglePathTrainer, {"num_evaluations": 2})])
def test_a_step_that_is_skipped_leaves_running_statistics_as_they_were(kind, options):
    trainer = small(kind, of_samples(32, bad=[9]), of_samples(32), **options)
    trainer.fit()
    assert trainer.skipped_steps == 1
    norm = trainer.model[1]
    assert torch.isfinite(norm.running_mean).all()
    assert norm.num_batches_tracked == 3


def test_an_evaluation_leaves_out_what_a_training_would_skip():
    X, y = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [1.0, 1.0], [1.0, math.inf]]), torch.tensor([0, 1, 0, 1])
    everything = DataLoader(TensorDataset(X, y), batch_size=1)
    finite = DataLoader(TensorDataset(X[[0, 2]], y[[0, 2]]), batch_size=1)

    def evaluated(train, valid):
        torch.manual_seed(0)
        op = LayerChoice([nn.Identity(), nn.Linear(2, 2)], label="op")
        model = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.BatchNorm1d(1), nn.Flatten(), nn.Linear(2, 2), op)
        optimizer = SGD(model.parameters(), 0.1)
        loss = nn.functional.cross_entropy
        trainer = DartsTrainer(model, loss, None, optimizer, 1, train, valid_dataset=valid, on_nonfinite="skip")
        return trainer.evaluate({"op": "1"})["loss"]

    assert evaluated(everything, everything) == evaluated(finite, finite)


def test_a_step_whose_gradient_is_nan_though_its_loss_is_not_is_skipped_too():
    class Rooted(nn.Module):
        def forward(self, output, y):
            root = (output.sum() * (y[0] > 1)).abs().sqrt()  # of 0, where the gradient is NaN
            return nn.functional.cross_entropy(output, y.clamp(max=1)) + 0 * root

    X, y = of_samples(32).dataset.tensors
    y[0], y[8], y[16] = 2, 2, 2  # the root is of 0 in the last batch alone
    trainer = small(DartsTrainer, DataLoader(TensorDataset(X, y), batch_size=8), of_samples(16), loss=Rooted())
    trainer.train_architecture = lambda *_: None
    trainer.fit()
    assert trainer.skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_an_epoch_of_skipped_steps_says_what_was_not_finite():
    trainer = small(DartsTrainer, of_samples(16, bad=range(16)), of_samples(16))
    with pytest.raises(NonFiniteError, match="each step of epoch 1 is NaN or infinite, so all were skipped"):
        trainer.fit()


@pytest.mark.parametrize("bad", [(), range(8, 16)])
def test_gates_keep_the_probabilities_of_the_others_where_a_step_lost_its_last_batch(bad):
    trainer = small(
        ProxylessTrainer, of_samples(16), of_samples(16, bad), accumulate=2, arc_learning_rate=0.5, device="cpu"
    )
    before = torch.softmax(trainer.alphas["op"].detach(), -1)
    trainer.fit()
    change = (torch.softmax(trainer.alphas["op"].detach(), -1) - before).abs()
    drawn = trainer.relaxation.drawn["op"]
    assert change[drawn].min() > 0.01
    assert change.sum() - change[drawn].sum() < 1e-6


class Dropped(nn.Module):
    """Stochastic depth: whole batches pass no choice, and a batch may pass no weight at all."""

    def __init__(self, kept):
        super().__init__()
        self.op = LayerChoice(
            {"linear": nn.Linear(2, 2), "tanh": nn.Sequential(nn.Linear(2, 2), nn.Tanh())}, label="op"
        )
        self.kept = kept

    def forward(self, x):
        return x + self.op(x) if not self.training or torch.rand(()) < self.kept else x


SEARCHES = [
    (DartsTrainer, {}),
    (DartsTrainer, {"unrolled": True}),
    (DartsTrainer, {"accumulate": 2}),
    (ProxylessTrainer, {}),
    (SinglePathTrainer, {"num_evaluations": 2}),
    (RandomTrainer, {"num_samples": 2}),
]


def dropping(kind, kept, **options):
    torch.manual_seed(0)
    model = Dropped(kept)
    X = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    data = TensorDataset(X, (X[:, 0] > 0).long())
    return kind(model, nn.functional.cross_entropy, None, optimizer, 2, data, batch_size=8, **options)


@pytest.mark.parametrize(("kind", "options"), SEARCHES)
def test_a_batch_whose_loss_has_no_gradient_moves_nothing_and_the_search_goes_on(kind, options):
    trainer = dropping(kind, 0.5, **options)
    trainer.fit()
    assert len(trainer.history) == 2
    trainer = dropping(kind, 1.0, **options)
    trainer.model.kept = 0.0  # from now on
    before = [p.detach().clone() for p in [*trainer.model.parameters(), *getattr(trainer, "alphas", {}).values()]]
    with pytest.raises(TrainingError, match=r"no loss of this run had a gradient for the (weights|architecture)"):
        trainer.fit()
    after = [*trainer.model.parameters(), *getattr(trainer, "alphas", {}).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- schedulers --------------------------------------------------------------------------------------------


def scheduled(make, interval="epoch", *, num_epochs=3, accumulate=1, kind=DartsTrainer, **options):
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a"), nn.Linear(2, 2))
    X = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = make(optimizer)
    data = TensorDataset(X, (X[:, 0] > 0).long())
    options = {"batch_size": 4, "accumulate": accumulate, "scheduler": scheduler, **options}
    trainer = kind(
        model, nn.functional.cross_entropy, None, optimizer, num_epochs, data, scheduler_interval=interval, **options
    )
    return trainer, scheduler, optimizer


@pytest.mark.parametrize(("kind", "options"), [(DartsTrainer, {}), (SinglePathTrainer, {"num_evaluations": 2})])
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 24), (3, 9)])  # 32 samples, 8 batches, 3 epochs
def test_a_scheduler_by_step_stands_at_its_end_when_the_search_ends(kind, options, accumulate, steps):
    trainer, scheduler, optimizer = scheduled(
        lambda o: OneCycleLR(o, 0.5, total_steps=steps + 1), "step", accumulate=accumulate, kind=kind, **options
    )
    trainer.fit()
    assert scheduler.last_epoch == steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 25 / 1e4)  # OneCycleLR's own last value


@pytest.mark.parametrize("kind", ["first order", "single path"])
def test_a_search_with_a_scheduler_by_step_goes_on_exactly(tmp_path, kind):
    def new(run_dir, **options):
        often = Checkpointing(every_steps=1)
        return search(kind, run_dir, scheduler_interval="step", checkpointing=often, **options)

    whole, part = new(tmp_path / "whole"), new(tmp_path / "part")
    whole.fit()

    class Left(Exception):
        pass

    def leave(number):
        if part.global_step == 8:
            raise Left
        return inner(number)

    inner = part._run.save
    part._run.save = leave
    with pytest.raises(Left):
        part.fit()
    again = new(tmp_path / "part")
    again.fit(resume="auto")
    assert again.scheduler.state_dict() == whole.scheduler.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "interval", "meant"),
    [
        (lambda o: OneCycleLR(o, 0.5, total_steps=24), "epoch", "step"),
        (lambda o: CosineAnnealingLR(o, 24), "epoch", "step"),
        (lambda o: LinearLR(o, total_iters=20), "epoch", "step"),
        (lambda o: CosineAnnealingLR(o, 3), "step", "epoch"),
        (lambda o: CosineAnnealingLR(o, 3), "epoch", None),
        (lambda o: CosineAnnealingLR(o, 6), "epoch", None),  # a part of a longer schedule
        (lambda o: OneCycleLR(o, 0.5, total_steps=24), "step", None),
        (lambda o: torch.optim.lr_scheduler.StepLR(o, 2), "epoch", None),
    ],
)
def test_a_scheduler_whose_length_says_the_other_interval_is_warned_about(caplog, make, interval, meant):
    with caplog.at_level(logging.WARNING, logger="supernet"):
        scheduled(make, interval)
    warned = [record.message for record in caplog.records if "did you mean" in record.message]
    assert len(warned) == (meant is not None)
    assert all(f"did you mean {meant!r}" in message for message in warned)


def test_an_interval_that_has_no_meaning_is_refused():
    with pytest.raises(TrainingError, match="scheduler_interval is 'epoch' or 'step', not 'batch'"):
        scheduled(lambda o: CosineAnnealingLR(o, 3), "batch")
    with pytest.raises(TrainingError, match="ReduceLROnPlateau waits for the loss of an epoch"):
        scheduled(ReduceLROnPlateau, "step")


def test_a_scheduler_that_would_do_nothing_or_the_contrary_is_refused():
    other = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(TrainingError, match="the StepLR was made for another optimizer"):
        scheduled(lambda _: torch.optim.lr_scheduler.StepLR(other, 1))
    with pytest.raises(TrainingError, match="its mode is 'max'; give 'min'"):
        scheduled(lambda o: ReduceLROnPlateau(o, mode="max"))
    with pytest.raises(TrainingError, match="scheduler is one of torch"):
        scheduled(lambda _: "cosine")


def test_a_one_cycle_that_ends_before_the_search_is_refused_and_one_that_ends_after_it_warned_about(caplog):
    with pytest.raises(TrainingError, match="total_steps=23, and 3 epochs have 24; give it total_steps=24"):
        scheduled(lambda o: OneCycleLR(o, 0.5, total_steps=23), "step")
    with caplog.at_level(logging.WARNING, logger="supernet"):
        scheduled(lambda o: OneCycleLR(o, 0.5, total_steps=48), "step")
    assert "did you mean total_steps=24?" in caplog.text
    trainer, scheduler, _ = scheduled(lambda o: OneCycleLR(o, 0.5, total_steps=24), "step")
    trainer.fit()
    assert scheduler.last_epoch == 24
