"""What editors, `help` and `inspect` say of a choice's constructor is what it takes."""

import inspect

import pytest

from supernet import InputChoice, LayerChoice
from supernet.nn.choice import Choice


class Custom(LayerChoice):
    def __init__(self, candidates, *, depth: int = 3):
        super().__init__(candidates)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (LayerChoice, ["candidates", "label", "prior"]),
        (InputChoice, ["n_candidates", "n_chosen", "reduction", "absent", "choose_from", "label", "prior"]),
        (Custom, ["candidates", "depth"]),
        (Choice, ["label"]),
    ],
)
def test_the_signature_of_a_choice_is_that_of_its_constructor(choice, names):
    signature = inspect.signature(choice)
    assert set(signature.parameters) == set(names)
    assert list(signature.parameters) == list(inspect.signature(choice.__init__).parameters)[1:]


def test_defaults_kinds_and_annotations_are_in_the_signature():
    label = inspect.signature(LayerChoice).parameters["label"]
    assert (label.default, label.kind) == (None, inspect.Parameter.KEYWORD_ONLY)
    assert inspect.signature(Custom).parameters["depth"].annotation is int
