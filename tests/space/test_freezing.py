"""From an architecture to the plain network, against networks built by hand."""

import copy
import itertools
import json
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from supernet import (
    InputChoice,
    LayerChoice,
    SearchSpace,
    fixed_architecture,
    freeze,
    replace_input_choice,
    replace_layer_choice,
)
from supernet.errors import ArchitectureError, ReplacementError, UnresolvedChoiceError


class Net(nn.Module):
    """Nested choices, a label that two choices share, and an input choice of the given reduction."""

    def __init__(self, reduction="sum", n_chosen=None):
        super().__init__()
        deep = nn.Sequential(nn.Linear(3, 3), LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act"))
        self.first = LayerChoice({"plain": nn.Linear(3, 3), "deep": deep}, label="first")
        self.second = LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], label="same")
        self.third = LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3)], label="same")
        self.join = InputChoice(3, n_chosen, reduction, label="join")

    def forward(self, x):
        states = [self.first(x), self.second(x), self.third(x)]
        return self.join(states)


def by_hand(model, architecture, x, *, reduction):
    """What the architecture computes, written out with the weights of the model as written."""
    if architecture["first"] == "plain":
        first = model.first["plain"](x)
    else:
        first = {"relu": torch.relu, "tanh": torch.tanh}[architecture["act"]](model.first["deep"][0](x))
    same = int(architecture["same"])
    states = [first, model.second[same](x), model.third[same](x)]
    chosen = [states[i] for i in architecture["join"]]
    if not chosen:
        return None
    if reduction == "none":
        return chosen
    if reduction == "concat":
        return torch.cat(chosen, dim=1)
    total = torch.stack(chosen).sum(0)
    return total / len(chosen) if reduction == "mean" else total


class Holder(nn.Module):
    """A replacement as a user may write it: it holds the candidates, under any name."""

    def __init__(self, choice):
        super().__init__()
        self.whatever = nn.ModuleDict(choice.named_children())
        self.alpha = nn.Parameter(torch.zeros(len(choice)))

    def forward(self, x):
        return sum(op(x) for op in self.whatever.values())


class SumOfInputs(nn.Module):
    def __init__(self, choice):
        super().__init__()

    def forward(self, inputs):
        return sum(inputs)


def replaced(model):
    replace_layer_choice(model, Holder)
    replace_input_choice(model, SumOfInputs)
    model(torch.zeros(1, 3))
    return model


FORMS = {
    "as written": lambda model: model,
    "copied": copy.deepcopy,
    "replaced": replaced,
    "inputs replaced only": lambda model: (replace_input_choice(model, SumOfInputs), model)[1],
    "replaced and copied": lambda model: copy.deepcopy(replaced(model)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "concat", "none"])
def test_every_architecture_gives_what_a_network_built_by_hand_gives(reduction, form):
    torch.manual_seed(0)
    model = Net(reduction)
    written = copy.deepcopy(model)
    model = FORMS[form](model)
    x = torch.randn(4, 3)
    count = 0
    for architecture in SearchSpace(written).enumerate():
        output = freeze(model, architecture)(x)
        expected = by_hand(written, architecture, x, reduction=reduction)
        assert type(output) is type(expected)
        torch.testing.assert_close(output, expected)
        count += 1
    assert count == 3 * 2 * 8


@pytest.mark.parametrize("form", ["as written", "replaced"])
def test_the_model_itself_stays_as_it_is(form):
    model = FORMS[form](Net())
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    freeze(model, {"first": "plain", "same": 1, "join": [0, 1]})
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_chosen_candidate_stands_at_the_path_of_the_choice():
    network = freeze(Net(), {"first": "plain", "same": 1, "join": 0})
    assert list(network.state_dict()) == ["first.weight", "first.bias", "second.weight", "third.weight", "third.bias"]


def test_the_frozen_network_is_a_copy():
    model = Net()
    network = freeze(model, {"first": "plain", "same": 0, "join": 0})
    assert {id(p) for p in network.parameters()}.isdisjoint({id(p) for p in model.parameters()})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3)], label="op")
        self.again = self.op
        self.head = nn.Linear(3, 3)
        self.head.weight = self.op[0].weight
        self.in_a_list = [self.op]

    def forward(self, x):
        return self.head(self.op(self.again(x)))


@pytest.mark.parametrize("form", ["as written", "replaced"])
def test_what_is_shared_stays_shared(form):
    network = freeze(FORMS[form](Tied()), {"op": 0})
    assert network.op is network.again
    assert network.op.weight is network.head.weight
    assert freeze(Tied(), {"op": 0}).in_a_list[0].__class__ is nn.Linear


def test_a_choice_directly_inside_a_choice_is_frozen_through():
    model = nn.Sequential(LayerChoice({"a": LayerChoice([nn.ReLU(), nn.Tanh()]), "b": nn.Sigmoid()}))
    for form in FORMS.values():
        network = freeze(form(copy.deepcopy(model)), {"0": "a", "0.a": 1}) if form is not replaced else None
        assert network is None or isinstance(network[0], nn.Tanh)
    replace_layer_choice(model, Holder)
    assert isinstance(freeze(model, {"0": "a", "0.a": 1})[0], nn.Tanh)


def test_inputs_by_name_are_picked_by_name():
    model = nn.Sequential(InputChoice(choose_from=["left", "right"], n_chosen=None, label="join"))
    inputs = {"left": torch.ones(2), "right": torch.full((2,), 5.0)}
    assert torch.equal(freeze(model, {"join": ["right"]})(inputs), inputs["right"])
    assert torch.equal(freeze(model, {"join": ["right", "left"]})(inputs), torch.full((2,), 6.0))
    assert freeze(model, {"join": []})(inputs) is None


class Copies(nn.Module):
    def __init__(self, choice):
        super().__init__()
        self.ops = copy.deepcopy(nn.ModuleList(choice))

    def forward(self, x):
        return self.ops[0](x)


def test_a_replacement_that_holds_copies_is_named_since_its_weights_would_be_lost():
    model = Net()
    replace_layer_choice(model, Copies)
    with pytest.raises(ReplacementError, match=r"Copies in the place of choice 'first' does not hold .*'plain' itself"):
        freeze(model, {"first": "plain", "same": 0, "join": 0})


def test_candidates_that_another_choice_dropped_are_not_missed():
    model = Net()
    replace_layer_choice(model, lambda choice: choice[0])
    freeze(model, {"first": "plain", "same": 0, "join": 0})
    with pytest.raises(ReplacementError, match="choice 'same' does not hold candidate '1' itself"):
        freeze(model, {"first": "plain", "same": 1, "join": 0})


# --- what a plain network can do ---------------------------------------------------------------------------

ARCHITECTURE = {"first": "deep", "act": "tanh", "same": 0, "join": [0, 2]}


def frozen(form="replaced"):
    torch.manual_seed(0)
    return freeze(FORMS[form](Net("mean")), ARCHITECTURE)


def test_nothing_of_this_library_is_left_inside():
    for module in frozen().modules():
        assert not type(module).__module__.startswith("supernet") or type(module) is Net
        assert not [name for name in vars(module) if "supernet" in name]


@pytest.mark.parametrize(
    "pass_through",
    [
        copy.deepcopy,
        lambda network: pickle.loads(pickle.dumps(network)),
        lambda network: torch.compile(network, backend="eager"),
        lambda network: torch.export.export(network, (torch.ones(2, 3),)).module(),
    ],
    ids=["deepcopy", "pickle", "compile", "export"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_frozen_network_passes_through_what_torch_offers(pass_through):
    network = frozen()
    x = torch.randn(2, 3)
    torch.testing.assert_close(pass_through(network)(x), network(x))


def test_a_frozen_network_takes_the_state_of_another():
    network, other = frozen(), freeze(Net("mean"), ARCHITECTURE)
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(network(x), other(x))


def test_a_frozen_network_loads_where_this_library_is_missing(tmp_path):
    """The user's own class must be there, in a module that does not need the library."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from torch import nn
        class Mine(nn.Module):
            def __init__(self, op, join):
                super().__init__()
                self.op, self.join = op, join
            def forward(self, x):
                return self.join([self.op(x), x])
        """)
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from mine import Mine

        model = Mine(LayerChoice([nn.Linear(3, 3)], label="op"), InputChoice(2, 2, label="join"))
        network = freeze(replaced(model), {"op": 0, "join": [0, 1]})
        x = torch.ones(1, 3)
        torch.save((network, x, network(x)), tmp_path / "network.pt")
    finally:
        sys.path.remove(str(tmp_path))
    script = """
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("supernet", "lightning_fabric"):
                    raise ImportError(name)
        sys.meta_path.insert(0, Missing())
        import torch
        network, x, expected = torch.load("network.pt", weights_only=False)
        assert torch.equal(network(x), expected)
        print("loaded")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout == "loaded\n", result.stderr


# --- fixed_architecture ------------------------------------------------------------------------------------


def test_constructors_give_what_was_chosen():
    for architecture in itertools.islice(SearchSpace(Net("mean")).enumerate(), 12):
        torch.manual_seed(0)
        with fixed_architecture(architecture):
            built = Net("mean")
        torch.manual_seed(0)
        expected = freeze(Net("mean"), architecture)
        x = torch.randn(2, 3)
        torch.testing.assert_close(built(x), expected(x))
        assert [name for name, _ in built.named_parameters()] == [name for name, _ in expected.named_parameters()]


def test_a_choice_that_the_architecture_does_not_mention_stays_one():
    with fixed_architecture({"op": "a"}):
        model = nn.Sequential(
            LayerChoice([nn.ReLU(), nn.Tanh()], label="other"), LayerChoice({"a": nn.ReLU()}, label="op")
        )
    assert isinstance(model[1], nn.ReLU)
    with pytest.raises(UnresolvedChoiceError, match="'other'"):
        model(torch.zeros(1))


def test_outside_the_context_constructors_give_choices_again():
    with pytest.raises(RuntimeError, match="stop"), fixed_architecture({"op": 0}):
        raise RuntimeError("stop")
    assert isinstance(LayerChoice([nn.ReLU()], label="op"), LayerChoice)


def test_a_choice_without_a_label_cannot_be_known_to_constructors():
    with (
        pytest.raises(ArchitectureError, match=r"between relu.*has no label.*give it a label, or use freeze\(Net\(\)"),
        fixed_architecture({}),
    ):
        LayerChoice({"relu": nn.ReLU()})


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ({"op": "b"}, "'op' has no candidate 'b'; it has: a"),
        ({"join": [0, 1]}, "'join' takes 1 inputs, not 2"),
        ({"oops": 0}, "no choice with label 'oops' was constructed; constructed were: join, op"),
        ("architecture.json", "an architecture is a dict label -> decision, not 'architecture.json'"),
    ],
)
def test_a_wrong_architecture_is_refused_by_constructors(architecture, match):
    with pytest.raises(ArchitectureError, match=match), fixed_architecture(architecture):
        LayerChoice({"a": nn.ReLU()}, label="op")
        InputChoice(2, label="join")


def test_copies_made_inside_the_context_are_copies():
    choice = LayerChoice([nn.ReLU()], label="op")
    with fixed_architecture({"new": 0}):
        assert isinstance(copy.deepcopy(choice), LayerChoice)
        assert isinstance(LayerChoice([nn.ReLU()], label="new"), nn.ReLU)


@pytest.mark.parametrize("bad", [{"first": "plain"}, {"first": "deep", "same": 0, "join": 0}, {"oops": 0}])
def test_freeze_refuses_what_is_no_architecture_of_the_model(bad):
    with pytest.raises(ArchitectureError):
        freeze(Net(), bad)


def test_a_plain_model_is_frozen_by_the_empty_architecture():
    model = nn.Linear(2, 2)
    assert torch.equal(freeze(model, {}).weight, model.weight)
    assert json.dumps(SearchSpace(model).sample()) == "{}"
