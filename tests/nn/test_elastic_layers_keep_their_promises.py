"""What elastic layers promise: gates, autocast, attributes set later, signatures, and what freezing carries over."""

import copy
import inspect

import pytest
import torch
from torch import nn

import supernet
from supernet import DartsTrainer, Supernet, ValueChoice, freeze
from supernet.errors import ChoiceError, MixtureError, ReplacementError
from supernet.execution import Selection
from supernet.hub import Darts
from supernet.nn import Mutable, Sizes

sn = supernet.nn
WIDTHS = (2, 4)


def width():
    return ValueChoice(WIDTHS, label="w")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Called(nn.Module):
    """A layer under a name, called with what it is given."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        output = self.layer(*args)
        return output[0] if isinstance(output, tuple) else output


# The layer, its input as wide as the widest, and the dimension of that which is a width; None where it is none.
LAYERS = {
    "Linear, out": (lambda: sn.Linear(3, width()), randn(2, 3), None),
    "Linear, in": (lambda: sn.Linear(width(), 3), randn(2, 4), 1),
    "Conv1d": (lambda: sn.Conv1d(3, width(), 3), randn(2, 3, 5), None),
    "Conv2d, in": (lambda: sn.Conv2d(width(), 3, 1), randn(2, 4, 3, 3), 1),
    "Conv2d, depthwise": (lambda: sn.Conv2d(width(), width(), 3, groups=width()), randn(2, 4, 3, 3), 1),
    "Conv2d, dilation": (lambda: sn.Conv2d(3, 2, 3, padding=width(), dilation=width()), randn(2, 3, 5, 5), None),
    "Conv2d, transform": (
        lambda: sn.Conv2d(3, 2, width() + 1, padding=width() // 2, kernel_transform=True),
        randn(2, 3, 5, 5),
        None,
    ),
    "Conv3d": (lambda: sn.Conv3d(3, width(), 1), randn(2, 3, 2, 2, 2), None),
    "ConvTranspose2d": (lambda: sn.ConvTranspose2d(3, width(), 2), randn(2, 3, 3, 3), None),
    "BatchNorm1d": (lambda: sn.BatchNorm1d(width()), randn(3, 4), 1),
    "BatchNorm2d": (lambda: sn.BatchNorm2d(width()), randn(3, 4, 2, 2), 1),
    "BatchNorm3d": (lambda: sn.BatchNorm3d(width()), randn(3, 4, 2, 2, 2), 1),
    "LayerNorm": (lambda: sn.LayerNorm(width()), randn(3, 4), 1),
    "RMSNorm": (lambda: sn.RMSNorm(width()), randn(3, 4), 1),
    "GroupNorm": (lambda: sn.GroupNorm(2, width()), randn(3, 4, 2), 1),
    "Embedding": (lambda: sn.Embedding(5, width()), torch.tensor([0, 1, 2]), None),
    "Embedding, rows": (lambda: sn.Embedding(width(), 5), torch.tensor([0, 1]), None),
    "Attention, heads": (lambda: sn.Attention(8, width(), head_dim=2).heads, (randn(2, 3, 8),) * 3, -1),
    "MultiheadAttention": (lambda: sn.MultiheadAttention(4, width()), (randn(2, 3, 4),) * 3, None),
    "Dropout": (lambda: sn.Dropout(0.1 * width()), randn(2, 3), None),
    "Parameter": (lambda: sn.Parameter((3, width())), (), None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_gate_has_the_gradient_of_its_output_and_trains_only_weights_of_the_active_size(name):
    """The gates of two sizes have d<q, sum_k g_k o_k>/dg_k = <q, o_k>; the weights that of <q, o_active>."""
    make, x, dim = LAYERS[name]
    args = x if isinstance(x, tuple) else (x,)
    torch.manual_seed(0)
    model = Called(make()).double().eval()
    for p in model.parameters():
        nn.init.normal_(p)
    running = Supernet(model)

    def path(size):
        return running(*(a if dim is None else a.narrow(dim, 0, size * a.shape[dim] // 4) for a in args), {"w": size})

    def gradients_of(loss):
        weights = list(model.parameters())
        return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True) if weights else []

    for active, other in ((2, 4), (4, 2)):
        gates = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        mixed = running(*args, {"w": Selection((active, other), gates, detached=1)})
        q = randn(*mixed.shape, seed=1)

        def product(output, q=q):
            return (output * q[tuple(slice(0, n) for n in output.shape)]).sum()

        expected = torch.stack([product(path(active)), product(path(other))])
        (found,) = torch.autograd.grad(product(mixed), gates, retain_graph=True)
        torch.testing.assert_close(found, expected.detach())
        for of_mixture, of_path in zip(gradients_of(product(mixed)), gradients_of(product(path(active))), strict=True):
            torch.testing.assert_close(of_mixture, of_path)


def test_weights_of_a_mixture_are_not_rounded_under_autocast():
    layer = sn.Linear(1, width(), bias=False)
    nn.init.ones_(layer.weight)
    weights = torch.tensor([0.3001, 0.6999])
    running = Supernet(nn.Sequential(layer))
    running(torch.ones(1, 1), {"w": weights})
    with torch.autocast("cpu", torch.bfloat16), running.following({"w": weights}):
        mixed = layer.sizes.entangled(layer.weight, sn.Span("out_features", 4))
    torch.testing.assert_close(mixed[:, 0], torch.tensor([1.0, 1.0, 0.6999, 0.6999]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [sn.BatchNorm1d, sn.BatchNorm2d, sn.BatchNorm3d])
def test_a_norm_of_elastic_width_takes_no_plain_average(kind):
    with pytest.raises(ChoiceError, match=r"num_features=w takes no momentum=None.*recalibrate"):
        kind(width(), momentum=None)
    kind(width(), momentum=None, track_running_stats=False)
    kind(4, momentum=None)


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (lambda: sn.Linear(3, width()), "out_features", 2),
        (lambda: sn.Linear(3, width()), "in_features", 2),
        (lambda: sn.Conv2d(3, 4, 3, stride=2), "stride", (1, 1)),
        (lambda: sn.Conv2d(3, 4, 3), "dilation", (2, 2)),
        (lambda: sn.Conv2d(4, width(), (3, 3)), "groups", 2),
        (lambda: sn.ConvTranspose2d(3, width(), 3), "output_padding", (1, 1)),
        (lambda: sn.BatchNorm2d(width()), "num_features", 2),
        (lambda: sn.LayerNorm((3, width())), "normalized_shape", (3, 2)),
        (lambda: sn.GroupNorm(2, width()), "num_groups", 1),
        (lambda: sn.Embedding(5, width()), "embedding_dim", 2),
        (lambda: sn.MultiheadAttention(4, width()), "dropout", 0.5),
        (lambda: sn.Dropout(0.1 * width()), "p", 0.0),
    ],
)
def test_a_number_that_would_be_ignored_cannot_be_set(layer, name, value):
    built = layer()
    before = copy.deepcopy(getattr(built, name))
    with pytest.raises(ChoiceError, match=rf"^{name} of {type(built).__name__}\(.*constructor"):
        setattr(built, name, value)
    assert getattr(built, name) == before


def test_a_rate_that_no_choice_decides_can_be_set():
    model = nn.Sequential(sn.Linear(3, width()), sn.Dropout(0.5))
    model[1].p = 0.0
    running = Supernet(model)
    assert running(torch.ones(1, 3), {"w": 2}).count_nonzero() == 2
    assert freeze(model, {"w": 2})[1].p == 0.0
    with pytest.raises(ChoiceError, match="from 0 to 1"):
        model[1].p = 2


@pytest.mark.parametrize("digits", [None, 0, 1, -1])
def test_rounding_is_as_python_does_it(digits):
    value = round(ValueChoice([1.26, 17.5], label="x"), digits)
    assert repr(value.values()) == repr([round(1.26, digits), round(17.5, digits)])
    assert "round(x" in repr(value)


@pytest.mark.parametrize("kind", [*(getattr(sn, name) for name in sn.elastic.__all__), Darts])
def test_the_signature_is_that_of_the_constructor(kind):
    assert list(inspect.signature(kind).parameters) == list(inspect.signature(kind.__init__).parameters)[1:]


def test_an_embedding_from_a_table_is_refused_by_name():
    with pytest.raises(ChoiceError, match=r"Embedding.from_pretrained takes its sizes from the table"):
        sn.Embedding.from_pretrained(torch.ones(3, 2))


class Forgetful(Mutable):
    def __init__(self):
        super().__init__()
        self.size = sn.Sizes(width=width())


class Whole(Mutable):
    def __init__(self):
        super().__init__()
        self.sizes = Sizes(width=width())
        self.weight = nn.Parameter(torch.ones(4, 3))

    def run(self, sizes, x):
        return x @ self.weight[: sizes["width"]]


def test_a_module_of_ones_own_is_told_what_it_lacks():
    with pytest.raises(ChoiceError, match=r"Forgetful .* give it self.sizes = Sizes\(...\)"):
        Forgetful()
    running = Supernet(nn.Sequential(sn.Linear(3, width()), Whole()))
    with pytest.raises(ChoiceError, match=r"Whole does not run in a mixture.*define run_part"):
        running(torch.ones(1, 3), {"w": torch.tensor([0.5, 0.5])})


class Observed(nn.Module):
    """A network that notes, by hooks that are methods of its own, what passes its layers."""

    def __init__(self, made=sn.Linear):
        super().__init__()
        self.first, self.last, self.seen = made(3, width()), sn.Linear(width(), 2), []
        self.first.register_forward_pre_hook(self.note)
        self.first.register_forward_hook(lambda _layer, _args, output: 2 * output)
        self.first.register_full_backward_hook(self.note)

    def note(self, *_):
        self.seen.append("note")

    def forward(self, x):
        return self.last(self.first(x))


def test_hooks_and_attributes_go_along_to_the_frozen_network():
    model = Observed()
    model.first.is_residual, model.first.weight.lr_scale = True, 0.5
    network = freeze(model, {"w": 2})
    x = torch.ones(1, 3, requires_grad=True)
    output = network(x)
    torch.testing.assert_close(output, Supernet(model)(x, {"w": 2}))
    assert (network.seen, len(list(network.modules()))) == (["note"], 3)
    output.sum().backward()
    assert (network.seen, type(network.first)) == (["note", "note"], nn.Linear)
    assert (network.first.is_residual, network.first.weight.lr_scale) == (True, 0.5)


class Doubled(sn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(sn.Linear):
    def _sliced(self, sizes):
        weight_OI, bias_O = super()._sliced(sizes)
        return 2 * weight_OI, bias_O


class Frozen(Doubled):
    def frozen(self, decisions):
        return nn.Sequential(super().frozen(decisions), nn.Identity())


class Initialised(sn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        nn.init.ones_(self.weight)
        self.out_features = 4  # what it is


def changed(change, make=lambda: sn.Linear(3, width())):
    layer = make()
    change(layer)
    return layer


LOST = {
    "forward": (lambda: Doubled(3, width()), "Doubled at '0' has a forward of its own.*define frozen"),
    "_sliced": (lambda: Scaled(3, width()), "Scaled at '0' has a _sliced of its own.*define frozen"),
    "buffer": (lambda: changed(lambda m: m.register_buffer("mask", torch.ones(1))), "a buffer 'mask' that was added"),
    "child": (lambda: changed(lambda m: m.add_module("act", nn.ReLU())), "a child 'act' that was added"),
    "parameter": (
        lambda: changed(lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1)))),
        "a parameter 'scale' that was added",
    ),
    "method": (lambda: changed(lambda m: setattr(m, "forward", lambda x: x)), "a forward that was set on it"),
    "prune": (lambda: changed(lambda m: nn.utils.prune.random_unstructured(m, "weight", 0.5)), "prune.remove"),
    "parametrized": (lambda: changed(nn.utils.parametrizations.weight_norm), "remove_parametrizations"),
    "spectral": (lambda: changed(nn.utils.spectral_norm), "remove_spectral_norm"),
    "synchronised": (
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(sn.BatchNorm1d(width())),
        "SyncBatchNorm at '0' took the place of an elastic layer.*convert the frozen network",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_frozen_network_could_not_have_is_refused_before_a_search_and_by_freeze(name):
    make, message = LOST[name]
    model = nn.Sequential(make())
    for refuse in (lambda: Supernet(model), lambda: freeze(model, {"w": 2})):
        with pytest.raises(ReplacementError, match=message):
            refuse()


def test_a_subclass_is_its_users_own_where_it_defines_frozen_or_changes_nothing():
    model = nn.Sequential(Frozen(3, width()), Initialised(width(), 2))
    assert [type(module) for module in freeze(model, {"w": 2})] == [nn.Sequential, nn.Linear]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_an_old_weight_norm_is_refused():
    with pytest.raises(ReplacementError, match="remove_weight_norm"):
        freeze(nn.Sequential(changed(nn.utils.weight_norm)), {"w": 2})


class Calling(nn.Module):
    """A network that calls a value itself, and gives the number to a function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.rate, self.factor = function, ValueChoice([0.1, 0.5], label="rate"), sn.Linear(3, width())
        self.scale = ValueChoice([1.0, 2.0], label="scale")

    def forward(self, x):
        return self.scale() * self.function(self.factor(x), self.rate())


@pytest.mark.parametrize("function", [nn.functional.dropout, nn.functional.leaky_relu, nn.functional.elu])
def test_a_value_that_is_called_for_a_number_is_named_where_it_is_mixed(function):
    half = torch.tensor([0.5, 0.5], requires_grad=True)
    running, x = Supernet(Calling(function)), torch.ones(1, 3)
    with pytest.raises(
        MixtureError, match=r"choice 'rate' is mixed, and Calling calls it.*samples.*supernet.nn.Dropout"
    ):
        running(x, {"w": half, "rate": half, "scale": half})
    running(x, {"w": half, "rate": 0.5, "scale": half})


def test_a_type_error_of_the_model_itself_is_passed_on():
    half = torch.tensor([0.5, 0.5], requires_grad=True)
    with pytest.raises(TypeError):
        Supernet(Calling(lambda x, rate: x + "1"))(torch.ones(1, 3), {"w": half, "rate": half, "scale": half})


def test_a_trainer_that_mixes_says_so_before_it_trains():
    model = Calling(nn.functional.dropout)
    data = torch.utils.data.TensorDataset(torch.ones(8, 3), torch.zeros(8))
    with pytest.raises(MixtureError, match=r"choice 'rate' is mixed, and Calling calls it"):
        DartsTrainer(
            *(model, lambda output, _: output.mean(), lambda *_: {}, torch.optim.SGD(model.parameters(), 0.1)),
            num_epochs=1,
            dataset=data,
            batch_size=4,
        )
