"""What is recorded of a search's health, what stops it, and what is called while it runs."""

import csv
import itertools
import math
import sys

import pytest
import torch
from searches import search
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.errors import MissingExtraError, NonFiniteError, TrainingError
from supernet.trainers import Callback, CsvFile, DartsPlusStopping, StableStopping, TensorBoard
from supernet.training.health import entropies, share_without_parameters


def test_entropy_is_log_k_where_nothing_is_decided_and_zero_where_all_is():
    layers = {
        label: LayerChoice([nn.ReLU() for _ in range(4)], label=label) for label in ("even", "decided", "between")
    }
    space = SearchSpace(nn.ModuleDict(layers))
    found = entropies({"even": [0.25] * 4, "decided": [0.0, 1.0], "between": [0.9, 0.1]}, space)
    assert found["even"] == pytest.approx(math.log(4))
    assert found["decided"] == 0
    assert found["between"] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


def test_entropy_of_inputs_that_are_chosen_each_on_its_own_is_the_sum_of_theirs():
    joins = {"any": InputChoice(3, None), "some": InputChoice(3, (1, 2)), "one": InputChoice(2, 1)}
    found = entropies(
        {"any": [0.5, 0.5, 0.5], "some": [1.0, 0.0, 0.9], "one": [0.5, 0.5]}, SearchSpace(nn.ModuleDict(joins))
    )
    assert found["any"] == pytest.approx(3 * math.log(2))
    assert found["some"] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert found["one"] == pytest.approx(math.log(2))


def test_collapse_is_the_share_of_decisions_without_parameters():
    space = SearchSpace(
        nn.Sequential(*(LayerChoice({"conv": nn.Linear(1, 1), "skip": nn.Identity()}) for _ in range(4)))
    )
    free = {label: ["skip"] for label in space}
    assert share_without_parameters({"0": "skip", "1": "conv", "2": "skip", "3": "skip"}, space, free) == 0.75


def test_each_epoch_s_record_has_the_health_of_the_search():
    trainer = search("first order")
    trainer.fit()
    for record in trainer.history:
        assert record["entropy"].keys() == record["probabilities"].keys() == {"stem", "act", "skip"}
        assert record["weight_gradient_norm"] > 0
        assert record["architecture_gradient_norm"] > 0
        assert record["parameter_free_share"] in (0.0, 0.5)
        assert record["cost"]["steps_per_second"] > 0
        assert record["cost"]["peak_memory_mib"] > 10
    architectures = [record["architecture"] for record in trainer.history]
    stable = [0]
    for before, now in itertools.pairwise(architectures):
        stable.append(stable[-1] + 1 if before == now else 0)
    assert [record["stable_epochs"] for record in trainer.history] == stable


def test_gradient_norms_are_those_of_the_gradients():
    trainer = search("first order", num_epochs=1, grad_clip=None)
    norms = {"optimizer": [], "architecture_optimizer": []}
    for name, seen in norms.items():
        optimizer = getattr(trainer, name)
        step = optimizer.step

        def recorded(step=step, optimizer=optimizer, seen=seen):
            grads = [
                p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            seen.append(torch.cat(grads).norm().item())
            step()

        optimizer.step = recorded
    trainer.fit()
    record = trainer.history[0]
    assert record["weight_gradient_norm"] == pytest.approx(sum(norms["optimizer"]) / len(norms["optimizer"]), rel=1e-5)
    expected = sum(norms["architecture_optimizer"]) / len(norms["architecture_optimizer"])
    assert record["architecture_gradient_norm"] == pytest.approx(expected, rel=1e-5)


# --- stopping ----------------------------------------------------------------------------------------------


def test_a_search_stops_when_its_architecture_has_not_changed_for_k_epochs(tmp_path):
    trainer = search("first order", tmp_path, num_epochs=50, stop_when=[StableStopping(2)])
    trainer.fit()
    assert trainer.history[-1]["stable_epochs"] == 2
    assert all(record["stable_epochs"] < 2 for record in trainer.history[:-1])
    assert trainer.stopped == "the architecture has not changed for 2 epochs"
    assert (tmp_path / "architecture.json").exists()
    resumed = search("first order", tmp_path, num_epochs=50, stop_when=[StableStopping(2)])
    resumed.fit(resume="auto")
    assert len(resumed.history) == len(trainer.history)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ({"n1_a": "skip_connect", "n1_b": "conv", "r1_a": "skip_connect"}, None),
        ({"n1_a": "skip_connect", "n1_b": "skip_connect"}, "n has 2 skip connections (DARTS+)"),
        ({"n1_a": "skip_connect", "n2_b": "skip_connect", "n1_switch": [0, 1]}, "n has 2 skip connections (DARTS+)"),
        ({"r1_a": "skip_connect", "r2_b": "skip_connect"}, None),  # the rule is of normal cells
        ({"n1_a": "skip_connect", "n1_unused": "skip_connect"}, None),
    ],
)
def test_the_rule_of_darts_plus_counts_skip_connections_of_a_normal_cell(architecture, expected):
    def cell(label, whole):
        assert whole is architecture
        return None if label[0] == "r" or "unused" in label else label[0]

    assert DartsPlusStopping(cell=cell)({"architecture": architecture}) == expected


def test_a_non_finite_loss_is_skipped_and_counted_where_asked_for():
    def broken_every_fifth(output, target):
        calls.append(1)
        value = nn.functional.cross_entropy(output, target)
        return value * float("nan") if len(calls) % 5 == 0 else value

    calls = []
    trainer = search("first order", loss=broken_every_fifth, on_nonfinite="skip")
    trainer.fit()
    assert trainer.history[-1]["skipped_steps"] == trainer.skipped_steps > 3
    assert all(math.isfinite(record["train_loss"]) for record in trainer.history)
    calls = []
    with pytest.raises(NonFiniteError, match="epoch 1, step"):
        search("first order", loss=broken_every_fifth).fit()
    with pytest.raises(TrainingError, match="on_nonfinite is 'stop' or 'skip', not 'ignore'"):
        search("first order", on_nonfinite="ignore")


@pytest.mark.parametrize("kind", ["first order", "second order"])
def test_bf16_mixed_finds_the_planted_answer(kind):
    """Images whose class is their mean: a candidate that negates every other pixel, by place, is wrong."""
    from supernet import DartsTrainer, InputChoice

    class Checkered(nn.Module):
        def forward(self, x):
            sign = 1 - 2 * ((torch.arange(5)[:, None] + torch.arange(5)) % 2)
            return x * sign

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = LayerChoice({"wrong": Checkered(), "right": nn.Identity(), "zero": nn.Dropout(1.0)}, label="op")
            self.which = InputChoice(2, 1, label="which")
            self.head = nn.Linear(1, 3)

        def forward(self, x):
            x = self.op(x)
            return self.head(self.which([x.mean((2, 3)), (x * torch.randn_like(x)).mean((2, 3))]) * 3)

    y = torch.arange(192) % 3
    X = torch.randn(192, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.1 + y[:, None, None, None] - 1
    torch.manual_seed(0)
    model = Planted()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    data = torch.utils.data.TensorDataset(X, y)
    options = {
        "batch_size": 16,
        "arc_learning_rate": 0.03,
        "precision": "bf16-mixed",
        "unrolled": kind == "second order",
    }
    trainer = DartsTrainer(model, nn.functional.cross_entropy, None, optimizer, 8, data, **options)
    trainer.fit()
    assert trainer.export() == {"op": "right", "which": [0]}


# --- callbacks ---------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_at_the_end_also_after_an_error():
    class Recorder(Callback):
        def __init__(self):
            self.calls = []

        def fit_began(self, trainer):
            self.calls.append("fit began")

        def epoch_began(self, trainer):
            self.calls.append(f"epoch {trainer.epoch} began")

        def step_ended(self, trainer):
            self.calls.append(f"step {trainer.step}")

        def epoch_ended(self, trainer, record):
            self.calls.append(f"epoch {trainer.epoch} ended, {record['epoch']}")

        def fit_ended(self, trainer):
            self.calls.append("fit ended")

    recorder = Recorder()
    search("first order", num_epochs=2, batch_size=12, callbacks=[recorder]).fit()
    epochs = [[f"epoch {e} began", "step 0", "step 1", f"epoch {e} ended, {e + 1}"] for e in range(2)]
    assert recorder.calls == ["fit began", *epochs[0], *epochs[1], "fit ended"]
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        search("first order", callbacks=[recorder], stop_when=[lambda record: 1 / 0]).fit()
    assert recorder.calls[-1] == "fit ended"


def test_the_csv_file_has_a_row_of_all_numbers_an_epoch_also_after_a_resumption(tmp_path):
    for epochs in (1, 3):
        path = tmp_path / "metrics.csv"
        trainer = search("first order", tmp_path / "run", num_epochs=epochs, callbacks=[CsvFile(path)])
        trainer.fit(resume="auto")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, record in zip(rows, trainer.history, strict=True):
        assert float(row["valid_loss"]) == record["valid_loss"]
        assert float(row["probabilities/stem/1"]) == record["probabilities"]["stem"][1]
        assert float(row["entropy/act"]) == record["entropy"]["act"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_scalars_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = search("first order", callbacks=[TensorBoard(tmp_path)])
    trainer.fit()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("valid_loss")]
    expected = [(record["epoch"], pytest.approx(record["valid_loss"])) for record in trainer.history]
    assert scalars == expected


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'supernet\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(TrainingError, match="strategy 'telepathy' is not to be had"):
        search("first order", strategy="telepathy")
