"""`run.json` tells how a run ended and with what it was run, and nothing that fails after a search loses its result."""

import errno
import io
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from searches import KINDS, before_each_step, result, search
from torch import nn
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, load_runs
from supernet.errors import TrainingError
from supernet.runs import print_runs
from supernet.trainers import Callback, Checkpointing, CsvFile
from supernet.training.progress import ProgressBar
from supernet.training.run_directory import RunDirectory

SMALL = {"num_epochs": 2, "batch_size": 12}  # 2 steps an epoch


def new(run_dir=None, kind="first order", **options):
    return search(kind, run_dir, **{**SMALL, **options})


def uninterrupted(**options):
    trainer = new(**options)
    trainer.fit()
    return result(trainer)


def description(run_dir):
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture
def without_pictures(monkeypatch):
    for plot in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


class Raises(Callback):
    def __init__(self, name, epoch=0):
        self.calls = []

        def called(trainer, *_):
            self.calls.append(trainer.epoch)
            if trainer.epoch == epoch:
                raise ValueError("broken on purpose")

        setattr(self, name, called)


# --- how it ended ------------------------------------------------------------------------------------------


def break_down(*_, **__):
    raise ValueError("broken on purpose")


STAGES = {
    "fit_began": lambda patch, trainer: trainer.callbacks.append(Raises("fit_began")),
    "epoch_began": lambda patch, trainer: trainer.callbacks.append(Raises("epoch_began", 1)),
    "epoch_ended": lambda patch, trainer: trainer.callbacks.append(Raises("epoch_ended")),
    "a step": lambda patch, trainer: before_each_step(trainer, break_down),
    "the beginning": lambda patch, trainer: patch.setattr(RunDirectory, "begin", break_down),
    "the record": lambda patch, trainer: patch.setattr(trainer, "_record_of_choices", break_down),
    "the export": lambda patch, trainer: patch.setattr(trainer, "_conclude", break_down),
    "the architecture's file": lambda patch, trainer: patch.setattr(RunDirectory, "write_architecture", break_down),
}


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage_is_in_run_json(tmp_path, monkeypatch, stage):
    trainer = new(tmp_path)
    STAGES[stage](monkeypatch, trainer)
    with pytest.raises(ValueError, match="broken on purpose"):
        trainer.fit()
    assert description(tmp_path)["status"] == "failed"
    assert description(tmp_path)["error"] == "ValueError: broken on purpose"


def test_a_run_is_running_as_long_as_its_process_holds_it_and_killed_after(tmp_path):
    seen = []

    class Looks(Callback):
        def epoch_ended(self, trainer, record):
            seen.append(load_runs(tmp_path / "run")[0]["status"])
            if len(seen) == 2:
                shutil.copytree(tmp_path / "run", tmp_path / "copy")  # as a kill would leave it

    new(tmp_path / "run", callbacks=[Looks()], kind="path").fit()
    assert seen == ["running", "running"]
    assert [row["status"] for row in load_runs(tmp_path)] == ["killed", "finished"]


# --- what it was run with ----------------------------------------------------------------------------------


class Odd:
    def __getattr__(self, name):
        raise ValueError(name)


class Tempered(KINDS["path"][0]):
    """A user's trainer, which notes no option."""

    def __init__(self, *args, temperatures=(5.0, 0.1), table=None, odd=None, first=(1, 2), **options):
        super().__init__(*args, **options)
        self.temperatures = temperatures


class Colder(Tempered):
    def __init__(self, *args, cold, first=3, **options):
        super().__init__(*args, temperatures=[cold], first=first, **options)


def test_the_options_of_a_users_trainer_are_in_run_json_as_they_were_given(tmp_path):
    KINDS["tempered"] = (Colder, {"cold": 0.2, "table": list(range(1000)), "odd": Odd()})
    try:
        new(tmp_path, kind="tempered", seed=3).fit()
    finally:
        del KINDS["tempered"]
    written = description(tmp_path)["hyperparameters"]
    assert (written["cold"], written["temperatures"], written["first"]) == (0.2, [0.2], 3)
    assert written["table"] == {"class": "builtins.list", "length": 1000}
    assert written["odd"] == {"class": f"{__name__}.Odd"}
    assert (written["num_epochs"], written["batch_size"], written["seed"]) == (2, [12, 12], 3)
    assert {"grad_clip", "accumulate", "log_frequency", "run_dir", "stop_when", "optimizer"} <= set(written)
    assert not {"model", "self", "args", "options"} & set(written)


def test_a_trainer_that_is_given_something_wrong_says_so_itself():
    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'cold'"):
        Colder()
    with pytest.raises(TypeError, match="Tempered takes no argument 'temprature'; did you mean"):
        Tempered(None, None, None, None, 1, None, temprature=1)


# --- an error of a callback, and what it costs -------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("checkpointing", [Checkpointing(), Checkpointing(every_epochs=None)])
@pytest.mark.parametrize("same_object", [True, False])
def test_an_epoch_is_saved_before_a_callbacks_error_ends_the_search(tmp_path, checkpointing, same_object):
    stops, follows = Raises("epoch_ended"), Raises("epoch_ended", 99)
    trainer = new(tmp_path, checkpointing=checkpointing, callbacks=[stops, follows])
    with pytest.raises(ValueError, match="broken on purpose"):
        trainer.fit()
    assert stops.calls == follows.calls == [0]
    if not same_object:
        trainer = new(tmp_path, checkpointing=checkpointing)
    before_each_step(trainer, lambda: trainer.epoch == 0 and pytest.fail("a step is taken twice"))
    trainer.fit(None if same_object else "auto")
    assert result(trainer) == uninterrupted()
    assert description(tmp_path)["status"] == "finished"
    assert "error" not in description(tmp_path)


# --- a full disk -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_a_full_disk_leaves_what_was_saved_and_is_named(tmp_path):
    """No file may become larger than a checkpoint is, from the second epoch on."""

    class FillsTheDisk(Callback):
        def epoch_began(self, trainer):
            if trainer.epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"step-0*4\.safetensors cannot be written, older ones are whole"):
            new(tmp_path, callbacks=[FillsTheDisk()]).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert description(tmp_path)["status"] == "failed"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000000002.safetensors"]
    trainer = new(tmp_path)
    trainer.fit(resume="auto")
    assert result(trainer) == uninterrupted()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "architecture.json"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch, name):
    if name == "metrics.jsonl":
        inner = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: full() if path.name == name else inner(path, *a, **k))
    elif name == "run.json":
        monkeypatch.setattr("supernet.training.run_directory.write_json", full)
    else:
        monkeypatch.setattr("supernet.training.run_directory.save_architecture", full)
    with pytest.raises(TrainingError, match=rf"{name} cannot be written: .*No space left on device") as raised:
        new(tmp_path).fit()
    assert name != "architecture.json" or "the search has found {'stem':" in str(raised.value)


@pytest.mark.parametrize("what", ["the last checkpoint", "pictures", "run.json"])
def test_a_search_that_is_done_is_not_lost_to_a_full_disk(tmp_path, monkeypatch, caplog, pictures, what):
    trainer = new(tmp_path)
    conclude = trainer._conclude
    broken = {
        "the last checkpoint": ("supernet.training.run_directory.write_checkpoint", "last checkpoint is not written"),
        "pictures": ("matplotlib.figure.Figure.savefig", "holds no picture of the architecture: OSError"),
        "run.json": (
            "supernet.training.run_directory.RunDirectory.describe",
            "does not say that the search has",
        ),
    }

    def disk_is_full_from_here_on():
        conclude()
        monkeypatch.setattr(broken[what][0], full)

    trainer._conclude = disk_is_full_from_here_on
    trainer.fit()
    assert broken[what][1] in caplog.text
    assert (tmp_path / "architecture.json").exists()
    assert (tmp_path / "network.safetensors").exists()
    assert description(tmp_path)["status"] == ("running" if what == "run.json" else "finished")


# --- where it is -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_a_run_stays_where_it_began_wherever_the_script_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "runs").mkdir()

    class Goes(Callback):
        def step_ended(self, trainer):
            os.chdir(tmp_path / "elsewhere")

    monkeypatch.chdir(tmp_path)
    trainer = new("runs/one", callbacks=[Goes(), CsvFile("figures.csv")])
    trainer.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "figures.csv", "runs"]
    assert list((tmp_path / "elsewhere" / "runs").iterdir()) == []
    assert len((tmp_path / "figures.csv").read_text().splitlines()) == 3
    assert description(tmp_path / "runs" / "one")["status"] == "finished"
    assert description(tmp_path / "runs" / "one")["hyperparameters"]["run_dir"] == "runs/one"


@pytest.mark.usefixtures("without_pictures")
def test_a_link_to_a_run_directory_may_come_to_lead_elsewhere(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to("first")

    class Relinks(Callback):
        def epoch_began(self, trainer):
            (tmp_path / "latest").unlink()
            (tmp_path / "latest").symlink_to("second")

    new(tmp_path / "latest", callbacks=[Relinks()]).fit()
    assert description(tmp_path / "first")["status"] == "finished"
    assert list((tmp_path / "second").iterdir()) == []


def test_a_run_directory_may_have_any_name(tmp_path, capsys):
    run_dir = tmp_path / "Läufe über [/bold] $x_1$ :smile: 実験" / "é 1%s {0}"
    new(run_dir).fit()
    assert description(run_dir)["status"] == "finished"
    new(run_dir).fit(resume="auto")
    assert load_runs(tmp_path)[0]["run"] == str(run_dir)


@pytest.mark.parametrize("path", ["a\0b", "n" * 300, 3])
def test_a_path_that_can_be_no_directory_is_refused_by_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"run_dir .* can be no directory"):
        new(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["epoch_began", "epoch_ended"])
def test_a_run_directory_that_is_removed_meanwhile_is_missed_and_not_made_again(tmp_path, moment):
    class Removes(Callback):
        pass

    setattr(Removes, moment, lambda *_: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(TrainingError, match="run has been removed or renamed while the run was going on"):
        new(tmp_path / "run", callbacks=[Removes()]).fit()
    assert not (tmp_path / "run").exists()


# --- names that mean something to what draws and prints them -----------------------------------------------

NAMES = ["$x$ and $", "[/bold]", ":smile:", "_hidden", "\\frac{1}"]


def odd_search(run_dir):
    torch.manual_seed(0)
    label = "block [/x] $\\alpha_"
    model = nn.Sequential(LayerChoice({name: nn.Linear(2, 2) for name in NAMES}, label=label), nn.Linear(2, 2))
    data = TensorDataset(torch.randn(16, 2), torch.arange(16) % 2)

    def metric(output, target):
        return {"[/x]": 1.0, ":smile:": 2.0}

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return DartsTrainer(model, nn.functional.cross_entropy, metric, optimizer, 2, data, batch_size=4, run_dir=run_dir)


def test_labels_and_names_are_drawn_and_printed_as_they_are(tmp_path, caplog, monkeypatch, pictures):
    titles = []

    def save(figure, path, **_):
        axes = figure.axes[0]
        legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        titles.append((axes.get_title(), sorted(legend)))
        figure.canvas.draw()

    for name in ("[/x]", "$ :smile:"):
        odd_search(tmp_path / name).fit()
    assert "holds no" not in caplog.text
    assert (tmp_path / "[/x]" / "architecture.png").exists()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    odd_search(tmp_path / "drawn").fit()
    assert titles[-1] == ("block [/x] $\\alpha_", sorted(NAMES))
    rows = load_runs(tmp_path)
    for row, name in zip(rows, ("$ :smile:", "[/x]", "drawn"), strict=True):
        row["options"] = {**row["options"], "note [/y]": f"[/{name}]"}
    file = io.StringIO()
    print_runs(rows, Console(file=file, width=500))
    for text in ("[/x]", "$ :smile:", "valid_:smile:", "valid_[/x]", "note [/y]", "[/drawn]"):
        assert text in file.getvalue()


def test_the_progress_bar_shows_names_as_they_are(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=file, force_terminal=True, width=200))
    with ProgressBar("Search [/x]", 2, shown=True) as bar:
        bar.begin_epoch(0, 3)
        bar.advance()
        bar.end_epoch(0, {"valid_[/x]": 1.0, ":smile:": 2.0})
    assert "Search [/x] epoch 1/2" in file.getvalue()
    assert "valid_[/x] 1  :smile: 2" in file.getvalue()


# --- when checkpoints are due ------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("accumulate", "every_steps", "expected"),
    [(1, 4, [4, 10]), (4, 3, [4, 6, 10, 12]), (4, 2, [4, 6, 10, 12]), (2, 3, [4, 6, 10, 12]), (4, 5, [6, 12])],
)
def test_a_checkpoint_that_is_due_is_written_where_accumulated_gradients_are_next_complete(
    tmp_path, accumulate, every_steps, expected
):
    """An epoch has 6 batches: with accumulate=4, gradients are complete after the 4th and the 6th."""
    checkpointing = Checkpointing(every_epochs=None, every_steps=every_steps, keep_last=9)
    trainer = search("first order", tmp_path, num_epochs=2, accumulate=accumulate, checkpointing=checkpointing)
    written = []
    inner = trainer._run.directory.write_checkpoint
    trainer._run.directory.write_checkpoint = lambda state, step, *rest: (
        written.append(step),
        inner(state, step, *rest),
    )
    trainer.fit()
    assert written[:-1] == expected  # and one at the end of the search


@pytest.mark.usefixtures("without_pictures")
def test_seconds_add_up_over_interruptions_of_one_object_without_the_time_between(tmp_path, monkeypatch):
    """Each reading of the clock is a second after the last."""
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    class Interrupts(Callback):
        def step_ended(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("time.perf_counter", clock)
    trainer = new(tmp_path, callbacks=[Interrupts()])
    for _ in range(3):
        with pytest.raises(SystemExit):
            trainer.fit()
        now[0] += 1e6
    assert 3 < description(tmp_path)["seconds"] < 100
