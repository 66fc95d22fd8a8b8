"""A search that is stopped anywhere and goes on ends as one that never was, bit for bit."""

import json
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torchmetrics
from searches import KINDS, Net, result, search, stopped_after
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

import programs
from supernet import DartsTrainer
from supernet.errors import TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.trainers import Checkpointing

SCRIPT = Path(__file__).with_name("searches.py")


def uninterrupted(kind, **options):
    trainer = search(kind, **options)
    trainer.fit()
    return result(trainer)


# That each kind goes on exactly from the middle and the end of an epoch is what supernet.testing checks.
FAST = [("second order", 0), ("enas", 0), ("proxyless", 2), ("single path", 2)]
EACH = [
    pytest.param(kind, workers, marks=() if (kind, workers) in FAST else pytest.mark.slow)
    for kind in KINDS
    for workers in (0, 2)
]


@pytest.mark.parametrize(("kind", "workers"), EACH)
def test_a_search_stopped_at_random_steps_ends_bit_equal_to_one_that_never_was(tmp_path, kind, workers):
    rng = random.Random(0)
    every = Checkpointing(every_steps=2)
    expected = uninterrupted(kind, workers=0)
    for _ in range(4 if workers == 0 else 2):
        stopped_after(search(kind, tmp_path, workers=workers, checkpointing=every), rng.randint(1, 4))
        torch.manual_seed(rng.randint(0, 100))
    trainer = search(kind, tmp_path, workers=workers, checkpointing=every)
    trainer.fit(resume="auto")
    assert result(trainer) == expected
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_what_augmentation_draws_does_not_depend_on_the_number_of_workers():
    assert uninterrupted("first order", workers=0) == uninterrupted("first order", workers=2)


def test_metrics_of_torchmetrics_go_on_in_the_middle_of_an_epoch(tmp_path):
    metric = torchmetrics.MetricCollection([torchmetrics.classification.MulticlassAccuracy(3)])
    expected = uninterrupted("first order", metrics=metric)
    options = {"metrics": metric, "checkpointing": Checkpointing(every_steps=1)}
    stopped_after(search("first order", tmp_path, **options), 4)
    trainer = search("first order", tmp_path, **options)
    trainer.fit(resume="auto")
    assert result(trainer) == expected


def test_accumulated_gradients_are_not_cut_apart_by_a_checkpoint(tmp_path):
    expected = uninterrupted("first order", accumulate=4)
    options = {"accumulate": 4, "checkpointing": Checkpointing(every_steps=1)}
    stopped_after(search("first order", tmp_path, **options), 3)
    stopped_after(search("first order", tmp_path, **options), 5)
    trainer = search("first order", tmp_path, **options)
    trainer.fit(resume="auto")
    assert result(trainer) == expected


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for i in range(24):
            yield torch.randn(1, 5, 5, generator=generator) + i % 3, i % 3


@pytest.mark.parametrize("which", ["stream", "own sampler"])
def test_data_that_cannot_be_rewound_is_skipped_and_a_line_says_so(tmp_path, caplog, which):
    def trainer(run_dir):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        data = Stream()
        if which == "own sampler":
            samples = list(Stream())
            data = DataLoader(samples, 4, sampler=WeightedRandomSampler([1.0] * 24, 24))  # draws when it begins
        return DartsTrainer(
            model,
            torch.nn.functional.cross_entropy,
            None,
            optimizer,
            2,
            data,
            valid_dataset=Stream(),
            batch_size=4,
            run_dir=run_dir,
            checkpointing=Checkpointing(every_steps=1),
        )

    whole = trainer(None)
    whole.fit()
    stopped_after(trainer(tmp_path), 3)
    resumed = trainer(tmp_path)
    with caplog.at_level("INFO", logger="supernet"):
        resumed.fit(resume="auto")
    assert result(resumed) == result(whole)
    assert "cannot be rewound: 3 batches are skipped" in caplog.text


def test_more_epochs_may_be_asked_for_and_another_directory_be_gone_on_from(tmp_path):
    first = search("first order", tmp_path / "one", num_epochs=1)
    first.fit()
    longer = search("first order", tmp_path / "two")
    longer.fit(resume=tmp_path / "one")
    assert result(longer) == uninterrupted("first order")
    again = search("first order", tmp_path / "two")
    again.fit(resume="auto")  # it is finished, and stays so
    assert result(again) == result(longer)


# --- checkpoints -------------------------------------------------------------------------------------------


def checkpoints(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.2])
    trainer = search("first order", tmp_path, num_epochs=5, checkpointing=Checkpointing(keep_last=2))
    inner = trainer._read_meters
    trainer._read_meters = lambda: {**inner(), "valid_loss": next(losses)}
    trainer.fit()
    assert checkpoints(tmp_path) == [f"step-{epoch * 6:012d}.safetensors" for epoch in (2, 4, 5)]


@pytest.mark.parametrize(
    ("checkpointing", "steps"),
    [
        (Checkpointing(keep_last=9), [6, 12, 18]),
        (Checkpointing(every_epochs=2, keep_last=9), [12, 18]),
        (Checkpointing(every_epochs=None, every_steps=4, keep_last=9), [4, 10, 16, 18]),
        (Checkpointing(every_epochs=None, every_minutes=0, keep_last=99), list(range(1, 19))),
    ],
)
def test_checkpoints_are_written_as_often_as_asked(tmp_path, checkpointing, steps):
    search("first order", tmp_path, checkpointing=checkpointing).fit()
    assert checkpoints(tmp_path) == [f"step-{step:012d}.safetensors" for step in steps]


@pytest.mark.parametrize("bad", [{"every_steps": 0}, {"keep_last": 0}, {"every_minutes": -1}, {"every_epochs": "x"}])
def test_a_checkpointing_that_cannot_be_is_refused(bad):
    with pytest.raises(TrainingError, match=rf"{next(iter(bad))} is a (whole )?number from"):
        Checkpointing(**bad)


@pytest.mark.parametrize("where", ["files.checkpoint.write_safetensors", "files.safetensors_file.replacing"])
def test_a_full_disk_is_a_clear_error_and_leaves_older_checkpoints_whole(tmp_path, monkeypatch, where):
    search("first order", tmp_path, num_epochs=1).fit()
    (name,) = checkpoints(tmp_path)
    before = (tmp_path / "checkpoints" / name).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"supernet.{where}", full)
        with pytest.raises(TrainingError, match=r"cannot be written, older ones are whole: .*No space left on device"):
            search("first order", tmp_path).fit(resume="auto")
    assert checkpoints(tmp_path) == [name]
    assert (tmp_path / "checkpoints" / name).read_bytes() == before
    trainer = search("first order", tmp_path)
    trainer.fit(resume="auto")
    assert result(trainer) == uninterrupted("first order")


def test_a_directory_that_cannot_be_written_to_is_a_clear_error(tmp_path, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", read_only)  # root, as tests may run, can write anywhere
    with pytest.raises(TrainingError, match=r"cannot be written to: .*Read-only"):
        search("first order", tmp_path).fit()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"precision": "bf16-mixed"}, "precision was '32-true', is 'bf16-mixed'"),
        ({"accumulate": 2}, "accumulate was 1, is 2"),
        ({"scheduler": None}, "scheduler was 'MultiStepLR', is None"),
        ({"kind": "path"}, "trainer was 'DartsTrainer', is 'PathTrainer'"),
    ],
)
def test_a_checkpoint_of_another_search_is_refused_and_what_differs_named(tmp_path, change, match):
    search("first order", tmp_path, num_epochs=1).fit()
    with pytest.raises(TrainingError, match=match):
        search(**{"kind": "first order", "run_dir": tmp_path, **change}).fit(resume="auto")


def test_a_checkpoint_of_another_space_or_number_of_processes_is_refused(tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    (path,) = (tmp_path / "checkpoints").iterdir()
    state = read_checkpoint(path)
    of_space = "options of the model's choices had other names"
    for name, value, finding in (("space", "0" * 64, of_space), ("processes", 2, "processes was 2, is 1")):
        write_checkpoint(path, {**state, "identity": {**state["identity"], name: value}})
        with pytest.raises(TrainingError, match=finding):
            search("first order", tmp_path).fit(resume="auto")


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    with pytest.raises(TrainingError, match=r"\.safetensors does not fit this search: .* its tensors are"):
        search("first order", tmp_path, norm=False).fit(resume="auto")


def test_a_search_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    never = Checkpointing(every_epochs=None)
    stopped_after(search("first order", tmp_path, checkpointing=never), 8)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    trainer = search("first order", tmp_path, checkpointing=never)
    trainer.fit(resume="auto")
    assert result(trainer) == uninterrupted("first order")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.filterwarnings("ignore:DartsTrainer has state that it does not name")
def test_what_a_trainer_keeps_in_attributes_of_any_name_comes_back(tmp_path):
    def new():
        trainer = search("first order", tmp_path, num_epochs=1)
        trainer._baseline, trainer.moments = 0.0, {"a": [torch.zeros(2), 1]}
        trainer._noise = torch.Generator().manual_seed(1)
        return trainer

    first = new()
    inner = first.train_step

    def train_step(*batches):
        inner(*batches)
        first._baseline += 0.5
        first.moments["a"][0] += torch.rand(2, generator=first._noise)

    first.train_step = train_step
    first.fit()
    second = new()
    second.fit(resume="auto")
    assert second._baseline == first._baseline == 3.0
    assert torch.equal(second.moments["a"][0], first.moments["a"][0])
    assert torch.equal(second._noise.get_state(), first._noise.get_state())


def test_resuming_without_anything_to_resume_says_so_or_begins(tmp_path):
    with pytest.raises(TrainingError, match="has none; give run_dir"):
        search("first order").fit(resume="auto")
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        search("first order").fit(resume=tmp_path)
    search("first order", tmp_path, num_epochs=1).fit(resume="auto")


# --- signals and kills -------------------------------------------------------------------------------------


def start(kind, run_dir, *arguments):
    program = programs.Program(SCRIPT, kind, run_dir, *arguments)
    program.wait_for(lambda: program.has_printed("ready\n"))
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_saves_and_exits_with_one_line(tmp_path, number):
    process = start("first order", tmp_path, "--slow", "0.1", "--every-steps", "1000")
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    assert re.search(rf"stopped by signal {int(number)} after (step \d+ of )?epoch \d", lines[0])
    assert "resume='auto' goes on from there" in lines[0]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    trainer = search("first order", tmp_path)
    trainer.fit(resume="auto")
    assert result(trainer) == uninterrupted("first order")


def test_handlers_are_put_back_and_a_search_runs_in_another_thread_without_them(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    search("first order", tmp_path / "main", num_epochs=1).fit()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    thread = threading.Thread(target=search("first order", tmp_path / "thread", num_epochs=1).fit)
    thread.start()
    thread.join()
    assert (tmp_path / "thread" / "architecture.json").exists()


def test_a_directory_in_use_by_a_live_process_is_refused_and_free_once_that_is_killed(tmp_path):
    process = start("first order", tmp_path, "--slow", "0.5")
    process.wait_for((tmp_path / "run.json").exists)
    with pytest.raises(TrainingError, match="in use by another live process"):
        search("first order", tmp_path).fit(resume="auto")
    process.kill()
    process.communicate()
    search("first order", tmp_path).fit(resume="auto")


def killed_again_and_again(tmp_path, kind, kills, *arguments):
    """SIGKILL at random moments, a resumption after each; return the result of the one that was let finish."""
    rng = random.Random(0)
    fell_into_a_save = 0
    for _ in range(kills):
        process = start(kind, tmp_path, "--pause-in-save", *arguments)
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        fell_into_a_save += any((tmp_path / "checkpoints").glob(".*.tmp"))
    process = start(kind, tmp_path, *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads((tmp_path / "result-0.json").read_text()), fell_into_a_save


def test_a_search_killed_at_random_moments_ends_bit_equal_to_one_that_never_was(tmp_path):
    found, _ = killed_again_and_again(tmp_path, "first order", 3)
    assert found == json.loads(json.dumps(uninterrupted("first order")))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_killed_many_times_ends_bit_equal_to_one_that_never_was(tmp_path, kind, workers):
    found, in_saves = killed_again_and_again(tmp_path, kind, 20, "--workers", str(workers), "--slow", "0.03")
    assert found == json.loads(json.dumps(uninterrupted(kind)))
    assert in_saves >= 1
