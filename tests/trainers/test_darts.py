"""DARTS against its mathematics (arXiv 1806.09055, equations 3 to 8)."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, InputChoice, LayerChoice, freeze
from supernet.errors import ChoiceError, TrainingError


class Constant(nn.Module):
    """A candidate without weights that always gives the same number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((), self.value, dtype=x.dtype)


class Quadratic(nn.Module):
    """Gives (w, a): a weight, and the mixture of two constants."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.a = LayerChoice([Constant(1.0), Constant(0.0)], label="a")

    def forward(self, x):
        return self.w, self.a(x)


def quadratic_loss(output, target):
    """L_val = w^2 / 2 where the target is 1, L_train = (w - a)^2 / 2 where it is 0."""
    w, a = output
    return torch.where(target.bool().all(), w**2 / 2, (w - a) ** 2 / 2)


def quadratic_trainer(w=1.0, *, unrolled, lr=0.4, **sgd):
    model = Quadratic(w)
    one = torch.ones(2, 1, dtype=torch.float64)
    trainer = DartsTrainer(
        model,
        quadratic_loss,
        None,
        SGD(model.parameters(), lr, **sgd),
        1,
        TensorDataset(one, torch.zeros(2)),
        valid_dataset=TensorDataset(one, torch.ones(2)),
        unrolled=unrolled,
    )
    with torch.no_grad():
        trainer.alphas["a"].zero_()  # p = (1/2, 1/2), so a = 1/2 and da/dalpha = (1/4, -1/4)
    return trainer, (one, torch.ones(2)), (one, torch.zeros(2))


def test_first_order_gradient_is_zero_where_the_validation_loss_does_not_see_the_alphas():
    trainer, valid, _ = quadratic_trainer(unrolled=False)
    trainer.train_architecture(*valid)
    assert torch.equal(trainer.alphas["a"].grad, torch.zeros(2, dtype=torch.float64))


def test_second_order_gradient_is_exact_on_a_quadratic():
    """L_train = (w - a)^2 / 2, L_val = w^2 / 2, w' = w - xi (w - a): dL_val(w')/da = xi w' = 0.4 * 0.8."""
    trainer, valid, train = quadratic_trainer(unrolled=True)
    trainer.train_architecture(*valid, *train)
    expected = 0.32 * torch.tensor([0.25, -0.25], dtype=torch.float64)
    torch.testing.assert_close(trainer.alphas["a"].grad, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("sgd", "virtual", "taken"),
    [
        ({"weight_decay": 0.1}, lambda w, g, b: w - 0.4 * (g + 0.1 * w), 0.4),
        ({"momentum": 0.9}, lambda w, g, b: w - 0.4 * (0.9 * b + g), 0.4),
        ({"momentum": 0.9, "nesterov": True}, lambda w, g, b: w - 0.4 * (1.9 * g + 0.81 * b), 0.4 * 1.9),
        ({"momentum": 0.9, "dampening": 0.3}, lambda w, g, b: w - 0.4 * (0.9 * b + 0.7 * g), 0.4 * 0.7),
    ],
    ids=["weight decay", "momentum", "nesterov", "dampening"],
)
def test_second_order_gradient_has_the_closed_form_of_each_kind_of_sgd(sgd, virtual, taken):
    """dL_val(w')/da = c w' with c = -dw'/dg, b the momentum that a first step from w = 1 left behind."""
    trainer, valid, train = quadratic_trainer(unrolled=True, **sgd)
    b = 0.5 if "momentum" in sgd else 0.0
    if b:
        trainer.train_model_weight(*train)  # g = 1 - 1/2 goes into the buffer
    w = trainer.model.w.item()
    trainer.train_architecture(*valid, *train)
    expected = taken * virtual(w, w - 0.5, b) * torch.tensor([0.25, -0.25], dtype=torch.float64)
    torch.testing.assert_close(trainer.alphas["a"].grad, expected, rtol=1e-4, atol=0)


class Branch(nn.Sequential):
    def __init__(self, out):
        super().__init__(nn.Linear(3, out), nn.BatchNorm1d(out), nn.Tanh(), nn.Dropout(0.3))


class SmallNet(nn.Module):
    """Linear candidates with BatchNorm and dropout, and a choice of inputs."""

    def __init__(self):
        super().__init__()
        self.op = LayerChoice([Branch(4), nn.Linear(3, 4)], label="op")
        self.skip = InputChoice(2, 1, label="skip")
        self.project, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.skip([self.op(x), self.project(x)])))


def reference_forward(model, alphas, x):
    """The mixture written by hand, from the model as it was before the trainer."""
    p, q = alphas["op"].softmax(-1), alphas["skip"].softmax(-1)
    op = p[0] * model.op[0](x) + p[1] * model.op[1](x)
    return model.head(torch.tanh(q[0] * op + q[1] * model.project(x)))


def small_trainer(groups=False, **options):
    torch.manual_seed(0)
    model = SmallNet().double()
    written = copy.deepcopy(model)
    X, y = torch.randn(24, 3, dtype=torch.float64), torch.randint(2, (24,))
    parameters = [
        {"params": model.op.parameters(), "lr": 0.3, "weight_decay": 0.05},
        {"params": [*model.project.parameters(), *model.head.parameters()], "momentum": 0.8, "nesterov": True},
    ]
    optimizer = SGD(parameters if groups else model.parameters(), lr=0.1, momentum=0.9)
    trainer = DartsTrainer(model, nn.functional.cross_entropy, None, optimizer, 1, TensorDataset(X, y), **options)
    with torch.no_grad():  # away from the symmetric point
        for alpha in trainer.alphas.values():
            alpha.copy_(torch.linspace(-0.5, 0.7, len(alpha)))
    batches = (X[:10], y[:10]), (X[10:20], y[10:20])
    return trainer, written, *batches


def no_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def finite_differences(function, alphas, step=1e-5):
    gradients = {}
    for label, alpha in alphas.items():
        gradients[label] = torch.zeros_like(alpha)
        for k in range(len(alpha)):
            sides = []
            for sign in (1, -1):
                moved = {name: value.detach().clone() for name, value in alphas.items()}
                moved[label][k] += sign * step
                sides.append(function(moved))
            gradients[label][k] = (sides[0] - sides[1]) / (2 * step)
    return gradients


def test_supernet_output_equals_the_hand_written_mixture():
    trainer, written, (X, _), _ = small_trainer()
    no_dropout(trainer.model), no_dropout(written)
    output = trainer.forward(X, trainer.plan())
    torch.testing.assert_close(output, reference_forward(written, trainer.alphas, X), rtol=1e-12, atol=1e-12)


def test_first_order_gradient_equals_finite_differences_of_the_validation_loss():
    trainer, written, (X, y), _ = small_trainer()
    no_dropout(trainer.model), no_dropout(written)
    before = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}

    def validation_loss(alphas):
        with torch.no_grad():
            return nn.functional.cross_entropy(reference_forward(copy.deepcopy(written), alphas, X), y)

    trainer.train_architecture(X, y)
    for label, gradient in finite_differences(validation_loss, before).items():
        torch.testing.assert_close(trainer.alphas[label].grad, gradient, rtol=1e-6, atol=1e-10)


def test_second_order_gradient_equals_finite_differences_through_a_real_step_of_sgd():
    """Of the whole map alpha -> L_val(w'(alpha), alpha), with BatchNorm, momentum already moving, and two groups."""
    trainer, written, valid, train = small_trainer(groups=True, unrolled=True, grad_clip=None)
    no_dropout(trainer.model), no_dropout(written)
    trainer.train_model_weight(*train)  # fills the momentum
    before = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    state = copy.deepcopy(trainer.optimizer.state_dict())
    weights = [w.detach().clone() for w in trainer.weights]

    def validation_loss_after_a_step(alphas):
        model = copy.deepcopy(written)
        with torch.no_grad():
            for p, w in zip(model.parameters(), weights, strict=True):
                p.copy_(w)
        optimizer = SGD(
            [
                {"params": model.op.parameters()},
                {"params": [*model.project.parameters(), *model.head.parameters()]},
            ],
            lr=1.0,
        )
        optimizer.load_state_dict(copy.deepcopy(state))
        nn.functional.cross_entropy(reference_forward(model, alphas, train[0]), train[1]).backward()
        optimizer.step()
        with torch.no_grad():
            return nn.functional.cross_entropy(reference_forward(model, alphas, valid[0]), valid[1])

    trainer.train_architecture(*valid, *train)
    for label, gradient in finite_differences(validation_loss_after_a_step, before).items():
        torch.testing.assert_close(trainer.alphas[label].grad, gradient, rtol=1e-4, atol=1e-8)


def test_all_passes_over_the_training_batch_see_the_same_random_numbers():
    """Else the central difference would be of two different losses, divided by eps."""
    trainer, _, valid, train = small_trainer(unrolled=True)
    drawn = []
    trainer.model.head.register_forward_hook(lambda *_: drawn.append(torch.rand(()).item()))
    trainer.train_architecture(*valid, *train)
    first, of_validation, above, below = drawn
    assert first == above == below != of_validation


@pytest.mark.parametrize("unrolled", [False, True])
def test_architecture_step_leaves_weights_buffers_and_optimizer_bit_equal(unrolled):
    trainer, _, valid, train = small_trainer(unrolled=unrolled)
    trainer.train_model_weight(*train)
    before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    gradients = [None if w.grad is None else w.grad.clone() for w in trainer.weights]
    alphas = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    trainer.train_architecture(*valid, *train)
    after = trainer.model.state_dict(), trainer.optimizer.state_dict()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    for index, state in before[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], after[1]["state"][index]["momentum_buffer"])
    assert all(a is None or torch.equal(a, w.grad) for a, w in zip(gradients, trainer.weights, strict=True))
    assert all(w.requires_grad for w in trainer.weights)
    assert not any(torch.equal(alpha, alphas[label]) for label, alpha in trainer.alphas.items())


def test_weight_step_moves_the_weights_and_running_statistics_and_no_alpha():
    trainer, _, _, train = small_trainer()
    alphas = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    state = copy.deepcopy(trainer.model.state_dict())
    trainer.train_model_weight(*train)
    unmoved = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, state[name])]
    assert unmoved in ([], ["op.0.0.bias"])  # BatchNorm takes away what a bias before it adds
    assert all(torch.equal(alpha, alphas[label]) and alpha.grad is None for label, alpha in trainer.alphas.items())


def test_weight_step_clips_the_gradient_to_the_norm_asked_for():
    norms = {}
    for clip in (None, 0.01):
        trainer, _, _, train = small_trainer(grad_clip=clip)
        trainer.train_model_weight(*train)
        norms[clip] = torch.linalg.vector_norm(torch.cat([w.grad.flatten() for w in trainer.weights])).item()
    assert norms[None] > 0.1
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


def test_alphas_belong_to_the_trainer_and_equal_labels_share_one():
    model = nn.Sequential(*(LayerChoice([nn.Linear(3, 3), nn.Identity()], label="same") for _ in range(2)))
    optimizer = SGD(model.parameters(), 0.1)
    data = TensorDataset(torch.randn(8, 3), torch.randn(8, 3))
    trainer = DartsTrainer(model, nn.functional.mse_loss, None, optimizer, 1, data)
    assert list(trainer.alphas) == ["same"]
    alpha = trainer.alphas["same"]
    assert not any(alpha is p for p in [*model.parameters(), *optimizer.param_groups[0]["params"]])


def test_default_architecture_optimizer_is_that_of_the_paper():
    trainer, *_ = small_trainer()
    group = trainer.architecture_optimizer.param_groups[0]
    settings = group["lr"], group["betas"], group["weight_decay"], trainer.grad_clip
    assert settings == (3e-4, (0.5, 0.999), 1e-3, 5.0)


def test_export_is_the_largest_alpha_and_the_largest_inputs_in_ascending_order():
    model = nn.ModuleDict(
        {
            "op": LayerChoice({"a": nn.Identity(), "b": nn.Linear(2, 2)}),
            "two": InputChoice(4, 2),
            "any": InputChoice(3, None, absent="zeros"),
        }
    )
    model.forward = lambda x: model["any"]([model["op"](x)] * 3) + model["two"]([x] * 4)
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 2))
    trainer = DartsTrainer(model, nn.functional.mse_loss, None, SGD(model.parameters(), 0.1), 1, data)
    with torch.no_grad():
        trainer.alphas["op"].copy_(torch.tensor([0.0, 0.1]))
        trainer.alphas["two"].copy_(torch.tensor([0.2, 0.1, 0.0, 0.3]))
        trainer.alphas["any"].copy_(torch.tensor([0.1, -0.3, 0.2]))
    assert trainer.export() == {"op": "b", "two": [0, 3], "any": [0, 2]}


class Planted(nn.Module):
    """One candidate is right by construction, its rivals are wrong: they give the target's negative, or noise."""

    def __init__(self):
        super().__init__()
        self.right_op = LayerChoice({"wrong": Times(-1.0), "right": Times(1.0), "swapped": Swap()}, label="op")
        self.right_input = InputChoice(3, 1, label="input")
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.right_input([-x, self.right_op(x) * self.scale, x.flip(0)])


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Swap(nn.Module):
    def forward(self, x):
        return x.flip(-1)


@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
def test_darts_finds_the_planted_architecture_for_10_of_10_seeds(unrolled):
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        X = torch.randn(256, 4)
        model = Planted()
        trainer = DartsTrainer(
            model,
            nn.functional.mse_loss,
            None,
            SGD(model.parameters(), 0.02),
            4,
            TensorDataset(X, X),
            batch_size=16,
            arc_learning_rate=0.02,
            seed=seed,
            unrolled=unrolled,
        )
        trainer.fit()
        found.append(trainer.export())
    assert found == [{"op": "right", "input": [1]}] * 10


def test_darts_is_indifferent_between_two_equal_candidates():
    model = nn.Sequential(LayerChoice([Times(1.0), Times(1.0), Times(-1.0)], label="op"), nn.Linear(4, 4))
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(model.parameters(), 0.02)
    trainer = DartsTrainer(model, nn.functional.mse_loss, None, optimizer, 4, TensorDataset(X, X), batch_size=16)
    with torch.no_grad():
        trainer.alphas["op"].zero_()
    trainer.fit()
    p = trainer.probabilities()["op"]
    assert p[0] == pytest.approx(p[1], abs=1e-6)
    assert p[0] != pytest.approx(p[2], abs=1e-4)


def test_unrolled_refuses_an_optimizer_whose_virtual_step_is_not_known():
    model = SmallNet()
    data = TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TrainingError, match=r"unrolled=True knows .*SGD, not that of Adam; use SGD"):
        DartsTrainer(model, nn.functional.cross_entropy, None, optimizer, 1, data, unrolled=True)
    freeze(model, {"op": 0, "skip": 0})(torch.zeros(2, 3))  # the model is as it was


@pytest.mark.parametrize(("reduction", "n_chosen"), [("none", 1), ("concat", 2), ("concat", None)])
def test_a_reduction_that_a_mixture_cannot_stand_for_is_refused(reduction, n_chosen):
    model = nn.ModuleDict({"op": LayerChoice([nn.Linear(2, 2)]), "skip": InputChoice(3, n_chosen, reduction)})
    before = dict(model.named_modules())
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 2))
    with pytest.raises(ChoiceError, match=rf"'skip' reduces .* by '{reduction}'"):
        DartsTrainer(model, nn.functional.mse_loss, None, SGD(model.parameters(), 0.1), 1, data)
    assert dict(model.named_modules()) == before
