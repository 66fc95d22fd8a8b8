"""Our trainers hold what every trainer promises, and one that breaks a promise is refused by that promise."""

import random
import re
from functools import partial

import pytest
import torch
from searches import KINDS, Net, PathTrainer, loss, search
from torch import nn

import programs  # noqa: F401  # whose processes have imported all
from supernet import BaseOneShotTrainer, DartsTrainer, InputChoice, replace_input_choice, replace_layer_choice
from supernet.execution import LayerSlot
from supernet.testing import check_trainer
from supernet.testing.trainers import _check_processes

SMALL = {"num_epochs": 2, "batch_size": 12}  # 2 steps an epoch, 4 where both parts are gone over


SAME_CLASS = ("lean", "learned loss", "path")  # of which another stands among the quick tests


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SAME_CLASS else kind for kind in KINDS]
)
def test_each_of_our_trainers_holds_what_trainers_promise(kind):
    check_trainer(partial(search, kind, **SMALL))


# --- a trainer that has nothing of ours --------------------------------------------------------------------


class Lone(BaseOneShotTrainer):
    """Trains the first candidates, and names an architecture at random."""

    def __init__(self):
        self.model = Net(norm=False)
        replace_layer_choice(self.model, lambda choice: nn.Sequential(*choice.children()))
        replace_input_choice(self.model, First)
        self.drawn = None

    def fit(self):
        X, y = torch.randn(8, 1, 5, 5), torch.randint(3, (8,))
        optimizer = torch.optim.SGD(self.model.head.parameters(), 0.1)
        loss(self.model.head(X.new_zeros(8, 4)), y).backward()
        optimizer.step()
        self.drawn = int(torch.randint(2, ()))

    def export(self):
        return {"stem": "conv", "act": 0, "skip": self.drawn}


class First(nn.Module):
    def __init__(self, choice):
        super().__init__()
        assert isinstance(choice, InputChoice)

    def forward(self, inputs):
        return inputs[0]


class Wandering(Lone):
    def fit(self):
        super().fit()
        with torch.no_grad():
            self.model.head.weight += random.SystemRandom().random()


class Incomplete(Lone):
    def export(self):
        return {"stem": "deep"}


def test_a_trainer_that_has_nothing_of_ours_is_checked_too():
    check_trainer(Lone)
    with pytest.raises(AssertionError, match=r"the same seed gives the same result.*weight.head.weight"):
        check_trainer(Wandering)
    with pytest.raises(AssertionError, match=r"export\(\) returns an architecture.*leaves 'skip' open"):
        check_trainer(Incomplete)


# --- trainers that break one promise each ------------------------------------------------------------------


class OwnSteps(DartsTrainer):
    """A trainer whose defects need a number that counts its steps."""

    steps = 0  # of the class, where no checkpoint looks

    def __init__(self, *args, **options):
        type(self).steps = 0
        super().__init__(*args, **options)


class ExportMovesWeights(DartsTrainer):
    """export() moves nothing; but these differ: weight.head.bias"""

    def export(self, epoch=None):
        if self.epoch == self.num_epochs:
            self.model.head.bias.data += 1
        return super().export(epoch)


class ExportMovesAlphas(DartsTrainer):
    """export() moves nothing; but these differ: state.relaxation"""

    def export(self, epoch=None):
        next(iter(self.alphas.values())).data += 1e-3
        return super().export(epoch)


class ExportDraws(DartsTrainer):
    """export() leaves global random numbers as they are; but these differ: torch"""

    def export(self, epoch=None):
        torch.rand(1)
        return super().export(epoch)


class ExportsInTurn(OwnSteps):
    """export() twice returns the same"""

    def export(self, epoch=None):
        type(self).steps += 1
        return {**super().export(epoch), "skip": [self.steps % 2]}

    def derive(self):
        return None


class RecordsAnotherArchitecture(DartsTrainer):
    """the architecture of the last record is what export() returns"""

    def derive(self):
        return {"stem": "deep", "act": "1", "skip": [1]}

    def export(self, epoch=None):
        return {"stem": "conv", "skip": [1]}


class WithNoise(DartsTrainer):
    """the same seed gives the same result, bit for bit"""

    def train_step(self, *batches):
        super().train_step(*batches)
        self.model.head.bias.data += random.SystemRandom().random()


class LeavesOtherRandomNumbers(DartsTrainer):
    """a search leaves global random numbers as they are; but these differ: torch"""

    def fit(self, resume=None):
        super().fit(resume)
        torch.rand(1)


class ForgetsInAnEpoch(OwnSteps):
    """a search that is stopped in the middle of an epoch and goes on ends as one that never was"""

    def train_step(self, *batches):
        if self.step == 0:
            type(self).steps = 0
        type(self).steps += 1
        super().train_step(*batches)
        self.model.head.bias.data += self.steps


class ForgetsBetweenEpochs(OwnSteps):
    """a search that is stopped at the end of an epoch and goes on ends as one that never was"""

    def train_step(self, *batches):
        type(self).steps += 1
        super().train_step(*batches)
        self.model.head.bias.data += self.steps


class OwnEpochs(DartsTrainer):
    """each step stands in one_step()"""

    def train_epoch(self):
        batches = zip(self.train_part.batches(self.epoch, 0), self.valid_part.batches(self.epoch, 0), strict=False)
        for train, valid in batches:
            self.train_step(*train, *valid)
            self.step += 1


class WithAlpha(LayerSlot):
    def __init__(self, *args):
        super().__init__(*args)
        self.alpha = nn.Parameter(torch.zeros(2))


class AlphasInTheModel(DartsTrainer):
    """what trains the architecture is not among the model's parameters; but stem"""

    def build_supernet(self, layer, *rest):
        super().build_supernet(WithAlpha, *rest)


class AlphasInTheOptimizer(DartsTrainer):
    """the optimizer of the weights does not train the architecture; but it has stateful().relaxation"""

    def fit(self, resume=None):
        self.given_optimizer.add_param_group({"params": list(self.alphas.values())})
        super().fit(resume)


class LeavesWeightsFrozen(DartsTrainer):
    """leaves training form and requires_grad as they were"""

    def train_architecture(self, *batches):
        weights = [p for p in self.weights if p.requires_grad]
        for p in weights:
            p.requires_grad_(False)
        super().train_architecture(*batches)
        for p in weights:
            p.requires_grad_(True)


class LeavesWeightsShifted(DartsTrainer):
    """leaves the weights as the last step of their optimizer did; but these differ: head.bias"""

    def train_architecture(self, *batches):
        self.model.head.bias.data += 1
        super().train_architecture(*batches)
        self.model.head.bias.data -= 1


class SwallowsErrors(DartsTrainer):
    """an error in pass 1 of 2 of a step ends the search; but it was swallowed"""

    def train_architecture(self, *batches):
        try:
            super().train_architecture(*batches)
        except Exception:
            self.model.zero_grad()


class LeavesOtherModules(DartsTrainer):
    """an error while the supernet is built leaves the model as it was written"""

    def build_supernet(self, *how):
        try:
            super().build_supernet(*how)
        except Exception:
            replace_layer_choice(self.model, lambda choice: nn.Sequential(*choice.children()))
            raise


FAULTY = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, DartsTrainer)]
FAULTY = [kind for kind in FAULTY if kind not in (DartsTrainer, OwnSteps)]


@pytest.mark.parametrize("kind", FAULTY)
def test_a_trainer_that_breaks_a_promise_is_refused_by_that_promise(kind, monkeypatch):
    monkeypatch.setitem(KINDS, "faulty", (kind, {"arc_learning_rate": 0.05}))
    with pytest.raises(AssertionError, match=re.escape(kind.__doc__)):
        check_trainer(partial(search, "faulty", **SMALL))


# --- several processes -------------------------------------------------------------------------------------


class PathOfItsOwn(PathTrainer):
    """A trainer in which each process draws paths of its own."""

    def decisions(self):
        return self.space.draw(torch.Generator().manual_seed(2 * self.global_step + self.fabric.global_rank))

    def export(self):
        return {"stem": "conv", "skip": 0}


def path_of_its_own(**options):
    KINDS["faulty"] = PathOfItsOwn, {}
    return search("faulty", **SMALL, **options)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in ("path", "proxyless")]


@pytest.mark.parametrize("kind", ["path", "proxyless", *SLOW])
def test_all_processes_of_our_trainers_run_one_path(kind):
    _check_processes(partial(search, kind, **SMALL), 2)


def test_processes_that_run_paths_of_their_own_are_refused():
    with pytest.raises(AssertionError, match=r"run the same paths.*in process 1 these are others.*plan 0\.stem"):
        check_trainer(path_of_its_own, processes=2)
