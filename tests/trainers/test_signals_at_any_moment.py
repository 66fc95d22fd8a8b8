"""One signal at any moment of `fit` is honoured, and `fit()` again on the same object goes on exactly."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from searches import KINDS, Augmented, before_each_step, loss, result, search
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import programs
from supernet import accuracy
from supernet.errors import TrainingError
from supernet.trainers import Callback, Checkpointing
from supernet.training import run_directory
from supernet.training.evaluation import NetworkTrainer
from supernet.training.run_directory import RunDirectory
from supernet.training.snapshot import digest

SMALL = {"num_epochs": 2, "batch_size": 12}  # 2 steps an epoch, 4 where both parts are gone over


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    for plot in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])


class OwnEpochs(KINDS["path"][0]):
    """A trainer of somebody else that writes its own epochs, with numbers of its own in between."""

    def train_epoch(self):
        validation = self.valid_part.cycle()
        for trn_X, trn_y in self.train_part.batches(self.epoch, self.step):
            with self.one_step():
                self.train_step(trn_X + 0.1 * torch.randn(()), trn_y, *next(validation))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        return self.body(x)


def network(run_dir=None, **options):
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"num_epochs": 2, "batch_size": 16, "valid_dataset": Augmented(24), "run_dir": run_dir, **options}
    return NetworkTrainer(model, loss, accuracy, optimizer, device="cpu", **{"dataset": Augmented(), **options})


def new(kind, run_dir=None, **options):
    if kind == "network":
        return network(run_dir, **options)
    if kind == "own epochs":
        KINDS[kind] = (OwnEpochs, {})
        try:
            return search(kind, run_dir, **SMALL, **options)
        finally:
            del KINDS[kind]
    return search(kind, run_dir, **{**SMALL, **options})


def outcome(trainer):
    if not isinstance(trainer, NetworkTrainer):
        return result(trainer)
    history = [{k: v for k, v in record.items() if k != "cost"} for record in trainer.history]
    return {"weights": digest([*trainer.model.parameters(), *trainer.model.buffers()]), "history": history}


@functools.cache
def uninterrupted(kind):
    trainer = new(kind)
    trainer.fit()
    return outcome(trainer)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def description(run_dir):
    return json.loads((run_dir / "run.json").read_text())


class Sends(Callback):
    """Sends a signal when it is called by one of its names for so many times."""

    def __init__(self, name, nth=1, number=signal.SIGTERM):
        self.calls = 0

        def called(*_):
            self.calls += 1
            if self.calls == nth:
                send(number)

        setattr(self, name, called)


# --- one signal, at any moment -----------------------------------------------------------------------------


def patched(patch, owner, name, *, after=False):
    """Let a signal come when this is called first, before or after it does what it does."""
    inner, sent = getattr(owner, name), []

    def sending(*args, **kwargs):
        if not after and not sent:
            sent.append(send())
        value = inner(*args, **kwargs)
        if after and not sent:
            sent.append(send())
        return value

    patch.setattr(owner, name, sending)


def in_save_of(patch, step):
    inner = RunDirectory.write_checkpoint

    def sending(self, state, global_step, *rest):
        if global_step == step:
            send()
        return inner(self, state, global_step, *rest)

    patch.setattr(RunDirectory, "write_checkpoint", sending)


MOMENTS = {
    "before the lock": lambda patch, trainer: patched(patch, RunDirectory, "locked"),
    "as the run begins": lambda patch, trainer: patched(patch, RunDirectory, "begin", after=True),
    "as it is described": lambda patch, trainer: patched(patch, RunDirectory, "describe"),
    "as callbacks begin": lambda patch, trainer: trainer.callbacks.append(Sends("fit_began")),
    "before the first step": lambda patch, trainer: trainer.callbacks.append(Sends("epoch_began")),
    "in the first step": lambda patch, trainer: trainer.callbacks.append(Sends("step_ended")),
    "in the last step": lambda patch, trainer: trainer.callbacks.append(Sends("step_ended", 4)),
    "as an epoch is recorded": lambda patch, trainer: patched(patch, RunDirectory, "append_epoch"),
    "in the first save": lambda patch, trainer: in_save_of(patch, 2),
    "in the last save": lambda patch, trainer: in_save_of(patch, 4),
    "as the last epoch ends": lambda patch, trainer: trainer.callbacks.append(Sends("epoch_ended", 2)),
    "in the export": lambda patch, trainer: patched(patch, trainer, "_conclude"),
    "as the architecture is written": lambda patch, trainer: patched(patch, RunDirectory, "write_architecture"),
    "as the network is written": lambda patch, trainer: patched(patch, RunDirectory, "write_network"),
    "in the plots": lambda patch, trainer: patched(patch, RunDirectory, "write_plots"),
    "as callbacks end": lambda patch, trainer: trainer.callbacks.append(Sends("fit_ended")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_ends_by_its_exit_code_and_loses_nothing(tmp_path, monkeypatch, moment):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = new("first order", tmp_path)
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch, trainer)
        with pytest.raises(SystemExit) as left:
            trainer.fit()
    assert left.value.code == 128 + signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    told = description(tmp_path)
    assert told["status"] in ("interrupted", "finished")
    assert told.get("signal") == ("SIGTERM" if told["status"] == "interrupted" else None)
    assert any((tmp_path / "checkpoints").iterdir())
    again = new("first order", tmp_path)
    again.fit(resume="auto")
    assert outcome(again) == uninterrupted("first order")
    assert description(tmp_path)["status"] == "finished"
    assert "signal" not in description(tmp_path)


def test_a_signal_while_a_checkpoint_is_read_leaves_before_a_further_step(tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        new("first order", tmp_path, callbacks=[Sends("step_ended")]).fit()
    with monkeypatch.context() as patch:
        patched(patch, run_directory, "read_checkpoint")
        trainer = new("first order", tmp_path)
        before_each_step(trainer, lambda: pytest.fail("a step is taken"))
        with pytest.raises(SystemExit):
            trainer.fit(resume="auto")
    again = new("first order", tmp_path)
    again.fit(resume="auto")
    assert outcome(again) == uninterrupted("first order")


def test_a_finished_run_stays_so_where_a_signal_comes_as_it_is_read(tmp_path, monkeypatch):
    new("random", tmp_path).fit()
    before = description(tmp_path), sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    patched(monkeypatch, run_directory, "read_checkpoint")
    trainer = new("random", tmp_path)
    with pytest.raises(SystemExit):
        trainer.fit(resume="auto")
    assert (description(tmp_path), sorted(path.name for path in (tmp_path / "checkpoints").iterdir())) == before


@pytest.mark.parametrize("nth", range(1, 4))
def test_a_signal_in_the_validation_of_a_network_leaves_between_two_batches(tmp_path, nth):
    """The validation part has two batches: the signal comes in the first, in the second, or in the next epoch."""
    trainer = network(tmp_path)
    inner, calls = trainer.distributed.forward_local, []

    def forward_local(*args):
        calls.append(1)
        if len(calls) == nth:
            send()
        return inner(*args)

    trainer.distributed.forward_local = forward_local
    with pytest.raises(SystemExit):
        trainer.fit()
    assert len(calls) == nth
    again = network(tmp_path)
    again.fit(resume="auto")
    assert outcome(again) == uninterrupted("network")


def test_an_error_after_a_signal_is_told_and_the_signal_is_answered(tmp_path, caplog):
    trainer = new("first order", tmp_path)

    def break_down():
        send()
        raise ValueError("a worker is killed too")

    before_each_step(trainer, break_down)
    with pytest.raises(SystemExit) as left:
        trainer.fit()
    assert left.value.code == 128 + signal.SIGTERM
    assert isinstance(left.value.__cause__, ValueError)
    assert "SIGTERM has come, and then an error: ValueError: a worker is killed too" in caplog.text
    assert description(tmp_path)["status"] == "failed"


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGINT is in a job that a shell script has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = new("path", callbacks=[Sends("step_ended", number=signal.SIGINT)])
        trainer.fit()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(trainer.history) == 2


def test_in_another_thread_a_search_begins_is_left_by_an_error_and_goes_on(tmp_path):
    class Stops(Callback):
        def epoch_ended(self, trainer, record):
            raise ValueError("enough")

    def work():
        with contextlib.suppress(ValueError):
            new("path", tmp_path, callbacks=[Stops()]).fit()
        new("path", tmp_path).fit(resume="auto")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert description(tmp_path)["status"] == "finished"


# --- fit() again on the same object ------------------------------------------------------------------------


class SendsAtEachStep(Callback):
    """Sends a signal in each step, unless one has come."""

    def step_ended(self, trainer):
        if trainer._run.signals.signal is None:
            send(signal.SIGINT)


def interrupted_at_each_step(trainer, fit, left_by):
    """Call fit again and again; return how often it was left."""
    for count in range(100):
        is_left = False
        with contextlib.suppress(left_by):
            is_left = True
            fit(trainer)
            is_left = False
        if not is_left:
            return count
        torch.manual_seed(count)  # what a notebook's user may do in between
        trainer.model.eval()
    raise AssertionError("it does not end")


# Kinds differ in what `fit` goes on from, which a run directory does not change.
ALSO_WITHOUT = ("enas", "single path", "network")
WAYS = [(kind, "with run_dir") for kind in (*KINDS, "own epochs", "network")]
WAYS += [(kind, "without run_dir") for kind in ALSO_WITHOUT]


@pytest.mark.parametrize(("kind", "way"), [*WAYS, ("enas", "from its checkpoint"), ("network", "from its checkpoint")])
def test_fit_again_after_ctrl_c_at_each_step_ends_bit_equal(tmp_path, kind, way):
    run_dir = None if way == "without run_dir" else tmp_path
    trainer = new(kind, run_dir, callbacks=[SendsAtEachStep()])
    left_by = KeyboardInterrupt if run_dir is None else SystemExit
    resume = "auto" if way == "from its checkpoint" else None
    count = interrupted_at_each_step(trainer, lambda trainer: trainer.fit(resume), left_by)
    assert count == trainer.global_step
    assert outcome(trainer) == uninterrupted(kind)
    if run_dir is not None:
        assert description(run_dir)["status"] == "finished"
        assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_accumulated_gradients_are_complete_where_a_fit_is_left_and_gone_on_with():
    options = {"batch_size": 4, "accumulate": 4}  # 6 batches an epoch
    trainer = search("first order", num_epochs=2, callbacks=[SendsAtEachStep()], **options)
    assert interrupted_at_each_step(trainer, lambda trainer: trainer.fit(), KeyboardInterrupt) == 4
    whole = search("first order", num_epochs=2, **options)
    whole.fit()
    assert result(trainer) == result(whole)


class Endless(IterableDataset):
    """A stream that keeps its place by torchdata's convention, and goes on from epoch to epoch."""

    def __init__(self):
        self.round = self.index = 0

    def __iter__(self):
        for index in range(self.index, 24):
            self.index = index + 1
            generator = torch.Generator().manual_seed(100 * self.round + index)
            yield torch.randn(1, 5, 5, generator=generator), index % 3
        self.round, self.index = self.round + 1, 0

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def test_data_that_keep_their_place_go_on_from_where_the_fit_was_left():
    interrupted, whole = (network(dataset=Endless(), valid_dataset=None, batch_size=4) for _ in range(2))
    interrupted.callbacks.append(SendsAtEachStep())
    assert interrupted_at_each_step(interrupted, lambda trainer: trainer.fit(), KeyboardInterrupt) == 12
    whole.fit()
    assert outcome(interrupted) == outcome(whole)


def test_sigterm_without_a_run_dir_ends_by_its_exit_code():
    with pytest.raises(SystemExit) as left:
        new("path", callbacks=[Sends("step_ended")]).fit()
    assert left.value.code == 128 + signal.SIGTERM


def test_a_trainer_left_within_a_step_is_refused_and_goes_on_from_its_checkpoint(tmp_path):
    for run_dir in (None, tmp_path):
        trainer = new("first order", run_dir, checkpointing=Checkpointing(every_steps=1))
        inner, calls = trainer.train_model_weight, []

        def within(*batch, inner=inner, calls=calls):
            calls.append(1)
            if len(calls) == 2:
                send(signal.SIGINT)
                send(signal.SIGINT)
            inner(*batch)

        trainer.train_model_weight = within
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        with pytest.raises(TrainingError, match="has trained already, up to epoch 1, step 1"):
            trainer.fit()
    assert description(tmp_path)["status"] == "interrupted"
    trainer.fit(resume="auto")
    assert outcome(trainer) == uninterrupted("first order")


def test_an_interrupted_trainer_does_not_go_on_where_another_process_has(tmp_path):
    first = new("first order", tmp_path, callbacks=[Sends("step_ended")])
    with pytest.raises(SystemExit):
        first.fit()
    new("first order", tmp_path).fit(resume="auto")
    before = description(tmp_path)
    with pytest.raises(TrainingError, match="has been gone on with elsewhere, up to step-000000000004"):
        first.fit()
    assert description(tmp_path) == before


def test_a_trainer_whose_export_fails_searches_on_without_training_again():
    trainer = new("single path", constraint=None)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    trainer.evaluate = evaluate
    before_each_step(trainer, lambda: pytest.fail("a step is taken"))
    trainer.fit()
    assert outcome(trainer) == uninterrupted("single path")
    with pytest.raises(TrainingError, match="has trained already"):
        trainer.fit()


# --- real processes ----------------------------------------------------------------------------------------


def test_a_signal_to_all_processes_of_a_group_is_outlived_by_the_loaders_until_the_step_is_saved(tmp_path):
    """As Slurm and a terminal send it: not only to the process that searches, but to those that load its data too."""
    script = Path(__file__).with_name("searches.py")
    words = script, "first order", tmp_path, "--workers", "2", "--slow", "0.05"
    process = programs.Program(*words, start_new_session=True)
    process.wait_for(lambda: any(tmp_path.glob("checkpoints/step-*")))
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert [line for line in errors.splitlines() if line.strip()] == [errors.strip()]
    assert "stopped by signal 15 after step" in errors
    assert description(tmp_path)["status"] == "interrupted"


@pytest.mark.parametrize("starts_python", [True, False])
def test_a_script_whose_loaders_have_processes_ends_when_it_is_done(tmp_path, starts_python):
    """Also in a process that was forked by another, which forgets what it should do at its end."""
    words = [str(Path(__file__).with_name("searches.py")), "first order", str(tmp_path), "--workers", "2"]
    if starts_python:
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    else:
        ended = programs.run(*words, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ready\n", "")
    assert description(tmp_path)["status"] == "finished"


class Loaded(Augmented):
    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and index == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # is outlived
        return super().__getitem__(index)


def test_a_users_worker_init_fn_is_called_too(tmp_path):
    trainer = network(
        tmp_path, dataset=DataLoader(Loaded(), 16, num_workers=1, worker_init_fn=Notes(tmp_path / "note")), num_epochs=1
    )
    with pytest.raises(SystemExit):
        trainer.fit()
    assert (tmp_path / "note").read_text() == "0"
    assert description(tmp_path)["status"] == "interrupted"


class Notes:
    def __init__(self, path):
        self.path = path

    def __call__(self, worker):
        self.path.write_text(str(worker))
