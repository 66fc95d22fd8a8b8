"""The contestants of the benchmarks compute the same: the textbook way, written apart from ours, and ours."""

import json

import pytest
import torch
from benchmarks import measuring, mixture
from benchmarks.contestants import CONTESTANTS, REMEDIES, Task


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(measuring, "THREADS", torch.get_num_threads())


@pytest.mark.parametrize(
    ("network", "second_order"),
    [
        ("transformer", False),
        ("transformer", True),
        ("nas_bench_201", False),
        *(
            pytest.param(*task, marks=pytest.mark.slow)
            for task in (("nas_bench_201", True), ("darts", False), ("darts", True))
        ),
    ],
)
def test_contestants_give_the_same_numbers(network, second_order):
    """In float64, alphas after three steps to 1e-7. DARTS's only cell is one that halves the image."""
    mixture.check(Task(network, 1, 4, second_order), CONTESTANTS)


@pytest.mark.slow
def test_each_remedy_leaves_the_numbers_as_they_are():
    mixture.check(Task("darts", 1, 4), REMEDIES)


def test_a_contestant_that_gives_other_numbers_is_refused():
    def wrong(task):
        step = CONTESTANTS["supernet"](task)
        return lambda *batch: {label: alpha + 1e-3 for label, alpha in step(*batch).items()}

    with pytest.raises(SystemExit, match="wrong gives other alphas for 'attention_0'"):
        mixture.check(Task("transformer", 1, 4), {"textbook": CONTESTANTS["textbook"], "wrong": wrong})


def test_bytes_saved_for_backward_are_those_of_distinct_storages():
    x, w = torch.randn(1024, requires_grad=True), torch.randn(1024, requires_grad=True)
    kept = []
    # x * w holds x and w, sin the product: three storages of 4 KiB. Taking views of one storage adds nothing.
    saved = measuring.saved_by(lambda: kept.append((x * w).sin().sum() + (x.view(32, 32) * w.view(32, 32)).sum()))
    assert saved * 1024 == pytest.approx(3 * 4)


def test_a_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "__file__", str(tmp_path / "benchmarks" / "measuring.py"))
    (tmp_path / "benchmarks").mkdir()
    measuring.report("name", "Title", [{"what": "a", "ms": 1234.5}, {"what": "bcd", "ms": 0.1234}])
    assert "| bcd  | 0.123 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "benchmarks" / "results" / "name.json").read_text())
    assert [row["ms"] for row in written["rows"]] == [1234.5, 0.1234]
