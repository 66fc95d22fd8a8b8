"""Our relaxations, and those of the docs, hold what relaxations promise; one that breaks a promise is refused by it."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet.relaxations import DecisionDistribution, EnasController, Gates, Relaxation, Softmax
from supernet.testing import check_relaxation

PAGE = (Path(__file__).parents[2] / "docs" / "custom_trainer.md").read_text()
DOCS = {"torch": torch, "F": nn.functional, "__name__": "custom_trainer"}
for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
    if "(Relaxation):" in block:
        exec(block, DOCS)

OURS = {
    "softmax": Softmax,
    "decisions": DecisionDistribution,
    "gates": Gates,
    "controller": partial(EnasController, lstm_size=4),
    "gdas": DOCS["GumbelMax"],
    "drnas": DOCS["DirichletMixture"],
}


@pytest.mark.parametrize("kind", OURS)
def test_each_relaxation_holds_what_relaxations_promise(kind):
    check_relaxation(OURS[kind])


class DrawsAnywhere(Softmax):
    """a relaxation draws from a generator of its own"""

    def plan(self, progress):
        return {label: torch.softmax(alpha + torch.rand(()), -1) for label, alpha in self.logits.items()}


class SumsToMore(Softmax):
    """the probabilities of all architectures sum to 1"""

    def log_prob(self, architecture):
        return super().log_prob(architecture) + 0.1


class DrawsWhenAsked(Softmax):
    """probabilities, log_prob and derive change nothing"""

    def derive(self):
        torch.rand((), generator=self.generator)
        return super().derive()


class TrainsByTheWeights(Softmax):
    """a step of the weights has no gradient of the plan"""

    def weights_plan(self, progress):
        return self.plan(progress)


class TrainsNothing(Softmax):
    """the gradient of log_prob reaches the parameters"""

    def plan(self, progress):
        return self.space.sample(self.generator)

    def log_prob(self, architecture):
        return 0 * super().log_prob(architecture) - torch.log(torch.tensor(float(self.space.size)))


class ForgetsItsDraws(DecisionDistribution):
    """a state brings back what is drawn from there on"""

    def set_extra_state(self, state):
        pass


class NamesTooFew(Softmax):
    """each option has a probability"""

    def probabilities(self):
        return {label: p_K[:-1] for label, p_K in super().probabilities().items()}


@pytest.mark.parametrize(
    "faulty",
    [
        *(DrawsAnywhere, SumsToMore, DrawsWhenAsked, TrainsByTheWeights, TrainsNothing, ForgetsItsDraws),
        NamesTooFew,
    ],
)
def test_a_broken_promise_is_named(faulty):
    with pytest.raises(AssertionError, match=re.escape(faulty.__doc__)):
        check_relaxation(faulty)


def test_what_is_no_relaxation_is_refused():
    with pytest.raises(AssertionError, match="a trainer makes a Relaxation; but it is"):
        check_relaxation(lambda space, **options: nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="does not define plan"):
        check_relaxation(Relaxation)
