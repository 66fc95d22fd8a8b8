"""Choices between layers are put over the layers of a model, and taken back."""

import pytest
import torch
from tests.nn.networks_of_others import AttentionBlock, mobilenet
from torch import nn

from supernet import LayerChoice, SearchSpace, Supernet, choose, elastic, freeze, restore
from supernet.errors import ChoiceError


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(AttentionBlock(8, 2), AttentionBlock(8, 2))


X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def test_the_layer_itself_is_a_candidate_with_its_weights():
    model = blocks()
    expected, layer = model(X), model[1].mlp
    choose(model, "*.mlp", {"linear": lambda: nn.Linear(8, 8), "skip": nn.Identity})
    assert [type(m) for m in (model[0].mlp, model[1].mlp)] == [LayerChoice, LayerChoice]
    assert model[1].mlp.names == ["original", "linear", "skip"]
    assert model[1].mlp["original"] is layer
    space = SearchSpace(model)
    assert space.size == 9
    torch.testing.assert_close(freeze(model, {"0.mlp": "original", "1.mlp": "original"})(X), expected)


def test_a_candidate_of_the_originals_name_gives_way_to_the_original():
    model = choose(blocks(), nn.GELU, {"gelu": nn.GELU, "relu": nn.ReLU}, original="gelu")
    assert model[0].mlp[1].names == ["gelu", "relu"]


def test_a_label_makes_all_places_one_decision():
    model = choose(blocks(), "*.mlp.1", {"relu": nn.ReLU}, label="activation")
    assert SearchSpace(model).size == 2
    assert isinstance(freeze(model, {"activation": "relu"})[1].mlp[1], nn.ReLU)


def test_candidates_are_made_for_each_layer_in_its_dtype_and_form():
    model = blocks().double().eval()
    choose(model, "*.norm1", {"rms": lambda norm: nn.RMSNorm(norm.normalized_shape), "shared": nn.LayerNorm(8)})
    for block in model:
        assert block.norm1["rms"].weight.dtype == torch.float64
        assert not block.norm1["rms"].training
    assert model[0].norm1["shared"] is not model[1].norm1["shared"]


def test_a_layer_that_stands_at_several_places_is_one_choice():
    relu = nn.ReLU()
    model = choose(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), "1", {"tanh": nn.Tanh})
    assert model[1] is model[3]
    assert type(freeze(model, {"1": "tanh"})[3]) is nn.Tanh


def test_elastic_widths_and_choices_between_layers_stand_in_one_model():
    model = mobilenet()
    state = model.state_dict()
    classes = [type(m) for m in model.modules()]
    x = torch.randn(2, 3, 16, 16)
    elastic(model, ratios=[0.5, 1.0], example=x)
    choose(model, nn.Hardswish, {"relu": nn.ReLU})
    supernet = Supernet(model).eval()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        architecture = supernet.space.sample(generator)
        torch.testing.assert_close(freeze(model, architecture)(x), supernet(x, architecture))
    restore(model)
    assert SearchSpace(model).size > 1  # another trainer may take it
    restore(model, original=True)
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == list(state)


def test_mistakes_are_refused_and_leave_the_model_as_it_was():
    model = blocks()
    for where, candidates, message in (
        ("*.attention", {"skip": nn.Identity}, "near are"),
        ("*", {"skip": nn.Identity}, "the model itself"),
        ("0*", {"skip": nn.Identity}, "'0' around it"),
        ("*.mlp", {"three": 3}, "candidate 'three' is neither a module nor makes one"),
        ("*.mlp", {"forward": nn.Identity}, "cannot have a candidate called 'forward'"),
    ):
        with pytest.raises(ChoiceError, match=message):
            choose(model, where, candidates)
        assert not [m for m in model.modules() if isinstance(m, LayerChoice)]
    choose(model, "0.mlp", {"skip": nn.Identity})
    with pytest.raises(ChoiceError, match="already"):
        choose(model, "0.mlp", {"linear": lambda: nn.Linear(8, 8)})
