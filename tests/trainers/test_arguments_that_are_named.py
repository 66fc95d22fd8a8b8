"""An argument that cannot be is refused by its name, with what to give instead, where it is given."""

import inspect

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import BilevelTrainer, DartsTrainer, LayerChoice, ProxylessTrainer
from supernet.errors import TrainingError
from supernet.relaxations import Softmax
from supernet.trainers import Callback
from supernet.training.config import FabricConfig, TrainingConfig
from supernet.training.metrics import Meter

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Fair(BilevelTrainer):
    def __init__(self, *task, **options):
        config = TrainingConfig.of(batch_size=4, progress=False, device="cpu")
        super().__init__(*task, relaxation=Softmax, terms=[], config=config, **options)


class FairToo(Fair):
    pass


class Adds(BilevelTrainer):
    """Takes terms, and has one more."""

    def __init__(self, *task, **options):
        terms = [*options.pop("terms", ()), lambda *_: 0.0]
        super().__init__(*task, relaxation=Softmax, terms=terms, **options)


def trainer_of(kind=Fair, **options):
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice({"x": nn.Linear(4, 4), "y": nn.Identity()}, label="a"), nn.Linear(4, 2))
    data = TensorDataset(X, (X.sum(1) > 0).long())
    return kind(model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.1), 1, data, **options)


@pytest.mark.parametrize(
    ("kind", "sets", "name", "value"),
    [
        (Fair, "Fair", "terms", []),
        (FairToo, "Fair", "relaxation", Softmax),
        (Fair, "Fair", "config", TrainingConfig()),
        (DartsTrainer, "DartsTrainer", "relaxation", Softmax),
        (ProxylessTrainer, "ProxylessTrainer", "architecture_optimizer", torch.optim.Adam),
        (Adds, "Adds", "relaxation", Softmax),
    ],
)
def test_what_a_constructor_sets_itself_is_neither_shown_nor_taken(kind, sets, name, value):
    assert name not in inspect.signature(kind).parameters
    with pytest.raises(TypeError, match=f"^{sets} sets {name} itself; leave it out$"):
        trainer_of(kind, **{name: value})


def test_what_a_constructor_takes_out_of_its_options_is_shown_and_taken():
    assert "terms" in inspect.signature(Adds).parameters
    assert len(trainer_of(Adds, terms=[lambda *_: 0.0]).terms) == 2
    assert {"unrolled", "terms", "batch_size"} <= inspect.signature(DartsTrainer).parameters.keys()
    assert trainer_of(Fair, batch_size=8).config.batch_size == 8


def test_an_error_of_such_words_from_further_inside_is_passed_on():
    def loss(output, target):
        return nn.functional.cross_entropy(output, target, **{"reduction": "mean"}, **kwargs)

    kwargs = {"reduction": "sum"}

    class Losing(Fair):
        def __init__(self, *task, **options):
            super().__init__(*task, **options)
            loss(torch.ones(1, 2), torch.zeros(1))

    with pytest.raises(TypeError, match="cross_entropy"):
        trainer_of(Losing)


def test_a_misspelt_argument_that_is_needed_is_named():
    with pytest.raises(TypeError, match=r"^BilevelTrainer takes no argument 'relaxaton'; did you mean 'relaxation'"):
        trainer_of(BilevelTrainer, relaxaton=Softmax)
    with pytest.raises(TypeError, match=r"^BilevelTrainer: missing a required .*'relaxation'$"):
        trainer_of(BilevelTrainer)


def test_a_config_names_the_option_that_it_does_not_know():
    with pytest.raises(TypeError, match=r"^TrainingConfig takes no argument 'batch_sze'; did you mean 'batch_size'"):
        TrainingConfig(batch_sze=3)
    with pytest.raises(TypeError, match=r"'precision' in its fabric; give TrainingConfig.of\(precision=...\), which"):
        TrainingConfig(precision="bf16-mixed")
    with pytest.raises(TypeError, match=r"^FabricConfig takes no argument 'precison'; did you mean 'precision'"):
        FabricConfig(precison="bf16-mixed")
    assert "batch_size" in inspect.signature(TrainingConfig).parameters


class Boom(Callback):
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([print], "callbacks has <built-in function print>, which is no supernet.trainers.Callback; let a class"),
        ([Boom], r"callbacks has the class Boom; give one that is made, Boom\(...\)"),
        (print, r"callbacks is a list, not <built-in function print>; give \[print\]"),
        (Boom(), r"callbacks is a list, .*; give \[Boom\(...\)\]"),
    ],
)
def test_what_is_no_callback_is_refused_where_it_is_given(given, message):
    with pytest.raises(TrainingError, match=message):
        trainer_of(callbacks=given)


def test_seeds_are_those_that_torch_takes():
    """Each seed of 64 bits is one of its own, a negative one too."""
    alphas = {seed: trainer_of(seed=seed).alphas["a"].tolist() for seed in (-1, 1, -(2**63), 2**64 - 1)}
    assert len(set(map(str, alphas.values()))) == 3 and alphas[-1] == alphas[2**64 - 1]
    trainer_of(seed=-1).fit()
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(
            TrainingError, match=r"seed is a whole number of 64 bits, as torch takes them, not -?[0-9]+"
        ):
            trainer_of(seed=seed)


def test_a_metric_of_several_numbers_is_shown_by_its_shape():
    meter = Meter(lambda output, target: output, torch.device("cpu"))
    with pytest.raises(TrainingError, match=r"but 'metric' is of shape \(4, 2\)$"):
        meter.update(None, torch.ones(4, 2), torch.ones(4))
