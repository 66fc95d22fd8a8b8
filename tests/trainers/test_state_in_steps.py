"""What a step finds and leaves: buffers that a forward moves, batches that it changes, losses with state."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, evaluate, freeze, train
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution.memory_format import agree
from supernet.trainers import Callback

# --- second order ------------------------------------------------------------------------------------------


class Moving(nn.Module):
    """A mixture whose forward reads and moves a hidden state and a running normalizer, and scales its batch."""

    def __init__(self, in_place):
        super().__init__()
        self.op = LayerChoice(
            {"linear": nn.Linear(3, 3), "tanh": nn.Sequential(nn.Linear(3, 3), nn.Tanh())}, label="op"
        )
        self.head = nn.Linear(3, 2)
        self.in_place = in_place
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("hidden", torch.ones(3))

    def forward(self, x):
        if self.in_place:
            x = x.mul_(1.5)
        y = self.op(x) * self.scale.clone() + self.hidden
        if self.training:
            with torch.no_grad():
                self.scale.mul_(0.7).add_(0.3 * x.abs().mean())
                self.hidden = 0.5 * self.hidden + y.mean(0)
        return self.head(y)


def exact_gradient(model, alpha, train, valid, lr):
    """d L_val(w - lr dL_trn/dw) / d alpha by differentiating twice, every pass at the state that is there now."""
    scale, hidden = model.scale.clone(), model.hidden.clone()
    linear, deep = model.op.candidates["linear"], model.op.candidates["tanh"][0]

    def loss(weights, X, y):
        w1, b1, w2, b2, w3, b3 = weights
        x = X * 1.5 if model.in_place else X
        p = torch.softmax(alpha, 0)
        mixed = p[0] * (x @ w1.T + b1) + p[1] * torch.tanh(x @ w2.T + b2)
        return nn.functional.cross_entropy((mixed * scale + hidden) @ w3.T + b3, y)

    weights = [p.detach().clone().requires_grad_() for m in (linear, deep, model.head) for p in (m.weight, m.bias)]
    gradients = torch.autograd.grad(loss(weights, *train), weights, create_graph=True)
    moved = [w - lr * g for w, g in zip(weights, gradients, strict=True)]
    return torch.autograd.grad(loss(moved, *valid), alpha)[0]


@pytest.mark.parametrize("in_place", [False, True])
def test_each_pass_of_the_second_order_sees_the_same_state_and_the_same_batch(in_place):
    torch.manual_seed(0)
    model = Moving(in_place).double()
    X, y = torch.randn(32, 3).double(), torch.randint(2, (32,))
    trainer = DartsTrainer(
        *(model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.5), 1, TensorDataset(X, y)), unrolled=True
    )
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    alpha = trainer.alphas["op"].detach().clone().requires_grad_()
    train, valid = (X[:16].clone(), y[:16]), (X[16:].clone(), y[16:])
    expected = exact_gradient(model, alpha, train, valid, 0.5)
    trainer.train_architecture(*valid, *train)
    torch.testing.assert_close(trainer.alphas["op"].grad, expected, rtol=1e-3, atol=1e-7)
    assert all(torch.equal(buffer, state[name]) for name, buffer in model.named_buffers())


def test_a_batch_is_as_it_was_after_a_model_or_a_loss_that_changes_it():
    def loss(output, target):
        return nn.functional.mse_loss(output, target.mul_(2.0))

    torch.manual_seed(0)
    model = Moving(True)
    X, y = torch.randn(8, 4, 3), torch.randn(8, 4, 2)
    given = X.clone(), y.clone()
    one_a_batch = DataLoader(TensorDataset(X, y), batch_size=None)  # whose batches are the dataset's own tensors
    trainer = DartsTrainer(model, loss, None, SGD(model.parameters(), 0.01), 2, one_a_batch, valid_dataset=one_a_batch)
    trainer.fit()
    assert torch.equal(X, given[0])
    assert torch.equal(y, given[1])


class OfADict(nn.Module):
    """A mixture that takes a dict, and may leave it other than it was, though no tensor of it is changed."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.op = LayerChoice({"a": nn.Linear(3, 3), "b": nn.Sequential(nn.Linear(3, 3), nn.Tanh())}, label="op")
        self.head, self.how = nn.Linear(3, 2), how

    def forward(self, batch):
        x = batch.pop("x") if self.how == "pop" else batch["x"]
        x = x * 1.5
        if self.how == "put":
            batch["x"] = x
        return self.head(self.op(x))


class Dicts(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        x = torch.randn(3, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": (x[0] > 0).long()}


@pytest.mark.parametrize("how", ["put", "pop"])
def test_each_pass_sees_the_same_dict_though_the_model_takes_from_it_or_puts_into_it(how):
    def gradient_of(how):
        model = OfADict(how)
        trainer = DartsTrainer(
            *(model, lambda output, batch: nn.functional.cross_entropy(output, batch["y"]), None),
            *(SGD(model.parameters(), 2.0), 1, Dicts()),
            batch_size=16,
            unrolled=True,
        )
        train, valid = (default_collate([Dicts()[i] for i in part]) for part in (range(16), range(16, 32)))
        trainer.train_architecture(valid, valid, train, train)
        return trainer.alphas["op"].grad

    assert torch.equal(gradient_of(how), gradient_of("neither"))


@pytest.mark.parametrize("kind", [DartsTrainer, SinglePathTrainer])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_data_is_as_it_was_after_a_candidate_that_changes_the_batch_itself(kind, seed):
    X, y = torch.randn(4, 8, 3), torch.randint(2, (4, 8))
    given = X.clone()
    model = nn.Sequential(
        LayerChoice({"linear": nn.Linear(3, 3), "relu": nn.ReLU(inplace=True)}, label="op"), nn.Linear(3, 2)
    )
    own = DataLoader(TensorDataset(X, y), batch_size=None)  # whose batches are the dataset's own tensors
    options = {"num_evaluations": 2} if kind is SinglePathTrainer else {}
    optimizer = SGD(model.parameters(), 0.1)
    trainer = kind(
        *(model, nn.functional.cross_entropy, None, optimizer, 2, own), valid_dataset=own, seed=seed, **options
    )
    trainer.fit()
    assert torch.equal(X, given)


def gradient(precision, unrolled):
    torch.manual_seed(0)
    X, y = torch.randn(64, 3, 8, 8), torch.randint(4, (64,))

    def op(k):
        return nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, k, padding=k // 2, bias=False), nn.BatchNorm2d(16))

    def choice(label):
        return LayerChoice({"skip": nn.Identity(), "c1": op(1), "c3": op(3), "c5": op(5)}, label=label)

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *map(choice, "abc"), *head)
    trainer = DartsTrainer(
        *(model, nn.functional.cross_entropy, None, SGD(model.parameters(), 2.0), 1, TensorDataset(X, y)),
        batch_size=32,
        precision=precision,
        unrolled=unrolled,
    )
    trainer.train_architecture(X[:32], y[:32], X[32:], y[32:])
    return torch.cat([alpha.grad.flatten() for alpha in trainer.alphas.values()])


def test_the_second_order_in_bf16_mixed_is_that_of_float32():
    """The difference of two passes in bfloat16, 0.01 apart, would be nothing but what they round."""
    exact, mixed = gradient("32-true", True), gradient("bf16-mixed", True)
    assert torch.cosine_similarity(exact, mixed, dim=0) > 0.85  # 0.65 where the two passes are of bfloat16
    assert 0.8 < mixed.norm() / exact.norm() < 1.25


def test_weights_of_16_bits_are_refused_by_the_second_order():
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a")).bfloat16()
    data, loss = TensorDataset(torch.zeros(4, 2), torch.zeros(4, 2)), nn.MSELoss()
    with pytest.raises(TrainingError, match="16 bits cannot tell apart"):
        DartsTrainer(model, loss, None, SGD(model.parameters(), 0.1), 1, data, unrolled=True)


# --- losses with state -------------------------------------------------------------------------------------


class TwoTasks(nn.Module):
    """Weights two tasks by what it learns, and counts its calls in training."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, target):
        errors = (output - target).square().mean(0)
        if torch.is_grad_enabled():
            self.seen += 1
        return (self.log_variance.neg().exp() * errors + self.log_variance).sum()


class Stop(Callback):
    def step_ended(self, trainer):
        if trainer.global_step == 9:
            raise KeyboardInterrupt


def two_tasks(kind=DartsTrainer, loss=None, run_dir=None, epochs=3, make=SGD, callbacks=(), **options):
    torch.manual_seed(0)
    X = torch.randn(40, 3)
    Y = torch.stack([3 * X[:, 0], X[:, 1].abs()], 1)
    model = nn.Sequential(
        LayerChoice([nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.Tanh())], label="a"), nn.Linear(4, 2)
    )
    loss = TwoTasks() if loss is None else loss
    learnable = loss.parameters() if isinstance(loss, nn.Module) else loss.__closure__[0].cell_contents.parameters()
    optimizer = make([*model.parameters(), *learnable], 0.05)
    options = {"batch_size": 5, "run_dir": run_dir, "callbacks": callbacks, **options}
    return kind(model, loss, None, optimizer, epochs, TensorDataset(X, Y), **options)


def hidden_in_a_function():
    tasks = TwoTasks()

    def loss(output, target):
        return tasks(output, target)

    return loss


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DartsTrainer, {"arc_learning_rate": 0.05}),
        (DartsTrainer, {"arc_learning_rate": 0.05, "unrolled": True}),
        (DartsTrainer, {"make": Adam}),
        (SinglePathTrainer, {"num_evaluations": 2}),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_loss_with_parameters_is_trained_and_goes_on_exactly(tmp_path, kind, options, hidden):
    from supernet.trainers import Checkpointing

    options = {**options, "checkpointing": Checkpointing(every_steps=2)}

    def new(run_dir, **more):
        return two_tasks(kind, hidden_in_a_function() if hidden else TwoTasks(), run_dir, **options, **more)

    def tasks(trainer):
        return trainer.loss.__closure__[0].cell_contents if hidden else trainer.loss

    whole, part, again = new(tmp_path / "a"), new(tmp_path / "b", callbacks=[Stop()]), new(tmp_path / "b")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        part.fit()
    again.fit(resume="auto")
    assert not torch.equal(tasks(whole).log_variance, torch.zeros(2))
    assert torch.equal(tasks(whole).log_variance, tasks(again).log_variance)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    if not hidden:  # else the buffer is nobody's that a search knows
        assert torch.equal(whole.loss.seen, again.loss.seen)


@pytest.mark.parametrize("options", [{}, {"unrolled": True}])
def test_architecture_steps_and_evaluations_move_no_state_of_the_loss(options):
    trainer = two_tasks(epochs=1, **options)
    trainer.fit()
    assert trainer.loss.seen == 4  # one a step of the weights


def test_a_step_of_the_architecture_gives_parameters_of_the_loss_no_gradient():
    trainer = two_tasks()
    X, Y = torch.randn(5, 3), torch.randn(5, 2)
    trainer.train_architecture(X, Y)
    assert trainer.loss.log_variance.grad is None
    assert trainer.alphas["a"].grad.abs().sum() > 0


def test_the_second_order_looks_through_the_step_of_the_loss_s_parameters_too():
    """L_val(w', s') with s' = s - lr dL_trn/ds: differentiated twice, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())], label="a")).double()
    loss, X, Y = TwoTasks().double(), torch.randn(32, 3).double(), torch.randn(32, 2).double()
    optimizer = SGD([*model.parameters(), *loss.parameters()], 0.1)
    trainer = DartsTrainer(model, loss, None, optimizer, 1, TensorDataset(X, Y), unrolled=True)
    alpha = trainer.alphas["a"].detach().clone().requires_grad_()

    def value(w1, b1, w2, b2, s, x, y):
        p = torch.softmax(alpha, 0)
        output = p[0] * (x @ w1.T + b1) + p[1] * torch.tanh(x @ w2.T + b2)
        return (s.neg().exp() * (output - y).square().mean(0) + s).sum()

    weights = [p.detach().clone().requires_grad_() for p in [*model.parameters(), *loss.parameters()]]
    train, valid = (X[:16], Y[:16]), (X[16:], Y[16:])
    gradients = torch.autograd.grad(value(*weights, *train), weights, create_graph=True)
    moved = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
    (expected,) = torch.autograd.grad(value(*moved, *valid), alpha)
    trainer.train_architecture(*valid, *train)
    torch.testing.assert_close(trainer.alphas["a"].grad, expected, rtol=1e-3, atol=1e-7)


def test_parameters_of_the_loss_that_no_optimizer_has_are_refused_by_name():
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Linear(3, 2)], label="a"))
    data = TensorDataset(torch.zeros(8, 3), torch.zeros(8, 2))
    with pytest.raises(TrainingError, match=r"loss\.log_variance; make it from model.parameters\(\) \(and loss.param"):
        DartsTrainer(model, TwoTasks(), None, SGD(model.parameters(), 0.1), 1, data)


class Smoothed(nn.Module):
    """Smooths labels in training form only."""

    def forward(self, output, target):
        return nn.functional.cross_entropy(output, target, label_smoothing=0.5 if self.training else 0.0)


@pytest.mark.parametrize("kind", [DartsTrainer, SinglePathTrainer])
def test_a_loss_is_in_eval_form_where_the_model_is_and_comes_back(kind):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())], label="a"))
    X, y = torch.randn(40, 3), torch.randint(2, (40,))
    valid, optimizer = TensorDataset(X[:20], y[:20]), SGD(model.parameters(), 0.1)
    trainer = kind(model, Smoothed(), None, optimizer, 1, TensorDataset(X[20:], y[20:]), valid_dataset=valid)
    network = freeze(model, {"a": 1})
    expected = nn.functional.cross_entropy(network(X[:20]), y[:20]).item()
    assert trainer.evaluate({"a": 1})["loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.loss.training
    assert evaluate(network, Smoothed(), None, valid)["loss"] == pytest.approx(expected, rel=1e-5)


# --- ends and edges ----------------------------------------------------------------------------------------


def test_weights_that_the_last_step_made_nan_end_the_training_by_name():
    network, data = nn.Linear(2, 2), TensorDataset(torch.randn(8, 2), torch.randint(2, (8,)))

    def loss(output, target):  # whose value is finite, and whose gradient is not
        return nn.functional.cross_entropy(output, target) + (output * 0).sum().abs().sqrt()

    with pytest.raises(NonFiniteError, match="the weight weight is not finite"):
        train(network, loss, None, SGD(network.parameters(), 0.1), 1, data, batch_size=8)


def test_the_second_order_over_frozen_weights_is_the_first():
    gradients = []
    for unrolled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Tanh()], label="a")).requires_grad_(False)
        X, y = torch.randn(16, 2), torch.randint(2, (16,))
        optimizer = SGD(model.parameters(), 0.1)
        trainer = DartsTrainer(
            model, nn.functional.cross_entropy, None, optimizer, 1, TensorDataset(X, y), unrolled=unrolled
        )
        trainer.train_architecture(X[:8], y[:8], X[8:], y[8:])
        gradients.append(trainer.alphas["a"].grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_batch_that_holds_nan_or_infinities_does_not_turn_the_fast_way_off():
    a = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    assert agree(a, a.clone())
    assert not agree(a, torch.tensor([1.0, 0.0, float("inf"), 2.0]))
    assert not agree(a, torch.tensor([1.0, float("nan"), float("-inf"), 2.0]))
    assert not agree(torch.tensor([1 + 1j]), torch.tensor([1 + 2j]))
