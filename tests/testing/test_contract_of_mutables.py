"""Our elastic layers hold what every mutable promises, and one that breaks a promise is refused by that promise."""

import re

import pytest
import torch
from torch import nn

import supernet
from supernet import ValueChoice
from supernet.nn import Mutable, Sizes
from supernet.testing import check_mutable
from what_works_with_what import Scale

X = torch.linspace(-1, 1, 24).reshape(3, 8)
IMAGES = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)


def width(*values, label="width"):
    return ValueChoice(values, label=label)


def cut(x, label="width", dim=1, factor=1):
    return lambda architecture: (x.narrow(dim, 0, factor * architecture[label]),)


# What is made -> what makes it, its widest input, and what its frozen form takes.
MUTABLES = {
    "linear": (lambda: supernet.nn.Linear(width(4, 8), 2 * width(1, 3, label="out")), X, cut(X)),
    "convolution": (
        lambda: supernet.nn.Conv2d(
            width(2, 4), width(1, 3, label="out"), (k := width(1, 3, label="k")), padding=k // 2
        ),
        IMAGES,
        cut(IMAGES),
    ),
    "batch norm": (lambda: supernet.nn.BatchNorm2d(width(2, 4)), IMAGES, cut(IMAGES)),
    "layer norm": (lambda: supernet.nn.LayerNorm(width(4, 8)), X, cut(X)),
    "group norm": (lambda: supernet.nn.GroupNorm(2, width(2, 4)), IMAGES, cut(IMAGES)),
    "embedding": (lambda: supernet.nn.Embedding(5, width(2, 4)), torch.tensor([[0, 4], [2, 1]]), None),
    "dropout": (lambda: supernet.nn.Dropout(width(0.1, 0.5)), X, None),
    "a user's own": (lambda: Scale(width(2, 5, 8)), X, cut(X)),
}


@pytest.mark.parametrize("kind", MUTABLES)
def test_each_of_our_mutables_holds_what_mutables_promise(kind):
    make, x, narrowed = MUTABLES[kind]
    check_mutable(make, x, narrowed=narrowed)


# --- mutables that break one promise each ------------------------------------------------------------------


class CopiesItsWeight(Scale):
    """the parameters of frozen({'width': 2}) are views of the module's own"""

    def frozen(self, decisions):
        scale = super().frozen(decisions)
        scale.weight = nn.Parameter(scale.weight.detach().clone())
        return scale


class FreezesOtherWeights(Scale):
    """in training form the path {'width': 2} is as its frozen network"""

    def frozen(self, decisions):
        scale = super().frozen(decisions)
        scale.weight = nn.Parameter(self.weight[-scale.sizes["width"] :])
        return scale


class OtherInEvalForm(Scale):
    """in eval form the path {'width': 2} is as its frozen network"""

    def run(self, sizes, x):
        return super().run(sizes, x) * (1 if self.training else 2)


class MixesTheWidest(Scale):
    """a mixture is the weighted sum of what all sizes give, padded with zeros"""

    def mixed(self, x):
        return x * self.weight


class LosesGradients(Scale):
    """the gradient of gates of 'width' is <dL/dy, y_k>, of what each size gives"""

    def mixed(self, x):
        joint = self.sizes.joint()
        if not any(one.is_detached for one in joint):
            return super().mixed(x)
        return self.run(joint[0].sizes, x) * joint[0].weight + 0 * joint[1].weight


class HasChoicesLeft(Scale):
    """frozen({'width': 2}) has no choices"""

    def frozen(self, decisions):
        scale = super().frozen(decisions)
        scale.left = ValueChoice([1, 2], label="left")
        return scale


class HidesItsChoices(Scale):
    """the module depends on choices; but choices() returned none"""

    def choices(self):
        return []


FAULTY = [
    kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Scale) and kind is not Scale
]


@pytest.mark.parametrize("kind", FAULTY)
def test_a_mutable_that_breaks_a_promise_is_refused_by_that_promise(kind):
    with pytest.raises(AssertionError, match=re.escape(kind.__doc__)):
        check_mutable(lambda: kind(width(2, 5, 8)), X, narrowed=cut(X))


def test_what_is_no_mutable_is_refused():
    with pytest.raises(AssertionError, match=r"make\(\) returns a Mutable; but it returned a Linear"):
        check_mutable(lambda: nn.Linear(2, 2), X)


class Pair(Mutable):
    """Gives a number too, of which no mixture is known: on paths it holds all the same."""

    def __init__(self, width):
        super().__init__()
        self.sizes = Sizes(width=width)

    def run(self, sizes, x):
        return x[..., : sizes["width"]], sizes["width"]

    def frozen(self, decisions):
        return Pair(self.sizes.under(decisions)["width"])


def test_a_mutable_that_gives_no_tensor_is_checked_on_its_paths():
    check_mutable(lambda: Pair(width(2, 8)), X, narrowed=cut(X))
