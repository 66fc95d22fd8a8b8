"""LayerChoice and InputChoice, as a user writes them."""

import copy

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace, replace_layer_choice
from supernet.errors import ChoiceError, SpaceError, UnresolvedChoiceError


def linear():
    return nn.Linear(2, 2)


def test_a_layer_choice_is_a_container_of_its_candidates():
    a, b, c = linear(), linear(), linear()
    choice = LayerChoice({"a": a, "b": b})
    assert list(choice.named_children()) == [("a", a), ("b", b)]
    assert (len(choice), list(choice), choice.names) == (2, [a, b], ["a", "b"])
    assert "a" in choice
    assert "c" not in choice
    assert choice["b"] is b
    assert choice[-1] is b
    assert choice[0:1] == [a]
    choice["c"] = c
    choice[0] = c2 = linear()
    assert list(choice) == [c2, b, c]
    del choice["b"]
    del choice[0]
    assert choice.names == ["c"]


def test_candidates_in_a_list_are_named_by_position():
    assert LayerChoice([linear(), linear()]).names == ["0", "1"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LayerChoice([]), "at least one candidate, but its candidates are empty"),
        (lambda: LayerChoice({}), "at least one candidate"),
        (lambda: LayerChoice({"a.b": linear()}), r"text without a dot, not 'a\.b'; rename it"),
        (lambda: LayerChoice({"": linear()}), "not ''; rename it"),
        (lambda: LayerChoice({3: linear()}), "not 3; rename it"),
        (lambda: LayerChoice({"forward": linear()}), "called 'forward', for that is one of its attributes; rename"),
        (lambda: LayerChoice({"names": linear()}), "called 'names'"),
        (lambda: LayerChoice({"keys": linear()}), "called 'keys'"),  # nn.ModuleDict's
        (lambda: LayerChoice({"training": linear()}), "called 'training'"),
        (lambda: LayerChoice({"a": torch.relu}), "candidate 'a' is not an nn.Module but"),
        (lambda: LayerChoice([linear()] * 2), "'0' and '1' are one and the same module; give a copy"),
        (lambda: LayerChoice([linear()], label=""), "a label is a text that is not empty, not ''"),
        (lambda: LayerChoice([linear(), linear()], prior=[1.0]), "one number for each of 2 candidates, not 1"),
        (lambda: LayerChoice([linear(), linear()], prior=[0.5, 0.4]), r"sums to 1, not to 0\.9"),
        (lambda: LayerChoice([linear(), linear()], prior=[1.5, -0.5]), "between 0 and 1"),
        (lambda: InputChoice(), r"needs n_candidates .* or choose_from"),
        (lambda: InputChoice(0), "n_candidates is a number from 1 on, not 0"),
        (lambda: InputChoice(True), "n_candidates is a number from 1 on, not True"),
        (lambda: InputChoice(2, 3), r"from 1 to 2 \(n_candidates\), not 3"),
        (lambda: InputChoice(2, 0), "n_chosen is None or a number"),
        (lambda: InputChoice(2, 1, "max"), "one of sum, mean, concat, none, not 'max'"),
        (lambda: InputChoice(3, choose_from=["a", "b"]), "n_candidates is 3, but choose_from has 2 names"),
        (lambda: InputChoice(choose_from=["a", "a"]), "names an input twice"),
        (lambda: InputChoice(3, 2, prior=[1.0, 0.0, 0.0]), "2 inputs are to be chosen, but the prior allows fewer"),
    ],
)
def test_a_choice_that_cannot_mean_anything_is_refused(make, match):
    with pytest.raises(ChoiceError, match=match):
        make()


def test_each_candidate_name_that_is_taken_fits_a_module_dict():
    names = ["conv_3x3", "0", "none", "skip-connect", "ü", "a b", "length"]
    choice = LayerChoice({name: linear() for name in names})
    assert list(nn.ModuleDict(choice.named_children())) == names


def test_candidates_of_a_choice_with_a_prior_cannot_be_added_or_taken():
    choice = LayerChoice([linear(), linear()], prior=[0.2, 0.8], label="op")
    with pytest.raises(ChoiceError, match=r"'op' .* has a prior"):
        choice["new"] = linear()
    with pytest.raises(ChoiceError, match=r"'op' .* has a prior"):
        del choice[0]
    choice[0] = linear()


def test_an_input_choice_shows_what_a_replacement_needs_to_know():
    choice = InputChoice(choose_from=["left", "right"], n_chosen=None, reduction="mean", label="join")
    seen = choice.n_candidates, choice.n_chosen, choice.reduction, choice.choose_from, choice.label, choice.key
    assert seen == (2, None, "mean", ["left", "right"], "join", "join")
    assert (InputChoice(3).n_candidates, InputChoice(3).n_chosen, InputChoice(3).reduction) == (3, 1, "sum")


def test_a_model_with_choices_does_not_run_and_says_why():
    unseen = nn.Sequential(LayerChoice({"conv": linear(), "pool": linear()}))
    with pytest.raises(UnresolvedChoiceError, match=r"between conv, pool has not been decided.*trainer.*freeze\("):
        unseen(torch.zeros(1, 2))
    SearchSpace(unseen)
    with pytest.raises(UnresolvedChoiceError, match=r"LayerChoice '0' \(conv, pool\)"):
        unseen(torch.zeros(1, 2))
    with pytest.raises(UnresolvedChoiceError, match="InputChoice 'join'"):
        InputChoice(2, label="join")([torch.zeros(1)] * 2)


# --- labels ------------------------------------------------------------------------------------------------


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList(nn.ModuleDict({"op": LayerChoice([linear(), linear()])}) for _ in range(2))


def test_an_unlabelled_choice_is_known_by_its_path_from_when_it_is_seen():
    model = Cells()
    choice = model.cells[1]["op"]
    assert choice.label is None
    assert list(SearchSpace(model)) == ["cells.0.op", "cells.1.op"]
    assert choice.label == choice.key == "cells.1.op"


def test_a_label_by_path_is_the_same_after_copying_and_replacing():
    model = Cells()
    SearchSpace(model)
    assert list(SearchSpace(copy.deepcopy(model))) == ["cells.0.op", "cells.1.op"]
    assert [label for label, _ in replace_layer_choice(model, lambda choice: choice[0])] == ["cells.0.op", "cells.1.op"]
    assert list(SearchSpace(model)) == ["cells.0.op", "cells.1.op"]


def test_a_nested_choice_has_its_path_through_the_candidate():
    model = nn.Sequential(LayerChoice({"a": LayerChoice([linear(), linear()]), "b": linear()}))
    assert list(SearchSpace(model)) == ["0", "0.a"]


def test_one_module_in_two_places_is_one_choice():
    choice = LayerChoice([linear(), linear()])
    assert list(SearchSpace(nn.Sequential(choice, choice))) == ["0"]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            lambda: nn.Sequential(LayerChoice([linear()]), LayerChoice([linear()], label="0")),
            "'0' names two choices: the choices at '0' and '1'.* give each a label",
        ),
        (
            lambda: nn.Sequential(
                LayerChoice({"a": linear(), "b": linear()}, label="x"), LayerChoice({"a": linear()}, label="x")
            ),
            "'0' and '1' share the label 'x'.* candidates a, b and candidates a; make them the same, or",
        ),
        (
            lambda: nn.Sequential(LayerChoice([linear(), linear()], label="x"), InputChoice(2, label="x")),
            "share the label 'x'",
        ),
        (lambda: nn.Sequential(InputChoice(3, 1, label="x"), InputChoice(3, 2, label="x")), "1 of 3 inputs and 2 of 3"),
        (lambda: LayerChoice([linear()]), "the model itself is .* give it a label, or wrap it"),
    ],
)
def test_labels_that_mean_two_things_are_refused(model, match):
    with pytest.raises(SpaceError, match=match):
        SearchSpace(model())


def test_two_copies_of_a_seen_part_are_two_decisions():
    cell = nn.ModuleDict({"op": LayerChoice([linear(), linear()])})
    SearchSpace(cell)
    assert list(SearchSpace(nn.Sequential(cell, copy.deepcopy(cell)))) == ["0.op", "1.op"]
