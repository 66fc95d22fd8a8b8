"""What is wrong with a relaxation, its first plan, or a term is said by name, before the model is touched."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import BilevelTrainer, LayerChoice, ProxylessTrainer
from supernet.errors import NonFiniteError, TrainingError
from supernet.relaxations import Relaxation, Softmax
from supernet.space import SearchSpace

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "same": nn.Identity()}, label="a"), nn.Linear(4, 2))


def trainer_of(kind=BilevelTrainer, model=None, **options):
    model = model or network()
    optimizer, data = SGD(model.parameters(), 0.1), TensorDataset(X, (X.sum(1) > 0).long())
    options = {"relaxation": Softmax, **options} if kind is BilevelTrainer else options
    loss = nn.functional.cross_entropy
    return kind(model, loss, None, optimizer, 1, data, batch_size=4, progress=False, device="cpu", **options)


class WithoutOptions(Softmax):
    def __init__(self, space):
        super().__init__(space)


class Planned(Relaxation):
    """Returns what it is told to as its plan."""

    def __init__(self, space, *, planned, **options):
        super().__init__(space, **options)
        self.planned = planned

    def plan(self, progress):
        return self.planned


def gives_nothing(*args, **kwargs):
    return None


def no_number(relaxation, plan, progress):
    pass


def is_nan(relaxation, plan, progress):
    return math.nan * relaxation.logits["a"].sum()


def is_detached(relaxation, plan, progress):
    return plan["a"].max().detach()


def is_a_float(relaxation, plan, progress):
    return 1 - plan["a"].max().item()


def is_zero(relaxation, plan, progress):
    return 0.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relaxation": None}, TrainingError, r"relaxation is a Relaxation class, or a function .*, not None"),
        ({"relaxation": Softmax(SearchSpace(network()))}, TrainingError, "not a Softmax that is .*relaxation=Softmax"),
        (
            {"relaxation": WithoutOptions},
            TrainingError,
            r"but WithoutOptions: got an unexpected keyword argument 'seed'; let a class .*\*\*options\)",
        ),
        ({"relaxation": gives_nothing}, TrainingError, "but gives_nothing returned None"),
        ({"relaxation": partial(Planned, planned=None)}, TrainingError, r"Planned.plan\(progress\) returned None; let"),
        (
            {"relaxation": partial(Planned, planned=[1])},
            TrainingError,
            r"Planned.plan\(progress\) returned a list; let",
        ),
        (
            {"relaxation": partial(Planned, planned={"a": torch.tensor([math.nan, 1.0])})},
            NonFiniteError,
            "gives choice 'a' weights that are not finite",
        ),
        ({"terms": is_zero}, TrainingError, r"terms is a list of functions .*; give \[is_zero\]"),
        ({"terms": [3]}, TrainingError, r"terms is a list of functions"),
        ({"terms": [no_number]}, TrainingError, "a term is one number, a tensor, but no_number returned None"),
        ({"terms": [partial(is_nan)]}, NonFiniteError, "the term is_nan is not finite"),
        ({"terms": [is_detached]}, TrainingError, "the term is_detached has no gradient, so it would move nothing"),
        ({"terms": [is_a_float]}, TrainingError, "the term is_a_float has no gradient, so it would move nothing"),
        ({"unrolled": "yes"}, TrainingError, "unrolled is True or False, not 'yes'"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_the_model_stays_as_it_was(options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        trainer_of(model=model, **options)
    assert isinstance(model[0], LayerChoice)


def test_a_term_that_becomes_nan_while_it_trains_is_named():
    def later(relaxation, plan, progress):
        return relaxation.logits["a"].sum() * (math.nan if progress > 0.4 else 1.0)

    with pytest.raises(NonFiniteError, match=r"the term .*later is not finite .* in epoch 1, step 3"):
        trainer_of(terms=[later]).fit()


def test_a_term_that_begins_with_nothing_is_one():
    def later(relaxation, plan, progress):
        return relaxation.logits["a"].square().sum() if progress > 0.4 else 0.0

    trainer_of(terms=[later, is_zero]).fit()


@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
def test_terms_of_a_reward_need_no_gradient(estimator):
    trainer_of(ProxylessTrainer, estimator=estimator, cost={"a": {"linear": 2.0, "same": 1.0}}).fit()
