"""A mixture whose one-hot weights do not give the path is refused by name, and one that is right is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import supernet
import supernet.hub
from supernet import (
    DartsTrainer,
    LayerChoice,
    ProxylessTrainer,
    SearchSpace,
    SinglePathTrainer,
    Supernet,
    ValueChoice,
    freeze,
)
from supernet.errors import ChoiceError
from supernet.nn import Linear, Repeat

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """What is done to the features of an elastic layer stands between it and a head of as many inputs."""

    def __init__(self, between, of_width=lambda width: width, wide=lambda width: width):
        super().__init__()
        torch.manual_seed(0)
        width, other = ValueChoice([4, 8], label="a"), ValueChoice([3, 6], label="right")
        self.beside = nn.Sequential(Linear(8, other), nn.ReLU(), Linear(other, 8))
        self.first, self.head = Linear(8, wide(width)), Linear(of_width(width), 2)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self.first(x + self.beside(x)), x))


class Spatial(nn.Module):
    """A convolution whose channels come last before they are flattened."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        width = ValueChoice([4, 8], label="a")
        self.first, self.head = supernet.nn.Conv1d(1, width, 3, padding=1), Linear(8 * width, 2)

    def forward(self, x):
        return self.head(self.first(x[:, None]).permute(0, 2, 1).flatten(1))


WRONG = {
    "cat": lambda: Net(lambda h, x: torch.cat([h, x], 1), lambda width: width + 8),
    "cat of both": lambda: Net(lambda h, x: torch.cat([h, h], 1), lambda width: 2 * width),
    "glu": lambda: Net(lambda h, x: F.glu(h), wide=lambda width: 2 * width),
    "chunk": lambda: Net(lambda h, x: torch.mul(*h.chunk(2, -1)), wide=lambda width: 2 * width),
    "softmax": lambda: Net(lambda h, x: h.softmax(-1)),
    "layer_norm": lambda: Net(lambda h, x: F.layer_norm(h, h.shape[-1:])),
    "mean": lambda: Net(lambda h, x: h - h.mean(-1, keepdim=True)),
    "shape": lambda: Net(lambda h, x: h / h.shape[-1] ** 0.5),
    "flip": lambda: Net(lambda h, x: h.flip(-1)),
    "flatten": Spatial,
    "in a candidate": lambda: nn.Sequential(
        LayerChoice([nn.Sequential(nn.Linear(8, 8), nn.ReLU()), WRONG["softmax"]().beside], label="op"), WRONG["glu"]()
    ),
}


def weights_of(model):
    counts = {label: len(domain.options) for label, domain in SearchSpace(model).items()}
    return {label: torch.full((count,), 1 / count) for label, count in counts.items()}


def train(cls, model):
    data = TensorDataset(X.repeat(4, 1), torch.zeros(12).long())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return cls(model, nn.CrossEntropyLoss(), None, optimizer, 1, data, batch_size=3, progress=False, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_reads_features_by_position_or_number_is_refused_by_name(name, dtype):
    model = WRONG[name]().to(dtype)
    match = r"^in a mixture choice 'a' = 4 does not give what its path gives: .*; concatenate the fixed part first"
    with pytest.raises(ChoiceError, match=match):
        Supernet(model)(X.to(dtype), {label: weights.to(dtype) for label, weights in weights_of(model).items()})


def test_trainers_that_mix_refuse_it_at_construction_and_others_train_it():
    with pytest.raises(ChoiceError, match="in a mixture choice 'a' = 4"):
        train(DartsTrainer, WRONG["glu"]())
    for cls in (SinglePathTrainer, ProxylessTrainer):  # gates run paths
        train(cls, WRONG["glu"]()).fit()


def test_a_candidate_that_reads_by_number_is_found_whichever_candidate_is_drawn():
    """The mixture of layers stays one: only the second candidate is wrong."""

    class Glu(nn.Module):
        def __init__(self):
            super().__init__()
            width = ValueChoice([4, 8], label="a")
            self.first, self.head = Linear(8, 2 * width), Linear(width, 8)

        def forward(self, x):
            return self.head(F.glu(self.first(x)))

    for candidates in ([nn.Identity(), Glu()], [Glu(), nn.Identity()]):
        model = nn.Sequential(LayerChoice(candidates, label="op"))
        with pytest.raises(ChoiceError, match="in a mixture choice 'a' = 4"):
            Supernet(model)(X, weights_of(model))


def test_what_needs_two_choices_to_be_wrong_names_both():
    class Both(nn.Module):
        """Wrong only where both come padded."""

        def __init__(self):
            super().__init__()
            a, b = ValueChoice([4, 8], label="a"), ValueChoice([4, 8], label="b")
            self.a, self.b = Linear(8, a), Linear(8, b)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return a.sum(-1) + b.sum(-1) + float(a.shape == b.shape == (3, 8))

    model = Both()
    with pytest.raises(ChoiceError, match=r"^in a mixture choices 'a' = 4 and 'b' = 4 do not give what"):
        Supernet(model)(X, weights_of(model))


class Right(nn.Module):
    """Everything that is right: layers, norms, attention, depth, candidates, called values and noise of training."""

    def __init__(self):
        super().__init__()
        width, heads = 8 * ValueChoice([1, 2], label="width"), ValueChoice([1, 2], label="heads")
        self.stem = Linear(8, width)
        self.norms = nn.Sequential(supernet.nn.LayerNorm(width), supernet.nn.RMSNorm(width))
        self.attention = supernet.nn.Attention(width, heads, head_dim=4)
        self.multihead = supernet.nn.MultiheadAttention(width, 2, batch_first=True)
        hidden = ValueChoice([1, 3], label="ratio") * width

        def block():
            return nn.Sequential(Linear(width, hidden), nn.GELU(), nn.Dropout(0.5), Linear(hidden, width))

        self.blocks = Repeat(block, (1, 3), label="depth")
        self.op = LayerChoice([Linear(width, width), nn.Identity()], label="op")
        self.rate = ValueChoice([0.5, 2.0], label="rate")
        self.dropout = supernet.nn.Dropout(ValueChoice([0.0, 0.5], label="p"))
        self.head = Linear(width, 2)

    def forward(self, x):
        x = self.attention(self.norms(self.stem(x)[:, None].expand(-1, 4, -1)))
        x = x + self.multihead(x, x, x, need_weights=False)[0]
        return self.head(self.dropout(self.op(self.blocks(x))) * self.rate()).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_that_are_right_are_mixed(dtype):
    torch.manual_seed(0)
    model = Right().to(dtype)
    weights = {label: each.to(dtype) for label, each in weights_of(model).items()}
    running = Supernet(model)
    running(X.to(dtype), weights)
    path = running.space.sample(torch.Generator().manual_seed(1))
    one_hot = {
        label: torch.eye(len(weights[label]), dtype=dtype)[running.space[label].positions(decision)[0]]
        for label, decision in path.items()
    }
    running.eval()
    torch.testing.assert_close(running(X.to(dtype), one_hot), freeze(model, path).eval()(X.to(dtype)))


def test_a_trainer_that_mixes_takes_what_is_right():
    train(DartsTrainer, Right()).fit()


def test_a_model_that_draws_numbers_in_eval_form_cannot_be_compared_and_is_mixed():
    model = Net(lambda h, x: F.dropout(h))  # which forgot training=self.training
    Supernet(model)(X, weights_of(model))


@pytest.mark.parametrize(
    ("make", "X"),
    [
        (lambda: supernet.hub.MobileNetV3(2, 1), torch.ones(1, 1, 32, 32).cumsum(3)),
        (lambda: supernet.hub.AutoFormer("tiny", num_classes=2, image_size=32), torch.ones(1, 3, 32, 32).cumsum(3)),
        (lambda: supernet.hub.GPT("micro", vocab_size=11, context_length=8), torch.arange(8)[None]),
    ],
)
def test_elastic_spaces_of_the_hub_are_mixed(make, X):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        Supernet(model).eval()(X, weights_of(model))
