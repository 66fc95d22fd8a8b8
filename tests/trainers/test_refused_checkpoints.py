"""A checkpoint that is refused leaves the trainer as it was, and one that fails half-way as one that has begun."""

import pytest
import torch
from searches import Net, PathTrainer, Tempered, result, search
from torch import nn
from torch.optim import SGD

from supernet.errors import FileFormatError, TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("supernet.trainers.SupernetTrainer._write_plots", lambda self, run: None)


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes a search of a trainer of a class of its own."""

    def make(cls, run_dir=None, **options):
        monkeypatch.setitem(search.__globals__["KINDS"], "its own", (cls, {}))
        return search("its own", run_dir, **{"num_epochs": 1, **options})

    return make


class Extended(PathTrainer):
    """The same trainer, which names more now."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.more = torch.zeros(2)

    def stateful(self):
        return {**super().stateful(), "more": self.more}


def change_newest(run_dir, change):
    path = max((run_dir / "checkpoints").iterdir())
    state = read_checkpoint(path)
    change(state)
    write_checkpoint(path, state)


def lengthen_a_buffer(state):
    state["buffers"] = {n: torch.cat([b.reshape(-1), torch.ones(1)]) for n, b in state["buffers"].items()}


def lengthen_a_weight(state):
    (*_, name) = state["parameters"]
    state["parameters"][name] = torch.ones(7, 7)


REFUSED = {
    "a later epoch": (PathTrainer, {}, lambda state: state.update(epoch=9), TrainingError, "in epoch 9 already"),
    "another seed": (PathTrainer, {"seed": 5}, lambda state: None, TrainingError, "seed was 0, is 5"),
    "state that it lacks": (
        Extended,
        {},
        lambda state: state["identity"].update(trainer="Extended"),
        FileFormatError,
        "has no state of more",
    ),
    "another weight": (PathTrainer, {}, lengthen_a_weight, TrainingError, r"is \(7, 7\) in it"),
    "another buffer": (PathTrainer, {}, lengthen_a_buffer, TrainingError, "in it,"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_is_refused_has_changed_nothing(name, make, tmp_path):
    cls, options, change, error, message = REFUSED[name]
    make(PathTrainer, tmp_path).fit()
    change_newest(tmp_path, change)
    trainer, untouched = make(cls, **options), make(cls, **options)
    with pytest.raises(error, match=message):
        trainer.fit(resume=tmp_path)
    assert (trainer.epoch, trainer.global_step, trainer.history) == (0, 0, [])
    trainer.fit()
    untouched.fit()
    assert result(trainer) == result(untouched)


def test_after_a_checkpoint_that_fails_half_way_a_search_does_not_begin_as_if_nothing_had_been(
    make, tmp_path, monkeypatch
):
    make(PathTrainer, tmp_path).fit()
    trainer = make(PathTrainer, num_epochs=2)
    monkeypatch.setattr(trainer.scheduler, "load_state_dict", lambda state: 1 / 0)
    with pytest.raises(FileFormatError, match="does not fit this search: ZeroDivisionError"):
        trainer.fit(resume=tmp_path)
    with pytest.raises(TrainingError, match=r"has trained already.*could neither begin anew nor go on exactly"):
        trainer.fit()
    monkeypatch.undo()
    monkeypatch.setattr("supernet.trainers.SupernetTrainer._write_plots", lambda self, run: None)
    whole = search("path", num_epochs=2)
    whole.fit()
    trainer.fit(resume=tmp_path)
    assert result(trainer) == result(whole)


def test_a_run_that_stands_aside_and_fails_half_way_is_not_trained_instead(make, tmp_path, monkeypatch):
    make(PathTrainer, tmp_path / "mine").fit()
    monkeypatch.setenv("SUPERNET_RERUN", str(tmp_path / "again"))
    monkeypatch.setenv("SUPERNET_RERUN_ONLY", str(tmp_path / "another"))
    trainer = make(PathTrainer, tmp_path / "mine")

    def load_state_dict(state):
        raise TrainingError("cannot take it")

    monkeypatch.setattr(trainer.scheduler, "load_state_dict", load_state_dict)
    with pytest.raises(TrainingError, match="cannot take it"):
        trainer.fit()
    assert not (tmp_path / "again").exists()


# --- what cannot be saved ----------------------------------------------------------------------------------


class Marked(nn.Parameter):
    """A parameter of a class of somebody's own."""


class WithMarks(Net):
    """The same model, of whose parameters some are of another class."""

    def __init__(self, norm=True):
        super().__init__(norm)
        self.head.weight = Marked(self.head.weight.detach())


class MarkedLoss(Tempered):
    """A loss with such a parameter."""

    def __init__(self):
        super().__init__()
        self.log_temperature = Marked(torch.zeros(()))


def test_parameters_of_a_class_of_one_s_own_are_saved_and_brought_back(tmp_path, monkeypatch):
    monkeypatch.setitem(search.__globals__, "Net", WithMarks)
    monkeypatch.setitem(search.__globals__["KINDS"]["learned loss"][1], "loss", MarkedLoss)
    whole = search("learned loss", num_epochs=2)
    whole.fit()
    search("learned loss", tmp_path, num_epochs=1).fit()
    again = search("learned loss", tmp_path, num_epochs=2)
    again.fit(resume="auto")
    assert result(again) == result(whole)
    assert type(again.loss.log_temperature) is Marked


class WithFunction(torch.optim.lr_scheduler.MultiStepLR):
    """A scheduler of somebody's own, whose state is no plain one."""

    def state_dict(self):
        return {**super().state_dict(), "function": len}


def test_a_scheduler_whose_state_cannot_be_saved_is_refused_before_the_first_step(make, tmp_path):
    options = {"scheduler": lambda optimizer: WithFunction(optimizer, [1])}
    trainer = make(PathTrainer, tmp_path, **options)
    with pytest.raises(TrainingError, match=r"state\.scheduler\.function is a builtin_function"):
        trainer.fit()
    assert trainer.global_step == 0
    make(PathTrainer, **options).fit()  # nothing is saved without a directory


class WithStrangeState(SGD):
    def state_dict(self):
        return {**super().state_dict(), "object": object()}


def test_so_is_an_optimizer(make, tmp_path):
    trainer = make(PathTrainer, tmp_path)
    trainer.given_optimizer.__class__ = WithStrangeState
    with pytest.raises(TrainingError, match=r"state\.optimizer\.object is an object"):
        trainer.fit()
    assert trainer.global_step == 0
