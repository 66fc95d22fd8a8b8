"""What a model does not bear together is named by the smallest set of choices and values that makes it fail."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import DartsTrainer, InputChoice, LayerChoice, SinglePathTrainer, Supernet, ValueChoice, require
from supernet.errors import ChoiceError
from supernet.nn import Repeat

X = torch.ones(3, 4)


class Residual(nn.Module):
    """A sum of two branches whose widths are two choices, beside choices that have nothing to do with it."""

    def __init__(self, candidates=(4, 8), other=(4, 8), num_idle=6):
        super().__init__()
        a, b = ValueChoice(candidates, label="a"), ValueChoice(other, label="b")
        self.a, self.b = a, b
        self.left, self.right = supernet.nn.Linear(4, a), supernet.nn.Linear(4, b)
        self.idle = nn.Sequential()
        for i in range(num_idle):
            width = ValueChoice([2, 3, 4], label=f"idle{i}")
            self.idle += nn.Sequential(supernet.nn.Linear(4, width), supernet.nn.Linear(width, 4))
        self.op = LayerChoice([nn.Identity(), nn.Tanh()], label="op")
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        x = self.op(self.idle(x))
        return self.left(x) + self.right(x)


def path_of(model):
    return supernet.SearchSpace(model).sample(torch.Generator().manual_seed(0))


def make_supernet(model):
    path = {**path_of(model), "a": 4, "b": 4}
    return Supernet(model, (X, path))


def train(cls):
    def make(model):
        data = TensorDataset(torch.randn(16, 4), torch.zeros(16).long())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = nn.CrossEntropyLoss()
        return cls(model, loss, None, optimizer, 1, data, batch_size=4, progress=False, device="cpu")

    return make


@pytest.mark.parametrize("make", [make_supernet, train(DartsTrainer), train(SinglePathTrainer)])
def test_widths_that_cannot_be_added_are_named_and_nothing_else(make):
    model = Residual()
    match = r"^choices 'a' = (4|8) and 'b' = (4|8) do not go together: RuntimeError: The size of tensor a"
    with pytest.raises(ChoiceError, match=match) as caught:
        make(model)
    assert "'a' = 4 and 'b' = 4" not in str(caught.value) and "'a' = 8 and 'b' = 8" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert isinstance(model.op, LayerChoice)  # whole again


def test_the_search_for_them_takes_few_passes_though_there_are_many_choices():
    model = Residual(num_idle=60)
    with pytest.raises(ChoiceError, match="do not go together"):
        make_supernet(model)
    assert model.passes < 2 * 100  # a trial is two: in training and in eval form


def test_where_all_is_well_a_handful_of_trials_is_made_and_none_in_later_passes():
    class Same(Residual):
        def forward(self, x):
            self.passes += 1
            return self.left(self.op(self.idle(x)))

    model = Same()
    runs = make_supernet(model)
    with_values = model.passes
    runs(X, path_of(model))
    assert model.passes == with_values + 1
    plain = nn.Sequential(LayerChoice([nn.Identity(), nn.Tanh()], label="op"))
    passes = []
    plain.register_forward_hook(lambda *_: passes.append(1))
    Supernet(plain, (X, {"op": "0"}))
    assert len(passes) == 2  # in training and in eval form
    assert with_values - len(passes) == (3 + 3) * 2  # of eight choices of values


def test_a_constraint_that_forbids_the_conflict_lets_the_model_run():
    model = Residual()
    require(model, ValueChoice.compute(lambda a, b: a == b, model.a, model.b))
    output = make_supernet(model)(X, {**path_of(model), "a": 8, "b": 8})
    assert output.shape == (3, 8)


def test_one_choice_in_both_places_has_nothing_to_conflict():
    model = Residual()
    width = ValueChoice([4, 8], label="width")
    model.left, model.right, model.a, model.b = supernet.nn.Linear(4, width), supernet.nn.Linear(4, width), None, None
    path = supernet.SearchSpace(model).sample()
    assert Supernet(model, (X, path))(X, {**path, "width": 8}).shape == (3, 8)


class Halves(nn.Module):
    """Fails for one value whatever the others are; or for three together."""

    def __init__(self, fails):
        super().__init__()
        self.values = nn.ModuleList(ValueChoice([1, 2, 3], label=label) for label in "pqrs")
        self.op = LayerChoice({"keep": nn.Identity(), "turn": nn.Tanh()}, label="op")
        self.fails = fails

    def forward(self, x):
        if self.fails(*(value() for value in self.values)):
            raise ArithmeticError("too much")
        return self.op(x)


def test_one_value_that_fails_by_itself_is_named_alone():
    with pytest.raises(ChoiceError, match=r"^Halves does not bear choice 'q' = 3: ArithmeticError: too much; leave"):
        Supernet(Halves(lambda p, q, r, s: q == 3), (X, {"op": "keep", "p": 1, "q": 1, "r": 1, "s": 1}))


def test_three_values_that_fail_together_are_named_together():
    model = Halves(lambda p, q, r, s: p + r + s == 9)
    with pytest.raises(ChoiceError, match=r"^choices 'p' = 3, 'r' = 3 and 's' = 3 do not go together: Arithmetic"):
        Supernet(model, (X, {"op": "keep", "p": 1, "q": 1, "r": 1, "s": 1}))


class Depths(nn.Module):
    """The head takes what two blocks give; one gives less."""

    def __init__(self):
        super().__init__()
        self.width = ValueChoice([2, 4], label="width")
        self.blocks = Repeat([nn.Linear(4, 4), nn.Linear(4, 2)], (1, 2), label="depth")
        self.first, self.second = supernet.nn.Linear(4, self.width), supernet.nn.Linear(self.width, 4)
        self.two = InputChoice(2, 1, label="in")

    def forward(self, x):
        x = self.second(self.first(x))
        return self.two([self.blocks(x) @ torch.ones(4, 1), x[:, :1]])


def test_a_depth_that_the_model_does_not_bear_is_named():
    with pytest.raises(ChoiceError, match=r"^Depths does not bear choice 'depth' = 2: RuntimeError"):
        Supernet(Depths(), (X, {"width": 2, "depth": 1, "in": [0]}))


def test_a_model_that_fails_whatever_is_decided_says_so_in_its_own_words():
    with pytest.raises(ArithmeticError, match=r"^too much$"):
        Supernet(Halves(lambda *_: True), (X, {"op": "keep", "p": 1, "q": 1, "r": 1, "s": 1}))
