"""What a trainer names by `stateful()` comes back exactly, in place; what cannot is refused before the first step."""

import logging
import random
import threading
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from searches import search
from test_encoding import CLASSES, TREES, Color, Fixed, Level, Mode, Note, Pair, same
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import TensorDataset

from supernet import LayerChoice, SupernetTrainer
from supernet.errors import FileFormatError, TrainingError
from supernet.execution import InputSlot, LayerSlot
from supernet.files.checkpoint import read_checkpoint
from supernet.files.encoding import decoded, encoded

# A resume finds the classes of its content in the module of the trainer, which is this one.
assert {*CLASSES} == {Color, Fixed, Level, Mode, Note, Pair}


class Scanned(SupernetTrainer):
    """Trains one path; `state` says what attributes it has, and `change` what becomes of them after each step.

    It is one of those that were written before there was `stateful`.
    """

    leaves_parameters_unused = True

    def __init__(self, run_dir=None, epochs=1, state=dict, change=lambda trainer: None):
        torch.manual_seed(0)
        model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Tanh()], label="op"), nn.BatchNorm1d(2), nn.Linear(2, 2))
        data = TensorDataset(torch.randn(16, 2), torch.arange(16) % 2)
        optimizer = SGD(model.parameters(), 0.1)
        loss = nn.functional.cross_entropy
        super().__init__(model, loss, None, optimizer, epochs, data, batch_size=4, run_dir=run_dir, device="cpu")
        self.names, self.change = [], change
        for name, value in state().items():
            setattr(self, name, value)
            self.names.append(name)
        self.build_supernet(LayerSlot, InputSlot, {"op": "0"})

    def train_step(self, trn_X, trn_y, val_X, val_y):
        self.optimizer_step(self.compute_loss("train", self.forward(trn_X, {"op": "0"}), trn_y), self.optimizer)
        self.change(self)

    def export(self):
        return {"op": 0}

    def _write_plots(self, run):
        pass  # they take longer than all else here


class Named(Scanned):
    """The same, which names them."""

    def stateful(self):
        return {**super().stateful(), **{name: getattr(self, name) for name in self.names}}


def resumed(run_dir, state, change=lambda trainer: None):
    """Return the trainer that trained, and one that has gone on from its last checkpoint, at once finished."""
    first = Named(run_dir, state=state, change=change)
    first.fit()
    second = Named(run_dir, state=state)
    return first, second


# Small numbers of examples, each of which is a whole search.
@settings(max_examples=12, derandomize=True, deadline=None, phases=[Phase.generate])
@given(tree=TREES, start=st.sampled_from(["None", "alike", "another"]), other=TREES)
def test_any_tree_of_named_state_goes_through_a_checkpoint_and_back_equal_in_value_and_type(
    tmp_path_factory, tree, start, other
):
    run_dir = tmp_path_factory.mktemp("run")
    before = {"None": None, "alike": decoded(encoded(tree, ""), CLASSES), "another": other}[start]
    Named(run_dir, state=lambda: {"tree": None}, change=lambda trainer: setattr(trainer, "tree", tree)).fit()
    second = Named(run_dir, state=lambda: {"tree": before})
    second.fit(resume="auto")
    assert same(second.tree, tree)
    if start == "alike" and isinstance(tree, list | dict | set | deque | random.Random):
        assert second.tree is before


def test_each_object_is_brought_back_in_place_so_that_others_who_hold_it_go_on_with_it(tmp_path):
    def state():
        weight = nn.Parameter(torch.zeros(2))
        return {
            "weight": weight,
            "optimizer_of_it": Adam([weight], 0.1),
            "seen": defaultdict(int),
            "last": deque(maxlen=2),
            "note": Note("a", [torch.zeros(1)]),
            "noise": np.random.default_rng(0),
            "python": random.Random(0),
            "torch_noise": torch.Generator().manual_seed(0),
            "table": np.zeros(3),
            "grows": torch.zeros(0, dtype=torch.int64),
            "pair": Pair([], 0),
            "count": 0,
            "baseline": None,
        }

    def change(trainer):
        trainer.weight.grad = torch.ones(2)
        trainer.optimizer_of_it.step()
        trainer.seen["a"] += 1
        trainer.last.append(trainer.step)
        trainer.note.content[0] += trainer.torch_noise.get_state().sum()
        trainer.note.name += "b"
        trainer.table += trainer.noise.random(3) + trainer.python.random()
        torch.rand(1, generator=trainer.torch_noise)
        trainer.grows = torch.cat([trainer.grows, torch.tensor([trainer.step])])
        trainer.pair.left.append(1)
        trainer.pair = trainer.pair._replace(right=trainer.pair.right + 1)
        trainer.count += 1
        trainer.baseline = 0.5 if trainer.baseline is None else trainer.baseline / 2

    first, second = resumed(tmp_path, state, change)
    held = {name: getattr(second, name) for name in second.names}
    inner = held["note"].content, held["pair"].left, held["noise"].bit_generator
    second.fit(resume="auto")
    for name in first.names:
        if name != "optimizer_of_it":
            assert same(getattr(second, name), getattr(first, name)), name
        if name not in ("count", "baseline", "pair"):
            assert getattr(second, name) is held[name], name
    assert (second.note.content, second.pair.left, second.noise.bit_generator) == inner
    assert second.note.content is inner[0] and second.pair.left is inner[1]
    for trainer in (first, second):
        change(trainer)
    assert torch.equal(first.weight, second.weight) and np.array_equal(first.table, second.table)


@pytest.mark.parametrize(
    "new",
    [
        lambda: np.arange(6.0).reshape(2, 3),
        lambda: np.zeros((3, 4))[:, 1],
        lambda: torch.zeros(3).numpy(),
        lambda: torch.zeros(6)[:3],
        lambda: torch.zeros(2, 3).t(),
        lambda: torch.zeros(3, dtype=torch.complex64).real,
    ],
)
def test_views_are_brought_back_in_place_where_nobody_else_holds_the_rest(tmp_path, new):
    def change(trainer):
        trainer.view += 1

    first, second = resumed(tmp_path, lambda: {"view": new()}, change)
    held = second.view
    second.fit(resume="auto")
    assert second.view is held
    assert held.tolist() == first.view.tolist() == (new() + 2).tolist()


def test_a_generator_without_a_seed_is_brought_back_in_place(tmp_path):
    first, second = resumed(
        tmp_path, lambda: {"noise": np.random.default_rng()}, lambda trainer: trainer.noise.random()
    )
    held = second.noise
    second.fit(resume="auto")
    assert second.noise is held
    assert held.random(3).tolist() == first.noise.random(3).tolist()


def test_a_part_of_what_others_hold_is_refused_under_a_name_that_is_no_attribute(tmp_path):
    """It may have to be another object after a resume, which only an attribute can be set to."""
    whole = np.zeros((3, 4))

    class Elsewhere(Named):
        def stateful(self):
            return {**super().stateful(), "other": self.holder[0]}

    trainer = Elsewhere(tmp_path, state=lambda: {"holder": [whole[1]]})
    with pytest.raises(TrainingError, match="names 'other', a ndarray, which can only be set as an attribute"):
        trainer.fit()


def test_an_alias_stays_an_alias_of_the_models_tensors_too(tmp_path):
    def state():
        shared = [torch.zeros(2)]
        return {"one": shared, "other": {"inner": shared}, "apart": [], "of_model": [], "moments": {}, "twice": []}

    def change(trainer):
        trainer.one[0] += 1
        weight = trainer.model[2].weight
        trainer.apart = list(trainer.one)  # another list of the same tensor
        trainer.of_model = [weight, trainer.model[1].running_mean]
        trainer.moments = {weight: weight.detach() * 2}
        trainer.twice = [trainer.moments, (trainer.moments, weight)]

    _, second = resumed(tmp_path, state, change)
    second.fit(resume="auto")
    weight = second.model[2].weight
    assert second.one is second.other["inner"] and second.one is not second.apart
    assert second.one[0] is second.apart[0] and second.one[0].tolist() == [2, 2]
    assert second.of_model[0] is weight and second.of_model[1] is second.model[1].running_mean
    assert list(second.moments) == [weight] and torch.equal(second.moments[weight], weight * 2)
    assert second.twice[0] is second.moments is second.twice[1][0] and second.twice[1][1] is weight


def test_two_names_of_one_object_at_the_beginning_may_be_two_objects_later(tmp_path):
    def state():
        shared = [0]
        return {"one": shared, "other": shared}

    def change(trainer):
        trainer.other = [5, trainer.step]

    _, second = resumed(tmp_path, state, change)
    second.fit(resume="auto")
    assert (second.one, second.other) == ([0], [5, 1])


def test_a_part_of_the_data_that_is_named_is_not_written_over(tmp_path):
    X, array = torch.zeros(4, 2), np.zeros((4, 2))

    def change(trainer):
        trainer.prototype, trainer.row = trainer.prototype + 1, trainer.row + 1

    _, second = resumed(tmp_path, lambda: {"prototype": X[0], "row": array[0]}, change)
    second.fit(resume="auto")
    assert second.prototype.tolist() == [2, 2] and second.row.tolist() == [2, 2]
    assert not X.any() and not array.any()


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1), persistent=False)


def test_a_module_comes_back_with_the_buffers_that_its_state_dict_leaves_out(tmp_path):
    _, second = resumed(tmp_path, lambda: {"module": Cached()}, lambda trainer: trainer.module.seen.add_(1))
    second.fit(resume="auto")
    assert second.module.seen == 2


# --- what is refused ---------------------------------------------------------------------------------------


def cycle():
    result = []
    result.append([result])
    return result


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (
            lambda: {"callback": [lambda: 0]},
            r"Named.stateful\(\).callback\[0\] is a function, which a",
        ),
        (lambda: {"lock": {"a": threading.Lock()}}, r"stateful\(\).lock.a is a _thread.lock"),
        (lambda: {"round": cycle()}, "holds no cycles"),
        (lambda: {"to": torch.zeros(2, device="meta")}, r"stateful\(\).to is a tensor on the device meta"),
        (lambda: {"many": {"x": {1, frozenset([object()])}}}, r"stateful\(\).many.x.* is an object"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, state, match):
    trainer = Named(tmp_path, state=state)
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(TrainingError, match=match):
        trainer.fit()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert not (tmp_path / "checkpoints").exists()


class ByOtherNames(Named):
    def stateful(self):
        return {"factor": self.temperature, "counts": self.helper}


class Computed(Named):
    @property
    def half(self):
        return self.temperature / 2

    def stateful(self):
        return {"half": self.half}


def test_a_number_that_is_named_otherwise_than_its_attribute_is_refused():
    of_two = (ByOtherNames, "'factor', a float, which can only be set"), (Computed, "'half', a property")
    for kind, match in of_two:
        with pytest.raises(TrainingError, match=match):
            kind(state=lambda: {"temperature": 2.0, "helper": [1]}).fit()


def test_an_object_that_exists_only_later_is_refused_at_the_resume_by_name(tmp_path):
    def change(trainer):
        trainer.late = Adam([nn.Parameter(torch.zeros(1))])

    _, second = resumed(tmp_path, lambda: {"late": None}, change)
    with pytest.raises(TrainingError, match="state of a Adam in 'late', which this trainer makes only while it trains"):
        second.fit(resume="auto")


def test_a_class_that_no_resume_could_find_is_refused_when_it_is_saved_and_none_is_looked_up(tmp_path):
    import dataclasses

    local = dataclasses.make_dataclass("Local", ["value"])
    with pytest.raises(TrainingError, match=r"stateful\(\).notes\[0\] is .*Local, which could not be made again"):
        Named(tmp_path, state=lambda: {"notes": []}, change=lambda trainer: trainer.notes.append(local(1))).fit()
    resumed(tmp_path / "known", lambda: {"notes": [local(1)]})[1].fit(resume="auto")
    (path,) = (tmp_path / "known" / "checkpoints").iterdir()
    with pytest.raises(FileFormatError, match="Local, which is not among those that may be made"):
        read_checkpoint(path)


def test_a_checkpoint_without_what_is_named_is_refused(tmp_path):
    Named(tmp_path, state=lambda: {"a": 1}).fit()
    with pytest.raises(FileFormatError, match=r"has no state of b, which Named.stateful\(\) names"):
        Named(tmp_path, epochs=2, state=lambda: {"a": 1, "b": 2}).fit(resume="auto")


# --- what is not named -------------------------------------------------------------------------------------


def test_attributes_of_a_trainer_that_names_nothing_are_scanned_as_before_and_a_warning_names_them(tmp_path):
    def state():
        return {"baseline": None, "moments": [torch.zeros(2)], "best": Adam([nn.Parameter(torch.ones(1))])}

    def change(trainer):
        trainer.baseline = (trainer.baseline or 0.0) + 0.5
        trainer.moments[0] += 1
        trainer.late = trainer.step

    kinds = []
    for epochs in (1, 2):
        trainer = Scanned(tmp_path, epochs, state, change)
        with pytest.warns(DeprecationWarning) as warned:
            trainer.fit(resume="auto")
        kinds.append([str(w.message) for w in warned])
        assert all(w.filename == __file__ for w in warned)
    assert trainer.baseline == 2.0 and trainer.moments[0].tolist() == [4, 4]
    (first, later), _ = kinds
    assert "does not name (baseline, best, moments, names)" in first and "(late)" in later
    assert '{**super().stateful(), "baseline": self.baseline, ...}' in first


def test_a_trainer_without_a_run_directory_is_not_warned_of():
    Scanned(state=lambda: {"baseline": 0.0}).fit()


def test_an_attribute_that_was_forgotten_and_has_changed_is_named_once(tmp_path, caplog):
    def state():
        return {"named": [torch.zeros(2)]}

    def change(trainer):
        trainer.forgotten = getattr(trainer, "forgotten", 0) + 1
        trainer.table[0] += 1
        trainer.alias = trainer.named[0].add_(1)
        trainer.weight_of_model = {"w": trainer.model[2].weight, "data": trainer.model[2].weight.data}
        trainer.epoch_seen = trainer.constant

    trainer = Named(tmp_path, 3, state, change)
    trainer.table, trainer.constant, trainer.epoch_seen = np.zeros(2), 3, 3
    with caplog.at_level(logging.WARNING, logger="supernet"):
        trainer.fit()
    (record,) = [r.getMessage() for r in caplog.records if "has changed in training" in r.getMessage()]
    assert record.startswith("forgotten, table has changed in training, and Named.stateful() does not name it")


@pytest.mark.parametrize("kind", ["second order", "enas", "proxyless", "reinforce", "random"])
def test_our_trainers_name_all_their_state_and_nothing_of_theirs_is_scanned(kind, tmp_path, caplog):
    trainer = search(kind, tmp_path, num_epochs=2, batch_size=12)
    trainer._write_plots = lambda run: None
    with caplog.at_level(logging.WARNING, logger="supernet"):
        trainer.fit()
    assert not [r for r in caplog.records if "has changed in training" in r.getMessage()]
    newest = max((tmp_path / "checkpoints").iterdir())
    content = read_checkpoint(newest)["algorithm"]
    assert content["scanned"] == {} and content["named"].keys() == trainer.stateful().keys()
