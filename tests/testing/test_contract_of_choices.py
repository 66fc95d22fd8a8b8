"""Each kind of choice holds what all promise, and one that breaks a promise is refused by that promise."""

import itertools
import re

import pytest
import torch
from torch import nn

from kinds_of_choice import CHOICES, Depth, Temperature
from supernet.errors import ArchitectureError
from supernet.nn import Domain
from supernet.testing import check_choice


@pytest.mark.parametrize("kind", CHOICES)
def test_each_kind_of_choice_holds_what_choices_promise(kind):
    make, *inputs = CHOICES[kind]
    check_choice(make, *inputs)


class UnderAnotherLabel(Temperature):
    """a domain is under the label of its choice"""

    def domain(self):
        return Domain("temperature", ("cold", "warm"), values=(0.5, 2))


class WithAChangingDomain(Temperature):
    """domain() returns the same each time"""

    count = itertools.count()

    def domain(self):
        return Domain(str(self.label), ("cold", "warm"), values=(0.5, next(self.count)))


class WithABranchTooFew(Depth):
    """there is a branch for each option, or none; but there are 2 branches for the 3 options"""

    def branches(self):
        return super().branches()[:2]


class WithBranchesElsewhere(Depth):
    """what is in branches is registered as children; but that of 1 deep, 2 deep, 3 deep is not"""

    def branches(self):
        return [[nn.Identity()] for _ in self.blocks]


class MakesWeightsAnew(Depth):
    """the parameters of resolve(1) are those of the choice, which a search trains; but 0.weight, 0.bias were made"""

    def resolve(self, decision):
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(self.domain().normalized(decision))))


class TakesAnything(Depth):
    """resolve refuses 'no such option', which is no decision, by ArchitectureError; but it did not"""

    def resolve(self, decision):
        try:
            return super().resolve(decision)
        except ArchitectureError:
            return nn.Identity()


class RefusesOtherwise(Temperature):
    """resolve refuses 'no such option', which is no decision, by ArchitectureError; but it raised KeyError"""

    def resolve(self, decision):
        return {0.5: nn.Identity(), 2: nn.ReLU()}[decision]


class ResolvesToNoModule(Temperature):
    """resolve(0.5) returns a module"""

    def resolve(self, decision):
        return self.domain().normalized(decision)


class OfAnotherSpaceEachTime(Temperature):
    """another that is made alike gives a space of the same fingerprint"""

    count = itertools.count()

    def __init__(self, label):
        super().__init__(label)
        self.coldest = -next(self.count)

    def domain(self):
        return Domain(str(self.label), ("cold", "warm"), values=(self.coldest, 2))


class LosesWeightsInCopies(Depth):
    """the network of {'depth': 1}, frozen from a copy, is that of the model"""

    def __deepcopy__(self, memo):
        return type(self)(*(nn.Linear(4, 4) for _ in self.blocks), label=self.label)


class DoesOtherwiseInASupernet(Depth):
    """the supernet runs the path {'depth': 1} as its frozen network does"""

    resolved = ()

    def resolve(self, decision):
        self.resolved = (*self.resolved, decision)
        again = self.resolved.count(decision) > 2
        return nn.Sequential(super().resolve(decision), nn.ReLU() if again else nn.Identity())


def faulty(kind):
    return (
        kind(label="depth")
        if issubclass(kind, Temperature)
        else kind(*(nn.Linear(4, 4) for _ in range(3)), label="depth")
    )


FAULTY = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Depth | Temperature)]


@pytest.mark.parametrize("kind", [kind for kind in FAULTY if kind not in (Depth, Temperature)])
def test_a_choice_that_breaks_a_promise_is_refused_by_that_promise(kind):
    with pytest.raises(AssertionError, match=re.escape(kind.__doc__)):
        check_choice(lambda: faulty(kind), torch.ones(2, 4))
