"""Batches of any form go through a model, by its arguments, by `forward_fn`, or by `loss_fn`."""

import pytest
import torch
from searches import KINDS, negative_loss, result, search
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from supernet import DartsTrainer, EnasTrainer, LayerChoice, SinglePathTrainer, accuracy, evaluate, restore, train
from supernet.errors import DataError, TrainingError
from supernet.training.forward import Forward


def pairs(count=16):
    """Batches (image, table, y)."""
    generator = torch.Generator().manual_seed(0)
    image, table = torch.randn(count, 6, generator=generator), torch.randn(count, 3, generator=generator)
    return TensorDataset(image, table, torch.randint(2, (count,), generator=generator))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = LayerChoice([nn.Linear(6, 6), nn.Identity()], label="i")
        self.table = nn.Linear(3, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, image, table):
        return self.out(self.image(image) + self.table(table))


class OneTuple(TwoInputs):
    def forward(self, batch):
        return super().forward(*batch)


class Keywords(TwoInputs):
    def forward(self, *, image, table):
        return super().forward(image, table)


def darts(model, loss=cross_entropy, metrics=accuracy, dataset=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return DartsTrainer(model, loss, metrics, optimizer, 1, dataset or pairs(), batch_size=4, **options)


def as_keywords(model, X):
    return model(image=X[0], table=X[1])


def new(network):
    torch.manual_seed(0)
    return network()


# --- the model's own arguments -----------------------------------------------------------------------------


def test_parts_reach_the_arguments_of_forward_and_a_forward_of_one_argument_gets_them_as_one():
    results = []
    for network, options in ((TwoInputs, {}), (OneTuple, {}), (Keywords, {"forward_fn": as_keywords})):
        trainer = darts(new(network), **options)
        trainer.fit()
        results.append(result(trainer))
    assert results[0] == results[1] == results[2]
    image, table, _ = pairs()[:4]
    plan = trainer.plan()
    network = trainer.model
    mixed = plan["i"][0] * network.image.candidates["0"](image) + plan["i"][1] * image
    by_hand = network.out(mixed + network.table(table))
    torch.testing.assert_close(trainer.forward((image, table), plan), by_hand)


def test_a_forward_that_takes_neither_the_batch_nor_its_parts_is_refused_and_leaves_the_model_whole():
    model = new(Keywords)
    with pytest.raises(
        DataError, match=r"Keywords\.forward\(\*, image, table\) takes neither X, a tuple of 2, .*forward_fn="
    ):
        darts(model)
    assert isinstance(model.image, LayerChoice)
    dicts = [{"image": image, "table": table, "y": y} for image, table, y in pairs()]
    with pytest.raises(DataError, match=r"TwoInputs\.forward\(image, table\) takes neither X, a dict of 3, as its one"):
        darts(new(TwoInputs), dataset=dicts)


class Optional(TwoInputs):
    def forward(self, image, table=None):
        return super().forward(image, table)


def test_a_forward_that_may_mean_both_and_fails_with_the_batch_as_one_says_how_to_hand_over_the_parts():
    with pytest.raises(DataError, match=r"fails with X, a tuple of 2, as its one argument: .* model\(\*X\)"):
        darts(new(Optional))
    darts(new(Optional), forward_fn=lambda model, X: model(*X)).fit()


@pytest.mark.parametrize(
    ("forward", "X", "called"),
    [
        (lambda a: a, (1, 2), ((1, 2),)),
        (lambda a, b=None: a, (1, 2), ((1, 2),)),
        (lambda a, b: a, (1, 2), (1, 2)),
        (lambda a, b: a, [1, 2], (1, 2)),
        (lambda a, b, c=None: a, (1, 2), (1, 2)),
        (lambda *a: a, (1, 2), ((1, 2),)),
        (lambda a, b: a, (1, 2, 3), None),
        (lambda a: a, {"x": 1}, ({"x": 1},)),
        (lambda a, b=None: a, {"a": 1, "b": 2}, ({"a": 1, "b": 2},)),
        (lambda a, b: a, {"b": 2, "a": 1}, {"b": 2, "a": 1}),
        (lambda a, b: a, {"a": 1, "b": 2, "y": 3}, None),
        (lambda a, b: a, {1: 1, 2: 2}, None),
        (lambda a, b: a, 1, None),
    ],
)
def test_x_is_one_argument_where_that_fits_and_else_its_parts_are(forward, X, called):
    model = nn.Identity()
    model.forward = forward
    run = Forward(model, None, None)
    for _ in range(2):
        if called is None:
            with pytest.raises(DataError, match="forward_fn=lambda model, X: "):
                run(as_called, X)
        else:
            assert run(as_called, X) == called


def as_called(*arguments, **keywords):
    return keywords or arguments


def test_what_a_model_raises_later_is_passed_on():
    model = nn.Identity()
    model.forward = lambda a, b=None: a
    run = Forward(model, None, None)
    run(as_called, (1, 2))
    with pytest.raises(TypeError, match="not supported"):
        run(lambda X: X < 1, (1, 2))


# --- loss_fn -----------------------------------------------------------------------------------------------


def whole(model, batch):
    X, y = batch
    output = model(X)
    return cross_entropy(output, y), output, y


@pytest.mark.parametrize("kind", [kind for kind, (_, options) in KINDS.items() if "loss" not in options])
def test_a_loss_fn_that_does_what_the_loop_does_gives_the_same_search_bit_for_bit(kind):
    ours, theirs = search(kind, num_epochs=2), search(kind, num_epochs=2, loss=None, loss_fn=whole)
    for trainer in (ours, theirs):
        trainer.fit()
    assert result(ours) == result(theirs)


@pytest.mark.parametrize("kind", ["enas", "second order"])
def test_it_does_so_in_mixed_precision(kind):
    options = {"num_epochs": 1, "precision": "bf16-mixed"}
    ours, theirs = search(kind, **options), search(kind, **options, loss=None, loss_fn=whole)
    for trainer in (ours, theirs):
        trainer.fit()
    assert result(ours) == result(theirs)


def test_a_weight_for_each_sample_goes_into_the_loss():
    """Gradient and mean by hand, over batches (X, y, weight)."""
    X, y, weight = torch.randn(10, 3), torch.randint(2, (10,)), torch.rand(10)

    def weighted(model, batch):
        X, y, weight = batch
        return (weight * cross_entropy(model(X), y, reduction="none")).mean()

    data = TensorDataset(X, y, weight)
    network = new(lambda: nn.Linear(3, 2))
    by_hand = (weight * cross_entropy(network(X), y, reduction="none")).mean()
    loader = DataLoader(data, 4)
    assert evaluate(network, None, None, loader, loss_fn=weighted)["loss"] == pytest.approx(by_hand.item())
    by_hand.backward()
    expected = network.weight.detach() - 0.1 * network.weight.grad
    network.zero_grad()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    history = train(network, None, None, optimizer, 1, DataLoader(data, 10), loss_fn=weighted, grad_clip=None)
    torch.testing.assert_close(network.weight.detach(), expected)
    assert history[0]["loss"] == pytest.approx(by_hand.item())


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Linear(3, 3), nn.Identity()], label="op")
        self.out = nn.Linear(3, 3)

    def forward(self, X):
        return self.out(self.op(X))


def reconstruction(model, X):
    return nn.functional.mse_loss(model(X), X)


def test_batches_without_targets_train_by_their_loss_alone():
    data = list(torch.randn(16, 3))
    trainer = darts(new(Autoencoder), None, None, data, loss_fn=reconstruction)
    trainer.fit()
    assert trainer.history[0]["valid_loss"] > 0
    model = new(Autoencoder)
    options = {"num_evaluations": 2, "population": 2, "num_parents": 1, "batch_size": 4}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = SinglePathTrainer(model, None, None, optimizer, 1, data, loss_fn=reconstruction, **options)
    trainer.fit()
    with pytest.raises(DataError, match=r"a batch is \(X, y\) or a dict, but the loader gives Tensor.*loss_fn="):
        darts(new(Autoencoder), nn.functional.mse_loss, None, data)


class Detector(Autoencoder):
    """Gives losses in training form and predictions in eval form, as torchvision's detection models do."""

    def forward(self, X, targets=None):
        found = super().forward(X)
        return {"boxes": (found - targets).square().mean(), "score": found.mean()} if self.training else [found]


def detection(model, batch):
    return sum(model(*batch).values())


def test_losses_that_a_model_has_in_training_form_only_are_enough_where_all_is_done_in_it():
    data = TensorDataset(torch.randn(16, 3), torch.randn(16, 3))
    trainer = darts(new(Detector), None, None, data, loss_fn=detection)
    trainer.fit()
    model = new(Detector)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        TrainingError, match="fails where the model is in eval form, in which SinglePathTrainer measures"
    ):
        SinglePathTrainer(model, None, None, optimizer, 1, data, loss_fn=detection)
    assert isinstance(model.op, LayerChoice)


def alone(model, batch):
    return whole(model, batch)[0]


def wrong(model, batch):
    return {"loss": whole(model, batch)[0]}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": cross_entropy, "loss_fn": whole}, "goes with loss=None"),
        ({"loss": None}, "not None; or give loss_fn"),
        ({"loss": None, "loss_fn": whole, "forward_fn": as_keywords}, "goes without forward_fn"),
        ({"forward_fn": "forward"}, "forward_fn is a function or None, not 'forward'"),
        ({"loss": None, "loss_fn": alone}, r"metrics takes an output and a target, .* return \(loss, output, target\)"),
        ({"loss": None, "loss_fn": wrong}, "loss_fn returns the loss, a tensor of one number, or .*, not a dict of 1"),
        (
            {"loss": None, "metrics": None, "loss_fn": lambda model, batch: model(batch[0])},
            "must return a tensor of one number",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_has_changed(options, match):
    with pytest.raises(TrainingError, match=match):
        search("first order", **options)


def test_a_reward_needs_an_output_and_evaluation_by_metrics_too():
    with pytest.raises(TrainingError, match="reward_function takes an output and a target"):
        search("enas", loss=None, metrics=None, loss_fn=alone)
    with pytest.raises(TrainingError, match="reward_function takes an output and a target"):
        search("reinforce", loss=None, metrics=None, loss_fn=alone, reward_function=negative_loss)
    X, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TrainingError, match="metrics takes an output and a target"):
        evaluate(nn.Linear(3, 2), None, accuracy, TensorDataset(X, y), loss_fn=alone)


class LearntWeight(nn.Module):
    """A loss_fn with a parameter of its own, which its optimizer trains."""

    def __init__(self):
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(()))

    def forward(self, model, batch):
        return whole(model, batch)[0] * torch.exp(-self.logarithm) + self.logarithm


def test_the_parameters_of_a_loss_fn_are_trained_as_those_of_a_loss():
    loss_fn = LearntWeight()
    model = new(Autoencoder)
    data = TensorDataset(torch.randn(16, 3), torch.randint(3, (16,)))
    with pytest.raises(TrainingError, match="logarithm"):
        darts(model, None, None, data, loss_fn=loss_fn)
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], 0.1)
    DartsTrainer(model, None, None, optimizer, 1, data, batch_size=4, loss_fn=loss_fn).fit()
    assert loss_fn.logarithm.item() != 0


def test_the_model_that_is_handed_over_has_the_attributes_of_the_users_own():
    seen = set()

    def forward_fn(model, X):
        seen.add((model.training, model.table.out_features))
        return model(*X)

    model = new(TwoInputs)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"forward_fn": forward_fn, "batch_size": 4, "num_samples": 2}
    EnasTrainer(model, cross_entropy, accuracy, accuracy, optimizer, 1, pairs(), **options).fit()
    assert seen == {(True, 6), (False, 6)}
    restore(model)
