"""What a search that goes on, or is finished, keeps: its options, its time, its rules' memory and its result."""

import functools
import inspect
import json

import numpy
import pytest
import torch
from searches import Net, search
from torch import nn
from torch.utils.data import DataLoader

from supernet.errors import TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.trainers import Callback, StableStopping
from supernet.training.description import as_json


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    for plot in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])


class Stop(Exception):
    pass


class StopsAfter(Callback):
    """Ends the search as a kill would, after an epoch's checkpoint or within the epoch after it."""

    def __init__(self, epoch, step=0):
        self.at = epoch, step

    def epoch_began(self, trainer):
        if self.at == (trainer.epoch, 0):
            raise Stop

    def step_ended(self, trainer):
        if self.at == (trainer.epoch, trainer.step):
            raise Stop


def description(run_dir):
    return json.loads((run_dir / "run.json").read_text())


# --- run.json ----------------------------------------------------------------------------------------------


def keeps(architecture):
    return True


def by_loss(measured):
    return -measured["loss"]


def test_every_option_is_in_run_json(tmp_path):
    options = {"constraint": keeps, "score": by_loss, "mutation_probability": 0.3, "callbacks": [Callback()]}
    options |= {"stop_when": [lambda record: None], "on_nonfinite": "skip", "workers": 0, "device": torch.device("cpu")}
    search("single path", tmp_path, num_epochs=1, **options).fit()
    written = description(tmp_path)["hyperparameters"]
    assert written["batch_size"] == [4, 4]
    assert written["loss"] == "searches.loss"
    assert written["metrics"] == "supernet.training.metrics.accuracy"
    assert (written["constraint"], written["score"]) == (f"{__name__}.keeps", f"{__name__}.by_loss")
    assert (written["num_evaluations"], written["population"], written["mutation_probability"]) == (6, 3, 0.3)
    assert written["recalibration_samples"] == 20_000
    assert written["callbacks"] == [{"class": "supernet.training.callbacks.Callback"}]
    assert written["stop_when"] == [f"{__name__}.{test_every_option_is_in_run_json.__name__}.<locals>.<lambda>"]
    assert (written["on_nonfinite"], written["device"], written["run_dir"]) == ("skip", "cpu", str(tmp_path))
    assert written["optimizer"][0]["lr"] == 0.1
    assert written["scheduler"]["class"] == "torch.optim.lr_scheduler.MultiStepLR"
    assert written["checkpointing"]["keep_last"] == 2


def test_what_a_trainer_sets_for_itself_is_in_run_json_as_it_began(tmp_path):
    trainer = search("path", tmp_path, num_epochs=1, batch_size=12)
    trainer.temperature = 5.0
    trainer.callbacks.append(Cools())
    trainer.fit()
    assert trainer.temperature < 5
    assert description(tmp_path)["hyperparameters"]["temperature"] == 5.0


class Cools(Callback):
    def step_ended(self, trainer):
        trainer.temperature -= 1


MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@pytest.mark.parametrize("kind", ["first order", "proxyless", "enas", "single path", "random"])
def test_no_option_of_a_constructor_is_left_out(kind):
    trainer = search(kind)
    constructors = [vars(cls)["__init__"] for cls in type(trainer).__mro__ if "__init__" in vars(cls)]
    taken = {
        parameter.name
        for constructor in constructors
        for parameter in inspect.signature(constructor).parameters.values()
        if constructor is not object.__init__ and parameter.kind not in MANY
    }
    assert taken - {"self", "model", "config"} <= set(trainer.given_options)


def test_the_batch_size_is_that_of_the_loader_that_was_given(tmp_path):
    data = search("first order").train_part.loader.dataset
    trainer = search("first order", valid_dataset=DataLoader(data.dataset, 3), batch_size=8)
    assert trainer.given_options["batch_size"] == [8, 3]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (StableStopping(5), {"class": "supernet.training.health.StableStopping", "epochs": 5}),
        (functools.partial(keeps, 3), {"partial": f"{__name__}.keeps", "args": [3], "keywords": {}}),
        (nn.CrossEntropyLoss(label_smoothing=0.1), None),
        ({1: {"b", "a"}, "x": (1.5, float("inf"))}, {"1": ["a", "b"], "x": [1.5, "inf"]}),
        ({"a": numpy.float32(0.5), "b": torch.tensor([1, 2]), "c": numpy.int64(3)}, {"a": 0.5, "b": [1, 2], "c": 3}),
        (nn.ReLU, "torch.nn.modules.activation.ReLU"),
        ([].append, "list.append"),
    ],
)
def test_any_option_can_be_written_as_json(value, expected):
    found = as_json(value)
    if expected is None:
        assert (found["class"], found["label_smoothing"]) == ("torch.nn.modules.loss.CrossEntropyLoss", 0.1)
    else:
        assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# --- going on with other options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"unrolled": True}, "unrolled was False, is True"),
        ({"arc_learning_rate": 0.5}, r"arc_learning_rate was 0\.05, is 0\.5"),
        ({"batch_size": 8}, "batch_size was 4, is 8"),
        ({"loss": nn.CrossEntropyLoss()}, "loss was 'searches.loss', is {'class': 'torch.nn.modules.loss.CrossEntropy"),
        ({"on_nonfinite": "skip"}, "on_nonfinite was 'stop', is 'skip'"),
    ],
)
def test_a_search_does_not_go_on_with_other_options(tmp_path, change, match):
    search("first order", tmp_path, num_epochs=1).fit()
    with pytest.raises(TrainingError, match=match):
        search("first order", tmp_path, **change).fit(resume="auto")


def test_a_search_does_not_go_on_with_another_learning_rate(tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    trainer = search("first order", tmp_path)
    other = torch.optim.SGD(Net().parameters(), 0.2)
    assert trainer.given_options["optimizer"][0]["lr"] == 0.1
    trainer.given_options["optimizer"][0]["lr"] = other.param_groups[0]["lr"]
    with pytest.raises(TrainingError, match=r"optimizer settings: lr of group 0 was 0\.1, is 0\.2;"):
        trainer.fit(resume="auto")


def test_a_checkpoint_without_options_is_gone_on_from(tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    (path,) = (tmp_path / "checkpoints").iterdir()
    state = read_checkpoint(path)
    del state["identity"]["options"], state["seconds"]
    write_checkpoint(path, state)
    trainer = search("first order", tmp_path, num_epochs=2)
    trainer.fit(resume="auto")
    assert len(trainer.history) == 2


# --- seconds -----------------------------------------------------------------------------------------------


def test_the_seconds_of_a_run_add_up_over_its_processes(tmp_path, monkeypatch):
    """Each reading of the clock is a second after the last; a process begins at any time."""
    now = [1000.0]

    def clock():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("time.perf_counter", clock)
    with pytest.raises(Stop):
        search("first order", tmp_path, callbacks=[StopsAfter(1)]).fit(resume="auto")
    (path,) = (tmp_path / "checkpoints").iterdir()
    first = read_checkpoint(path)["seconds"]
    assert 3 <= first < 10
    now[0] += 1e6
    search("first order", tmp_path).fit(resume="auto")
    assert first + 3 < description(tmp_path)["seconds"] < first + 30


# --- stopping rules ----------------------------------------------------------------------------------------


class Patience:
    """Stops when the loss has not become less for some epochs: it remembers in plain attributes."""

    def __init__(self, epochs):
        self.epochs, self.best, self.seen = epochs, float("inf"), []

    def __call__(self, record):
        self.seen.append(record["epoch"])
        self.waited = 0 if record["loss"] < self.best else getattr(self, "waited", 0) + 1
        self.best = min(self.best, record["loss"])
        return f"waited {self.waited} epochs" if self.waited >= self.epochs else None


class PatienceInSlots:
    """The same with a state_dict, and no other attributes."""

    __slots__ = ("inner",)

    def __init__(self, epochs):
        self.inner = Patience(epochs)

    def __call__(self, record):
        return self.inner(record)

    def state_dict(self):
        return vars(self.inner)

    def load_state_dict(self, state):
        vars(self.inner).clear()
        vars(self.inner).update(state)


def patient_function(epochs):
    """The same as a closure, whose memory nobody can read."""
    return Patience(epochs).__call__


@pytest.mark.parametrize("new_rule", [Patience, PatienceInSlots, patient_function])
@pytest.mark.parametrize("again_in_the_same_process", [False, True])
def test_a_rule_remembers_what_it_has_seen_where_a_search_goes_on(tmp_path, new_rule, again_in_the_same_process):
    """The losses become worse after the second of eight epochs, so a patience of 3 ends the search after the fifth."""
    losses = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]

    def record_of(trainer):
        inner = trainer._read_meters
        trainer._read_meters = lambda: {**inner(), "loss": losses[trainer.epoch]}
        return trainer

    def new(run_dir):
        trainer = search("first order", run_dir, num_epochs=8, batch_size=24, stop_when=[new_rule(3)])
        return record_of(trainer)

    whole = new(None)
    whole.fit()
    assert (len(whole.history), whole.stopped) == (5, "waited 3 epochs")
    trainer = new(tmp_path)
    for epoch in (3, 4):
        trainer.callbacks.append(StopsAfter(epoch))
        with pytest.raises(Stop):
            trainer.fit(resume="auto")
        trainer.callbacks.pop()
        if not again_in_the_same_process:
            trainer = new(tmp_path)
    trainer.fit(resume="auto")
    assert (len(trainer.history), trainer.stopped) == (5, "waited 3 epochs")
    again = new(tmp_path)
    again.fit(resume="auto")  # it has stopped, and stays so
    assert (len(again.history), again.stopped) == (5, "waited 3 epochs")


# --- a finished run ----------------------------------------------------------------------------------------


def files(run_dir):
    names = ("run.json", "architecture.json", "metrics.jsonl")
    return {
        **{name: (run_dir / name).read_bytes() for name in names},
        **{path.name: path.read_bytes() for path in (run_dir / "checkpoints").iterdir()},
    }


@pytest.mark.parametrize("kind", ["first order", "single path", "random", "enas"])
def test_a_finished_run_stays_as_it_is_and_is_not_evaluated_again(tmp_path, kind):
    first = search(kind, tmp_path, num_epochs=1)
    first.fit()
    before = files(tmp_path)
    again = search(kind, tmp_path, num_epochs=1)
    if kind != "first order":
        again.evaluate = lambda *_, **__: pytest.fail("what has been evaluated is in the last checkpoint")
    again.fit(resume="auto")
    assert again.export() == first.export()
    assert files(tmp_path) == before


def test_a_finished_runs_architecture_is_not_replaced_by_that_of_another_constraint(tmp_path):
    first = search("single path", tmp_path, num_epochs=1)
    first.fit()
    before = files(tmp_path)
    stem = first.export()["stem"]
    other = search("single path", tmp_path, num_epochs=1, constraint=lambda architecture: architecture["stem"] != stem)
    with pytest.raises(TrainingError, match=r"is finished with the architecture .* in another run_dir"):
        other.fit(resume="auto")
    assert files(tmp_path) == before
    elsewhere = search(
        "single path", tmp_path / "other", num_epochs=1, constraint=lambda architecture: architecture["stem"] != stem
    )
    elsewhere.fit(resume=tmp_path)
    assert elsewhere.export()["stem"] != stem


def test_a_run_may_be_named_by_its_path_where_it_goes_on(tmp_path):
    for epochs in (1, 2, 2):
        trainer = search("first order", tmp_path, num_epochs=epochs, batch_size=12)
        trainer.fit(resume=None if epochs == 1 else f"{tmp_path}/../{tmp_path.name}")
        assert len(trainer.history) == epochs


def test_a_run_is_not_written_over_by_one_that_goes_on_from_elsewhere(tmp_path):
    for name in ("one", "two"):
        search("first order", tmp_path / name, num_epochs=1).fit()
    before = files(tmp_path / "two")
    with pytest.raises(TrainingError, match="two holds a run already"):
        search("first order", tmp_path / "two", num_epochs=2).fit(resume=tmp_path / "one")
    assert files(tmp_path / "two") == before
