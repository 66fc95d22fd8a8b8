"""What help() says of a trainer's arguments: each that it names is one, and means what it says."""

import inspect
import re

import pytest
from torch import nn

import supernet.trainers
from supernet import DartsTrainer, EnasTrainer, ProxylessTrainer, SupernetTrainer

KINDS = [
    kind
    for kind in (getattr(supernet.trainers, name) for name in supernet.trainers.__all__)
    if isinstance(kind, type) and issubclass(kind, SupernetTrainer)
]


def named(kind):
    """Return the names of the entries of "Args"."""
    (section,) = re.findall(r"^Args:\n((?: {4}.*\n?|\n)+)", inspect.getdoc(kind), re.MULTILINE)
    return {name for names in re.findall(r"^ {4}(\w+(?:, \w+)*):", section, re.MULTILINE) for name in names.split(", ")}


@pytest.mark.parametrize("kind", KINDS)
def test_each_argument_in_the_help_is_one_of_the_signature_and_what_is_needed_is_there(kind):
    parameters = inspect.signature(kind).parameters
    assert named(kind) <= parameters.keys()
    assert {name for name, p in parameters.items() if p.default is p.empty} <= named(kind)
    assert {"batch_size", "run_dir"} <= named(kind)


def test_the_help_of_darts_has_what_bilevel_trainers_take():
    assert {"unrolled", "terms", "memory", "warmup_epochs"} <= named(DartsTrainer)


def test_a_signature_has_what_all_bases_take_in_the_order_of_inheritance():
    assert {"warmup_epochs", "memory", "reward_function"} <= inspect.signature(ProxylessTrainer).parameters.keys()
    assert {"recalibration_samples", "score"} <= inspect.signature(EnasTrainer).parameters.keys()
    with pytest.raises(TypeError, match=r"ProxylessTrainer takes no argument 'warmup_epoch'; did you mean 'warmup_ep"):
        ProxylessTrainer(nn.Identity(), None, None, None, 1, None, warmup_epoch=1)
