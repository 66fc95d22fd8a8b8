"""Values that nothing in the model would decide are refused by name; what modules keep of values is decided too."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import supernet
from supernet import DartsTrainer, LayerChoice, SearchSpace, Supernet, ValueChoice, freeze
from supernet.errors import ChoiceError, ReplacementError, SpaceError, UnresolvedChoiceError
from supernet.nn import Mutable, Sizes


def choice(values=(2, 4), label="k"):
    return ValueChoice(values, label=label)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: nn.MaxPool2d(choice()), "kernel_size"),
        (lambda: nn.AvgPool2d(choice() // 2), "kernel_size"),
        (lambda: nn.LeakyReLU(choice()), "negative_slope"),
        (lambda: nn.Conv2d(3, 4, 3, stride=choice() * 1), "stride"),
        (lambda: nn.Conv2d(3, 4, 3, stride=(choice() * 1, 1)), "stride"),
    ],
)
def test_a_layer_of_torch_that_holds_a_value_is_refused_by_its_place_and_argument(layer, name):
    model = nn.Sequential(nn.Sequential(layer()), supernet.nn.Linear(3, choice()))
    kind = type(model[0][0]).__name__
    with pytest.raises(SpaceError, match=rf"{kind}, at '0.0', holds .*k.* as {name}.*LayerChoice between {kind}s"):
        SearchSpace(model)


class Keeps(nn.Module):
    def __init__(self, with_choice):
        super().__init__()
        width = choice(label="width")
        self.hidden = 2 * width
        if with_choice:
            self.layer = supernet.nn.Linear(3, width)

    def forward(self, x):
        return self.layer(x)


def test_an_expression_whose_choice_stands_nowhere_is_refused_and_what_is_to_be_kept_is_said():
    with pytest.raises(SpaceError, match=r"Keeps, of which.*holds 2 \* width as hidden.*'width' stands nowhere"):
        SearchSpace(Keeps(False))


def test_an_expression_that_a_module_keeps_is_its_value_in_the_frozen_network():
    model = Keeps(True)
    network = freeze(model, {"width": 4})
    assert network.hidden == 8 and type(network.hidden) is int
    assert b"supernet" not in pickle.dumps(network.__dict__["hidden"])
    assert model.hidden.values() == [4, 8]


def test_an_expression_that_is_called_says_to_call_its_choices():
    with pytest.raises(UnresolvedChoiceError, match=r"2 \* k is an expression.*self\.k = k"):
        (2 * choice())()


def test_two_choices_of_one_label_and_other_values_are_refused_also_within_one_layer_or_expression():
    for make in (
        lambda: supernet.nn.Linear(choice((8, 16)), choice((8, 32))),
        lambda: (choice((8, 16)) + choice((8, 32))).leaves(),
    ):
        with pytest.raises(ChoiceError, match=r"label 'k'.*\[8, 16\].*\[8, 32\]"):
            make()
    assert SearchSpace(nn.Sequential(supernet.nn.Linear(choice(), choice()))).size == 2


@pytest.mark.parametrize(("returned", "said"), [(lambda m: m, "the Own itself"), (lambda m: None, "None")])
def test_a_frozen_module_in_which_something_is_left_to_decide_is_refused(returned, said):
    class Own(Mutable):
        def __init__(self):
            super().__init__()
            self.sizes = Sizes(k=choice())

        def frozen(self, decisions):
            return returned(self)

    with pytest.raises(ReplacementError, match=rf"Own.frozen\(\) returned {said}"):
        freeze(nn.Sequential(Own()), {"k": 2})


class UnderCheckpoint(nn.Module):
    """A width that runs under a reentrant checkpoint alone, beside a choice that does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        width = choice((2, 6), label="width")
        self.stem = nn.Linear(4, 8)
        self.op = LayerChoice([nn.Identity(), nn.Linear(8, 8)], label="op")
        self.a, self.b, self.head = supernet.nn.Linear(8, width), supernet.nn.Linear(width, 8), nn.Linear(8, 2)

    def forward(self, x, use_reentrant=True):
        x = checkpoint(lambda x: self.b(self.a(x).relu()), self.stem(x), use_reentrant=use_reentrant)
        return self.head(self.op(x))


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # torch says so wherever there are no gradients
def test_alphas_of_a_width_under_a_reentrant_checkpoint_are_trained_as_without_it():
    X, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    found = []
    for use_reentrant in (True, False):
        model = UnderCheckpoint()
        trainer = DartsTrainer(
            model,
            nn.CrossEntropyLoss(),
            None,
            torch.optim.SGD(model.parameters(), 0.1),
            2,
            torch.utils.data.TensorDataset(X, y),
            batch_size=16,
            arc_learning_rate=0.1,
            forward_fn=lambda model, X, reentrant=use_reentrant: model(X, reentrant),
            progress=False,
        )
        before = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
        trainer.fit()
        assert all((trainer.alphas[label] - before[label]).abs().max() > 1e-3 for label in before)
        found.append({label: alpha.detach() for label, alpha in trainer.alphas.items()})
    for label in found[0]:
        torch.testing.assert_close(found[0][label], found[1][label], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_supernet_whose_widths_are_under_a_reentrant_checkpoint_has_their_gradients():
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    x = torch.ones(2, 4)
    gradients = []
    for use_reentrant in (True, False):
        running = Supernet(UnderCheckpoint())
        running(x, use_reentrant, {"op": 0, "width": weights}).sum().backward()
        gradients.append(weights.grad.clone())
        weights.grad = None
    torch.testing.assert_close(*gradients)
