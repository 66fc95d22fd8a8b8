"""From a trained supernet to an architecture: evaluated in any trainer, searched once, within a constraint."""

import io
import logging

import pytest
import rich.console
import torch
from searches import Net, loss, search
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    accuracy,
    evaluate,
    freeze,
)
from supernet.errors import ArchitectureError, SpaceError, TrainingError

KINDS = ["first order", "second order", "lean", "enas", "proxyless", "reinforce", "single path", "random"]


class Plain(nn.Module):
    """Without BatchNorm: what a frozen network computes is what its path in the supernet does."""

    def __init__(self):
        super().__init__()
        deep = nn.Sequential(nn.Linear(4, 4), LayerChoice([nn.ReLU(), nn.Tanh()], label="act"))
        self.op = LayerChoice({"linear": nn.Linear(4, 4), "deep": deep}, label="op")
        self.skip = InputChoice(3, 2, label="skip")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.op(x)
        return self.head(self.skip([x, y, y.relu()]))


def numbers(count=40, seed=0):
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long())


def plain(kind, model=None, **options):
    torch.manual_seed(0)
    model = Plain() if model is None else model
    more = {
        EnasTrainer: {"reward_function": lambda o, y: -loss(o, y), "num_samples": 3},
        SinglePathTrainer: {"num_evaluations": 4},
        RandomTrainer: {"num_samples": 4},
    }.get(kind, {})
    options = {"valid_dataset": numbers(30, 1), "batch_size": 8, **more, **options}
    return kind(
        **{"model": model, "loss": loss, "metrics": accuracy, "optimizer": SGD(model.parameters(), 0.1)},
        **{"num_epochs": 1, "dataset": numbers(), **options},
    )


@pytest.mark.parametrize("kind", [DartsTrainer, ProxylessTrainer, EnasTrainer, SinglePathTrainer, RandomTrainer])
def test_every_trainer_evaluates_any_architecture_as_its_frozen_network_does(kind):
    trainer = plain(kind)
    trainer.fit()
    for architecture in trainer.space.enumerate():
        measured = trainer.evaluate(architecture)
        expected = evaluate(freeze(trainer.model, architecture), loss, accuracy, numbers(30, 1))
        assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert measured["accuracy"] == pytest.approx(expected["accuracy"])
    with pytest.raises(ArchitectureError):
        trainer.evaluate({"op": "conv"})


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_moves_nothing_and_has_statistics_of_its_architecture_alone(kind):
    """BatchNorm behind a choice of two scales: the statistics of one are far from those of a mixture or of both."""

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    class Scales(Net):
        def __init__(self):
            super().__init__()
            self.stem = LayerChoice(
                {
                    "conv": Scaled(1.0),
                    "deep": nn.Sequential(Scaled(100.0), LayerChoice([nn.ReLU(), nn.Tanh()], label="act")),
                },
                label="stem",
            )
            self.norm = nn.BatchNorm2d(1)
            self.head = nn.Linear(1, 3)

    import searches

    original, searches.Net = searches.Net, lambda norm: Scales()
    try:
        trainer = search(kind, num_epochs=1, noise=False)
    finally:
        searches.Net = original
    trainer.fit()
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    drawn = torch.get_rng_state()
    architecture = {"stem": "conv", "skip": [0]}
    first, second = trainer.evaluate(architecture), trainer.evaluate(architecture)
    assert first == second
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in trainer.model.state_dict().items())

    network = freeze(trainer.model, architecture)
    batches = [X for X, _ in trainer._recalibration_part.batches(0)]
    network.norm.running_mean.copy_(torch.stack([X.mean((0, 2, 3)) for X in batches]).mean(0))
    network.norm.running_var.copy_(torch.stack([X.var((0, 2, 3)) for X in batches]).mean(0))
    given = TensorDataset(*map(torch.cat, zip(*trainer._evaluation_part.batches(0), strict=True)))
    assert first["loss"] == pytest.approx(evaluate(network, loss, None, given)["loss"], rel=1e-4)


# --- the best epoch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DartsTrainer, ProxylessTrainer])
def test_export_may_be_asked_for_the_best_epoch_s_architecture_or_any_epoch_s(kind):
    trainer = plain(kind, num_epochs=3, arc_learning_rate=0.5)
    trainer.fit()
    least = min(trainer.history, key=lambda record: record["valid_loss"])
    assert trainer.export("best") == least["architecture"]
    assert [trainer.export(epoch) for epoch in (1, 2, 3)] == [record["architecture"] for record in trainer.history]
    assert trainer.export() == trainer.history[-1]["architecture"]
    trainer.history[0]["valid_loss"] = float("nan")
    assert trainer.export("best") == min(trainer.history[1:], key=lambda record: record["valid_loss"])["architecture"]
    with pytest.raises(TrainingError, match=r"epoch 4 of .* has no architecture: there are 1 to 3"):
        trainer.export(4)


# --- searching once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer, EnasTrainer])
def test_fit_ends_with_the_search_and_export_gives_what_it_found(kind, caplog):
    trainer = plain(kind)
    evaluated = []
    inner = trainer.evaluate
    trainer.evaluate = lambda architecture, **options: evaluated.append(architecture) or inner(architecture, **options)
    with caplog.at_level(logging.INFO, logger="supernet"):
        trainer.fit()
    assert "searches the trained supernet by up to" in caplog.text
    assert evaluated
    count = len(evaluated)
    assert trainer.export() == trainer.export()
    assert len(evaluated) == count
    X, y = numbers()[:8]
    trainer.train_model_weight(X, y)  # what was found belongs to weights that are no more
    trainer.export()
    assert len(evaluated) > count


def test_a_search_shows_a_bar_where_there_is_a_terminal(monkeypatch):
    written = io.StringIO()
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console", lambda **options: console(file=written, force_terminal=True, width=120)
    )
    trainer = plain(SinglePathTrainer, num_evaluations=6)
    trainer.fit()
    assert "SinglePathTrainer search" in written.getvalue()
    assert "6/6" in written.getvalue()


# --- constraints -------------------------------------------------------------------------------------------


def few(architecture):
    return architecture["op"] == "linear" and architecture["skip"] == [0, 1]


@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer])
def test_a_constraint_that_nothing_keeps_is_an_error_before_the_training_that_leaves_the_model_as_it_was(kind):
    model = Plain()
    modules = dict(model.named_modules())
    with pytest.raises(SpaceError, match="keeps the constraint"):
        plain(kind, model, constraint=lambda architecture: False)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer])
def test_what_is_exported_keeps_the_constraint(kind):
    for seed in range(3):
        trainer = plain(kind, constraint=few, seed=seed)
        trainer.fit()
        assert few(trainer.export())


def test_random_search_trains_within_the_constraint_uniformly():
    trainer = plain(RandomTrainer, constraint=lambda architecture: architecture["op"] == "deep")
    counts: dict[str, int] = {}
    for _ in range(600):
        path = trainer.sample()
        assert path["op"] == "deep"
        counts[str(path)] = counts.get(str(path), 0) + 1
    assert len(counts) == 6  # 2 activations, 3 pairs of inputs
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 20.5  # chi-squared, 5 degrees, p = 0.001


# --- steps of one's own, and a second fit ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer, EnasTrainer])
def test_a_train_step_of_one_s_own_is_called_on_batches_of_both_parts(kind):
    class Own(kind):
        seen = 0

        def train_step(self, trn_X, trn_y, val_X, val_y):
            self.seen += 1
            assert len(trn_X) == len(trn_y) == 8
            assert len(val_X) == len(val_y)
            self.train_model_weight(trn_X, trn_y)
            self.compute_loss("valid", self.distributed.forward_local(val_X, self.sample()), val_y)

    more = {"reward_function": lambda o, y: -loss(o, y)} if kind is EnasTrainer else {}
    trainer = plain(Own, num_epochs=2, **more)
    trainer.fit()
    assert trainer.seen == trainer.global_step == 10
    assert "valid_loss" in trainer.history[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_says_that_it_could_neither_begin_anew_nor_go_on(kind):
    trainer = search(kind, num_epochs=1)
    trainer.fit()
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(TrainingError, match="has trained already, up to epoch 2, step 0"):
        trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))


class SameBatch(SinglePathTrainer):
    """Steps of its own, which call nothing of the class above."""

    def train_step(self, trn_X, trn_y, val_X, val_y):
        self.optimizer_step(self.compute_loss("train", self.forward(trn_X, self.sample()), trn_y), self.optimizer)


def test_what_was_found_before_a_training_is_not_what_is_exported_after_it(tmp_path):
    def new(kind):
        torch.manual_seed(0)
        model = nn.Sequential(LayerChoice({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, label="op"), nn.Linear(2, 2))
        X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
        data = TensorDataset(X, (X[:, 0] > 0).long())
        optimizer = SGD(model.parameters(), 0.5)
        options = {"batch_size": 8, "num_evaluations": 4, "run_dir": tmp_path / kind.__name__}
        return kind(model, nn.functional.cross_entropy, None, optimizer, 2, data, **options)

    for kind in (SinglePathTrainer, SameBatch):
        trainer = new(kind)
        trainer.export()
        trainer.fit()
        now = {name: trainer.evaluate({"op": name})["loss"] for name in "ab"}
        assert {name: trainer.evaluated([{"op": name}])[0]["loss"] for name in "ab"} == now
        again = new(kind)
        again.found = {"op": max(now, key=now.get)}  # by weights that are not those of the checkpoint
        again.fit(resume="auto")
        assert again.export() == {"op": min(now, key=now.get)}
