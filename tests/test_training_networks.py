"""Training the final network has what a search has: schedules, validation, stopping, files, exact resume, processes."""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import programs
from supernet import accuracy, evaluate, load_runs, train
from supernet.errors import NonFiniteError, TrainingError
from supernet.rerun import differences
from supernet.trainers import Callback, Checkpointing, CsvFile

LOSS = nn.functional.cross_entropy


def points(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(count, 3, generator=generator)
    return TensorDataset(X, (X[:, 0] > 0).long())


def network(norm=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def trained(num_epochs=3, *, data=None, schedule=None, **options):
    net = network()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    if schedule is not None:
        options["scheduler"] = schedule(optimizer)
    data = points() if data is None else data
    return net, train(net, LOSS, accuracy, optimizer, num_epochs, data, batch_size=8, progress=False, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def one_cycle(optimizer):
    return OneCycleLR(optimizer, 0.3, total_steps=9)  # 3 epochs of 5 batches, 2 of which make one step


def test_a_network_is_trained_as_a_loop_written_by_hand_trains_it():
    """Over an unshuffled loader: two batches a step, gradients clipped, a schedule by steps."""
    data = points()
    net, history = trained(
        data=DataLoader(data, 8), schedule=one_cycle, scheduler_interval="step", accumulate=2, grad_clip=0.5
    )
    expected, losses = network(), []
    optimizer = SGD(expected.parameters(), 0.1, momentum=0.9)
    scheduler = one_cycle(optimizer)
    torch.manual_seed(0)  # the seed of `train`, from which dropout draws
    for _ in range(3):
        losses.append([])
        for group in ([0, 1], [2, 3], [4]):
            optimizer.zero_grad()
            for batch in group:
                X, y = (t[8 * batch : 8 * batch + 8] for t in data.tensors)
                loss = LOSS(expected(X), y)
                losses[-1].append(loss.item())
                (loss / len(group)).backward()
            nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert [epoch["loss"] for epoch in history] == pytest.approx([sum(each) / 5 for each in losses])


def test_a_validation_set_is_measured_after_each_epoch_as_evaluate_measures_it(tmp_path):
    valid = points(21, seed=1)
    measured = []

    class Measures(Callback):
        def epoch_ended(self, trainer, record):
            measured.append(evaluate(copy.deepcopy(trainer.model), LOSS, accuracy, valid))

    net, history = trained(valid_dataset=valid, callbacks=[Measures(), CsvFile(tmp_path / "m.csv")])
    for epoch, expected in zip(history, measured, strict=True):
        assert epoch["valid_loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert epoch["valid_accuracy"] == pytest.approx(expected["accuracy"])
        assert set(epoch) == {"loss", "accuracy", "valid_loss", "valid_accuracy"}
    assert net.training
    without, _ = trained()
    assert same(net, without)  # measuring moves nothing
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 4


def test_a_rule_ends_the_training_early():
    _, history = trained(9, stop_when=[lambda record: "enough" if record["epoch"] == 2 else None])
    assert len(history) == 2


def test_a_loss_that_is_not_finite_stops_the_training_or_its_step_is_skipped():
    calls = []

    def sometimes(output, target):
        calls.append(1)
        return LOSS(output, target) * (float("nan") if len(calls) == 4 else 1.0)

    net = network()
    options = {"batch_size": 8, "progress": False}
    with pytest.raises(NonFiniteError, match="epoch 1, step"):
        train(net, sometimes, None, SGD(net.parameters(), 0.1), 1, points(), **options)
    calls.clear()
    history = train(net, sometimes, None, SGD(net.parameters(), 0.1), 1, points(), on_nonfinite="skip", **options)
    assert 0 < history[0]["loss"] < 2


class Stop(Exception):
    pass


class StopsAt(Callback):
    def __init__(self, global_step):
        self.global_step = global_step

    def step_ended(self, trainer):
        if trainer.global_step == self.global_step:
            raise Stop


def test_a_training_stopped_anywhere_and_gone_on_with_ends_bit_equal(tmp_path):
    options = {"valid_dataset": points(21, seed=1), "schedule": lambda optimizer: CosineAnnealingLR(optimizer, 3)}
    net, history = trained(**options)
    options |= {"run_dir": tmp_path, "checkpointing": Checkpointing(every_steps=2), "resume": "auto"}
    for step in (3, 8, 13):
        with pytest.raises(Stop):
            trained(**options, callbacks=[StopsAt(step)])
        torch.manual_seed(step)
    resumed, whole = trained(**options)
    assert same(resumed, net)
    assert whole == history
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_directory_holds_the_network_and_what_is_said_of_it(tmp_path):
    net, history = trained(run_dir=tmp_path / "run", valid_dataset=points(21, seed=1))
    other = network()
    load_model(other, tmp_path / "run" / "network.safetensors")
    assert same(net, other)
    (row,) = load_runs(tmp_path)
    assert (row["status"], row["epochs"], row["architecture"]) == ("finished", 3, None)
    assert row["valid_loss"] == history[-1]["valid_loss"]
    assert row["options"]["batch_size"] == [8, 8]
    assert differences(tmp_path / "run", tmp_path / "run") == []
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    again, the_same = trained(
        run_dir=tmp_path / "run", valid_dataset=points(21, seed=1), resume="auto", callbacks=[StopsAt(0), StopsAt(1)]
    )
    assert same(again, net)
    assert the_same == history
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before
    with pytest.raises(TrainingError, match="holds a run already"):
        trained(run_dir=tmp_path / "run")


# --- several processes -------------------------------------------------------------------------------------


def main(run_dir, batch_size):
    torch.set_num_threads(1)
    net = network(norm=False)
    net[3] = nn.Identity()
    history = train(
        *(net, LOSS, accuracy, SGD(net.parameters(), 0.1), 2, points()),
        batch_size=batch_size,
        valid_dataset=points(21, seed=1),
        device="cpu",
        run_dir=run_dir,
    )
    weights = [p.tolist() for p in net.parameters()]
    Path(run_dir, f"result-{os.environ.get('RANK', 0)}.json").write_text(json.dumps([history, weights]))


def test_two_processes_with_half_the_batch_give_what_one_gives(tmp_path):
    programs.run(__file__, tmp_path / "two", "4", processes=2)
    main(tmp_path / "one", 8)
    one, *both = (
        json.loads((tmp_path / name).read_text())
        for name in ("one/result-0.json", "two/result-0.json", "two/result-1.json")
    )
    assert both[0] == both[1]
    for a, b in zip(one[0], both[0][0], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for a, b in zip(one[1], both[0][1], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
