"""Our relaxations, and those of the docs, hold what each promises; one that breaks a promise is refused by it."""

import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet.execution import Selection
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


class WithoutParameters(Softmax):
    """a relaxation has parameters to be trained"""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.requires_grad_(False)


class WithAWeightTooMany(Softmax):
    """plan(0.0) has for each choice what a supernet can run; but choice 'net.0.op' is given weights of shape (4,)"""

    def plan(self, progress):
        return {label: torch.cat([p_K, p_K[:1]]) for label, p_K in super().plan(progress).items()}


class LeavesOutAChoice(Softmax):
    """plan(0.0) has for each choice what a supernet can run; but inner is left out"""

    def plan(self, progress):
        return {label: p_K for label, p_K in super().plan(progress).items() if label != "inner"}


class BreaksAtTheEnd(Softmax):
    """plan(1.0) has for each choice what a supernet can run; but the weights of net.0.op"""

    def plan(self, progress):
        return {label: p_K / torch.tensor(1.0 - progress) for label, p_K in super().plan(progress).items()}


class TrainsInTheWeightsStep(Softmax):
    """weights_plan(0.0) has no gradient"""

    def weights_plan(self, progress):
        return self.plan(progress)


class WithAnotherGradient(Softmax):
    """the gradient through plan(0.0) is that of finite differences"""

    def plan(self, progress):
        return {label: p_K + (p_K - p_K.detach()) for label, p_K in super().plan(progress).items()}


class WithAnInfiniteGradient(Softmax):
    """the gradient through plan(0.0) is finite"""

    def plan(self, progress):
        return {label: p_K + (p_K - p_K.detach()).abs().sqrt() for label, p_K in super().plan(progress).items()}


class DrawsFromGlobalNumbers(DecisionDistribution):
    """plans are drawn from the relaxation's own generator; but torch has moved"""

    def plan(self, progress):
        return self.space.sample()


class DrawsByChance(DecisionDistribution):
    """two relaxations of one seed give the same plans"""

    def plan(self, progress):
        return self.space.sample(torch.Generator().manual_seed(random.SystemRandom().randrange(2**32)))


class DrawsWhereItIsAsked(DecisionDistribution):
    """probabilities(), log_prob() and derive() draw nothing; but state"""

    def probabilities(self):
        self.sample()
        return super().probabilities()


class KnowsSomeProbabilities(Softmax):
    """probabilities() are of each choice one for each option; but they are of net.0.op alone"""

    def probabilities(self):
        return {"net.0.op": super().probabilities()["net.0.op"]}

    def plan(self, progress):
        return Softmax.probabilities(self)


class WithProbabilitiesOfAnotherSum(Softmax):
    """probabilities() of one option sum to 1"""

    def probabilities(self):
        return {label: p_K / 2 for label, p_K in super().probabilities().items()}


class WithMoreThanAllProbability(Softmax):
    """the probabilities of all architectures sum to 1; but they sum to 2"""

    def log_prob(self, architecture):
        return super().log_prob(architecture) + torch.tensor(2.0, dtype=torch.float64).log()


class WithoutAGradientOfProbabilities(Softmax):
    """log_prob() is differentiable in the parameters"""

    def log_prob(self, architecture):
        return super().log_prob(architecture).detach()


class DerivesTheLeastProbable(Softmax):
    """derive() is of a single choice the decision of the largest log_prob"""

    def derive(self):
        return min(self.space.enumerate(), key=lambda architecture: float(self.log_prob(architecture).detach()))


class ForgetsItsGenerator(DecisionDistribution):
    """a relaxation that has loaded the state of another gives the same plans from then on"""

    def set_extra_state(self, state):
        pass


class ForgetsWhatItHasDrawn(Gates):
    """a relaxation that has loaded the state of another gives the same plans from then on"""

    def set_extra_state(self, state):
        super().set_extra_state({**state, "drawn": {}})


class SavesWhatCannotBe(Softmax):
    """a checkpoint can hold what state_dict() returns"""

    def get_extra_state(self):
        return {**super().get_extra_state(), "plan": self.plan}


class SelectsNothingOfTheSpace(Softmax):
    """plan(0.0) has for each choice what a supernet can run; but choice 'net.0.op' is to run 2 options by 1 weights"""

    def plan(self, progress):
        return {label: Selection((0, 1), p_K[:1]) for label, p_K in super().plan(progress).items()}


class TrainsNothing(Softmax):
    """log_prob() is differentiable in the parameters"""

    def plan(self, progress):
        return self.space.sample(self.generator)

    def log_prob(self, architecture):
        return -torch.log(torch.tensor(float(self.space.size), dtype=torch.float64))


class IsNotTrainedThroughItsPlan(Softmax):
    """the gradient of plan reaches the parameters"""

    def plan(self, progress):
        torch.rand((), generator=self.generator)  # so that finite differences are not asked for
        return {k: p_K.detach().requires_grad_(torch.is_grad_enabled()) for k, p_K in super().plan(progress).items()}


FAULTY = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, nn.Module)]


@pytest.mark.parametrize("kind", [kind for kind in FAULTY if kind not in (*OURS.values(), Relaxation, EnasController)])
def test_a_relaxation_that_breaks_a_promise_is_refused_by_that_promise(kind):
    with pytest.raises(AssertionError, match=re.escape(kind.__doc__)):
        check_relaxation(kind)


def test_what_is_no_relaxation_is_refused():
    with pytest.raises(AssertionError, match="a trainer makes a Relaxation; but it is"):
        check_relaxation(lambda space, **options: nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="does not define plan"):
        check_relaxation(Relaxation)
