"""What cannot be made elastic is refused by name, and leaves the model as it was."""

import copy

import pytest
import torch
from tests.nn.networks_of_others import VisionTransformer, mobilenet, resnet18
from torch import nn

import supernet.nn
from supernet import Supernet, ValueChoice, choose, elastic, freeze, restore
from supernet.errors import ChoiceError

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def refused(model, *args, **kwargs):
    """Return the message, after looking whether the model is as it was."""
    classes, state = [type(m) for m in model.modules()], copy.deepcopy(model.state_dict())
    attributes = [dict(vars(m)) for m in model.modules()]
    with pytest.raises(ChoiceError) as caught:
        elastic(model, *args, **kwargs)
    assert [type(m) for m in model.modules()] == classes
    assert [set(vars(m)) for m in model.modules()] == [set(each) for each in attributes]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    return str(caught.value)


def test_a_pattern_that_matches_nothing_names_modules_near_it():
    message = refused(resnet18(), {"layer1.0.convv1": {"out_channels": [4, 8]}}, example=IMAGE)
    assert "no module of this model is at 'layer1.0.convv1'; near are: 'layer1.0.conv1'" in message
    assert "no module of this model is a LSTM" in refused(resnet18(), {nn.LSTM: {"hidden_size": [1]}}, example=IMAGE)


def test_partners_of_a_sum_with_other_candidates_are_named_with_where_they_meet():
    choices = {"layer1.0.conv2": {"out_channels": [4, 8]}, "layer1.1.conv2": {"out_channels": [2, 8]}}
    message = refused(resnet18(), choices, example=IMAGE)
    assert message.startswith("'layer1.0.conv2' and 'layer1.1.conv2' have one width, for they meet at ")
    assert "add_ in layer1.1" in message
    assert "candidates are [4, 8] and [2, 8]" in message


def test_partners_of_a_sum_with_the_same_candidates_have_one_choice():
    choices = {"layer1.0.conv2": {"out_channels": [4, 8]}, "layer1.1.conv2": {"out_channels": [4, 8]}}
    model = elastic(resnet18(), choices, example=IMAGE)
    assert {m.label for m in model.modules() if isinstance(m, ValueChoice)} == {"layer1.0.conv2.out_channels"}


def test_one_choice_over_several_layers_is_one_decision():
    width = ValueChoice([4, 8], label="inner")
    model = elastic(resnet18(), {"layer1.*.conv1": {"out_channels": width}}, example=IMAGE)
    network = freeze(model, {"inner": 4})
    assert network.layer1[0].conv1.out_channels == network.layer1[1].conv1.out_channels == 4


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([4, 16, 8], "out_channels of 'conv1' cannot be 16, for the model has 8 there"),
        ([4, 6], "out_channels of 'conv1' is 8, which must be among its candidates"),
        ([4, 4, 8], "no two the same, not [4, 4, 8]"),
        ([0, 8], "out_channels of 'conv1' is a whole number above 0, not 0"),
        ([4.5, 8], "out_channels of 'conv1' is a whole number above 0, not 4.5"),
        ([], "candidates are empty"),
        (8, "takes a list of values"),
    ],
)
def test_candidates_that_are_no_widths_of_the_layer_are_refused(candidates, message):
    assert message in refused(resnet18(), {"conv1": {"out_channels": candidates}}, example=IMAGE)


def test_heads_are_taken_whole():
    message = refused(VisionTransformer(), {"blocks.0.attn": {"num_heads": [2, 3, 5]}}, example=IMAGE)
    assert "num_heads of 'blocks.0.attn' cannot be 5, for the model has 4 there" in message
    message = refused(VisionTransformer(), {"blocks.0.attn.qkv": {"out_features": [20, 48]}}, example=IMAGE)
    assert "out_features of 'blocks.0.attn.qkv' cannot be 20: its 48 go together in 4 units of 12" in message


def test_a_number_that_the_layer_does_not_have_is_named_with_those_that_it_has():
    message = refused(resnet18(), {"conv1": {"kernel_size": [1, 3]}}, example=IMAGE)
    assert "'conv1', a Conv2d, has no number 'kernel_size' that can be elastic; it has: out_channels" in message
    assert "depth is of an nn.Sequential or nn.ModuleList" in refused(
        resnet18(), {"conv1": {"depth": [1, 2]}}, example=IMAGE
    )
    assert "depth of 'layer1' cannot be 3" in refused(resnet18(), {"layer1": {"depth": [1, 2, 3]}}, example=IMAGE)
    twice = {"layer1": {"depth": [1, 2]}, "layer*1": {"depth": [2]}}
    assert "depth of 'layer1' is asked for twice" in refused(resnet18(), twice, example=IMAGE)
    assert "no widths that are split into heads" in refused(
        resnet18(), {"layer1": {"num_heads": [1, 2]}}, example=IMAGE
    )


class Spectral(nn.Module):
    """Mixes channels by what no rule follows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(torch.fft.fft(self.first(x)).real)


def test_what_goes_through_an_unknown_operation_keeps_its_width():
    x = torch.randn(3, 6)
    message = refused(Spectral(), {"first": {"out_features": [4, 8]}}, example=x)
    assert message.startswith("out_features of 'first' cannot be elastic: the width of 'first' stays, for ")
    assert "_fft_r2c in the model is not followed" in message
    assert "no width of this model can be elastic" in refused(Spectral(), ratios=[0.5, 1], example=x)


class Constant(nn.Module):
    """Has a width written down in its forward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x).view(-1, 8))


def test_a_width_that_is_written_down_in_a_forward_is_refused_with_the_mend():
    message = refused(nn.Sequential(Constant()), {"0.first": {"out_features": [4, 8]}}, example=torch.randn(3, 6))
    assert message.startswith("the model does not run with 0.first.out_features=4: in '0")
    assert "written down" in message
    assert "by -1" in message


class AddsItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.second(x + self.first(x))


def test_what_is_added_to_the_networks_input_keeps_its_width():
    message = refused(AddsItsInput(), {"first": {"out_features": [3, 6]}}, example=torch.randn(3, 6))
    assert "combined with an input of the network" in message


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, mask):
        return self.second(self.first(x) * mask[..., None])


def test_an_input_that_is_the_same_for_all_channels_hinders_none():
    x, mask = torch.randn(3, 6), torch.ones(3)
    model = elastic(Masked(), ratios=[0.5, 1], example=(x, mask))
    assert freeze(model, {"first.out_features": 3})(x, mask).shape == (3, 2)
    model = elastic(Masked(), ratios=[0.5, 1], example={"x": x, "mask": mask})
    assert freeze(model, {"first.out_features": 3})(x=x, mask=mask).shape == (3, 2)


def test_a_layer_that_does_not_run_is_named():
    model = AddsItsInput()
    model.unused = nn.Linear(6, 6)
    message = refused(model, {"unused": {"out_features": [3, 6]}}, example=torch.randn(3, 6))
    assert message == "'unused' does not run on the example, so nothing is known of what follows it"


def test_ratios_are_parts_with_the_whole_among_them():
    for ratios, message in (([0.5], "1 among them"), ([0.5, 2, 1], "above 0"), ([1, 0.5, 0.5], "occur twice")):
        assert message in refused(resnet18(), ratios=ratios, example=IMAGE)
    assert "either choices" in refused(resnet18(), example=IMAGE)
    assert "example is a batch" in refused(resnet18(), ratios=[0.5, 1], example=3)


def test_layers_that_are_excluded_keep_their_width_with_all_that_meet_them():
    model = elastic(mobilenet(), ratios=[0.5, 1], example=IMAGE, exclude=["2*", "0"])
    labels = {m.label for m in model.modules() if isinstance(m, ValueChoice)}
    assert labels == {
        f"{path}.out_channels" for path in ("3.conv.0.0", "3.conv.2.fc1", "4.conv.0.0", "4.conv.2.fc1", "4.conv.3")
    }


def test_a_model_is_made_elastic_once_and_before_its_layers_are_chosen_between():
    model = elastic(resnet18(), {"layer1": {"depth": [1, 2]}}, example=IMAGE)
    with pytest.raises(ChoiceError, match="depends on a choice already"):
        elastic(model, ratios=[0.5, 1], example=IMAGE)
    model = choose(resnet18(), "layer1.0.conv1", {"skip": nn.Identity})
    with pytest.raises(ChoiceError, match="depends on a choice already; name all layers in one call"):
        elastic(model, ratios=[0.5, 1], example=IMAGE)


class Recurrent(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), middle, nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        x = self.middle(x, x, x) if isinstance(self.middle, nn.MultiheadAttention) else self.middle(x)
        return self.last(x[0])


@pytest.mark.parametrize(
    "middle", [lambda: nn.LSTM(8, 8), lambda: nn.MultiheadAttention(8, 2)], ids=["LSTM", "MultiheadAttention"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # of which torch runs one in one operation
def test_what_modules_take_that_are_not_followed_keeps_its_width(middle, dtype):
    model = Recurrent(middle()).to(dtype)
    message = refused(model, {"first": {"out_features": [4, 8]}}, example=torch.randn(2, 3, 6, dtype=dtype))
    assert f"the width of 'first' stays, for {type(model.middle).__name__} at 'middle' is not followed" in message


def test_torchs_fast_path_does_not_read_the_whole_weights_of_an_elastic_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval(), torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = model(x)
        elastic(model, {"*.linear1": {"out_features": [8, 16]}}, example=x)
        narrow = {f"0.layers.{i}.linear1.out_features": 8 for i in range(2)}
        output = Supernet(model).eval()(x, narrow)
        torch.testing.assert_close(output, freeze(model, narrow)(x))
        assert not torch.allclose(output, expected, atol=1e-3)
    assert freeze(model, narrow)[0].layers[0].activation_relu_or_gelu == 1
    restore(model, original=True)
    assert model[0].layers[0].activation_relu_or_gelu == 1
    assert type(model[0].layers[0]) is nn.TransformerEncoderLayer


class Padded(nn.Module):
    """Whose shortcut is padded with zeros, as of the first ResNets for CIFAR."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.second(x) + nn.functional.pad(x, (2, 2)))


def test_partners_that_meet_in_part_keep_their_widths():
    for name, width in (("first", 4), ("second", 8)):
        message = refused(Padded(), {name: {"out_features": [width // 2, width]}}, example=torch.randn(3, 6))
        assert "only a part of the channels of 'second' and 'first' meet" in message or (
            "only a part of the channels of 'first' and 'second' meet" in message
        )


def test_weights_that_are_computed_are_named():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 2))
    message = refused(model, {"0": {"out_features": [4, 8]}}, example=torch.randn(3, 6))
    assert "'0', a ParametrizedLinear, has no number 'out_features' that can be elastic" in message
    elastic(model, {"1": {"out_features": [4, 8]}}, example=torch.randn(3, 6))


def test_a_model_is_as_it_was_after_an_error_in_the_middle_of_making_it_elastic(monkeypatch):
    def fails(*args, **kwargs):
        raise ChoiceError("of the norm")

    monkeypatch.setattr(supernet.nn.BatchNorm1d, "__init__", fails)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert refused(model, {"0": {"out_features": [4, 8]}}, example=torch.randn(3, 6)) == "of the norm"
    monkeypatch.undo()
    elastic(model, {"0": {"out_features": [4, 8]}}, example=torch.randn(3, 6))


class HasSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = [6, 6]
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale


def test_a_module_whose_attribute_would_be_lost_is_refused():
    model = nn.Sequential(nn.Linear(6, 6), HasSizes(), nn.Linear(6, 2))
    message = refused(model, {"0": {"out_features": [3, 6]}}, example=torch.randn(3, 6))
    assert message.startswith("'1', a HasSizes, cannot be made elastic, for it has an attribute 'sizes'")
