"""What a supernet saves, loads, holds and brings back, where modules do more than torch's own."""

import copy

import pytest
import torch
from torch import nn

from supernet import LayerChoice, Supernet
from supernet.execution.state import Buffers

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


class Versioned(nn.Linear):
    """Doubles its weights when what it loads was saved by its first version."""

    _version = 2

    def __init__(self):
        super().__init__(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}weight"] = 2 * state_dict[f"{prefix}weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Root(nn.Module):
    """Is versioned itself, and has a child that is called as a supernet calls the model."""

    _version = 3
    seen = None

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(Versioned())
        self.op = LayerChoice({"own": Versioned(), "skip": nn.Identity()}, label="op")

    def forward(self, x):
        return self.op(self.model(x))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def alone(model):
    return model


def child(model):
    return nn.ModuleDict({"first": nn.Linear(2, 2), "net": model, "last": nn.Linear(2, 2)})


def grandchild(model):
    return nn.Sequential(child(model), Versioned())


PLACES = [alone, child, grandchild]


def root_of(module):
    return next(inner for inner in module.modules() if isinstance(inner, Root))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("saved_by", [Supernet, alone])
@pytest.mark.parametrize("loaded_by", [Supernet, alone])
def test_versions_of_modules_go_along_wherever_the_supernet_stands(saved_by, loaded_by, place):
    source, target = place(saved_by(Root())), place(loaded_by(Root()))
    state = source.state_dict()
    metadata = copy.deepcopy(state._metadata)
    assert metadata == place(Root()).state_dict()._metadata
    target.load_state_dict(state)
    assert state._metadata == metadata and list(state) == list(place(Root()).state_dict())
    assert root_of(target).seen == 3
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_what_does_not_fit_is_named_as_written_and_siblings_by_their_own_names():
    parent = nn.ModuleDict({"model": nn.Linear(2, 2), "net": Supernet(Root())})
    state = parent.state_dict()
    for name in ("model.bias", "net.model.0.bias", "net.op.own.bias"):
        del state[name]
    state["model.more"] = state["net.more.x"] = torch.ones(1)
    missing, unexpected = parent.load_state_dict(state, strict=False)
    assert missing == ["model.bias", "net.model.0.bias", "net.op.own.bias"]
    assert sorted(unexpected) == ["model.more", "net.more.x"]
    state["net.model.0.weight"] = torch.ones(3, 3)
    with pytest.raises(RuntimeError, match=r"size mismatch for net\.model\.0\.weight"):
        parent.load_state_dict(state, strict=False)


class Failing(Versioned):
    fails = True

    def _load_from_state_dict(self, *args):
        if self.fails:
            raise ValueError("no")
        super()._load_from_state_dict(*args)


def test_a_load_after_one_that_failed_finds_the_state_as_it_was():
    model = Root()
    model.model.append(Failing())
    search = Supernet(model)
    state = search.state_dict()
    before = copy.deepcopy(state._metadata)
    with pytest.raises(ValueError, match="no"):
        search.load_state_dict(state)
    model.model[1].fails = False
    search.load_state_dict(state)
    assert state._metadata == before


# --- weights ------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"), nn.Linear(4, 2))


def by_assigning(search):
    search.load_state_dict(net().state_dict(), assign=True)


def by_assigning_to_the_model(search):
    search.model[1].load_state_dict(net()[1].state_dict(), assign=True)


def by_a_parameter(search):
    search.model[1].weight = nn.Parameter(torch.ones(2, 4))


def by_a_module(search):
    search.model[1] = nn.Linear(4, 2)
    search.count_in()


@pytest.mark.parametrize("replace", [by_assigning, by_assigning_to_the_model, by_a_parameter, by_a_module])
def test_new_parameters_in_old_places_are_frozen_too(replace):
    search = Supernet(net())
    search(X, {"op": "linear"})
    replace(search)
    weights = torch.ones(2, requires_grad=True)
    with search.frozen_weights():
        search(X, {"op": weights}).sum().backward()
    assert weights.grad is not None and all(p.grad is None and p.requires_grad for p in search.parameters())


# --- buffers ------------------------------------------------------------------------------------------------


class Average(nn.Module):
    """Averages what it sees from its first forward on, in a buffer that is then filled or registered."""

    def __init__(self, filled):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if filled:
            self.register_buffer("seen", None)

    def forward(self, x):
        if getattr(self, "seen", None) is None:
            if "seen" in self._buffers:
                self.seen = x.detach().mean(0)
            else:
                self.register_buffer("seen", x.detach().mean(0))
        self.seen = 0.5 * self.seen + x.detach().mean(0)
        return self.linear(x) + self.seen


def averaging(filled):
    torch.manual_seed(0)
    model = net()
    return model.insert(0, Average(filled))


PLANS = [{"op": "linear"}, {"op": torch.ones(2)}]


@pytest.mark.parametrize("plan", PLANS, ids=["path", "mixture"])
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "registered"])
def test_a_buffer_that_the_first_forward_makes_is_brought_back_to_nothing(filled, plan, caplog):
    plain = Average(filled)
    plain(X)
    search = Supernet(averaging(filled))
    with search.frozen_weights():  # in which the first pass runs
        search(X, plan)
    assert getattr(search.model[0], "seen", None) is None
    assert ("seen" in search.model[0]._buffers) == filled
    search(X, plan)
    assert torch.equal(search.model[0].seen, plain.seen)
    with search.frozen_weights():
        search(X, plan)
    assert torch.equal(search.model[0].seen, plain.seen)
    assert not caplog.text


def test_a_buffer_that_was_filled_is_emptied_only_where_values_are_brought_back():
    model = Average(filled=True)
    buffers = Buffers(model)
    with buffers.preserve(ZeroDivisionError):
        model(X)
    assert model.seen is not None and buffers.are_there
    model.seen = None
    with pytest.raises(ZeroDivisionError), buffers.preserve(ZeroDivisionError):
        model(X)
        raise ZeroDivisionError
    assert model.seen is None
