"""Found networks beside random ones and random search: fair by construction."""

import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import supernet.nn
from supernet import SearchSpace, ValueChoice
from supernet.compare import compare_under_limits
from supernet.cost import Parameters
from supernet.errors import CostError, NonFiniteError, TrainingError

PARTS = [TensorDataset(torch.full((n, 4), float(n))) for n in (5, 3, 2)]  # to train on, to choose by, to test on


def new_model():
    width = ValueChoice(range(1, 41), label="width")
    return nn.Sequential(supernet.nn.Linear(4, width), nn.ReLU(), supernet.nn.Linear(width, 2))


def width_of(network):
    return network[0].out_features


class Clock:
    """Time goes by where the test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("supernet.compare.comparison.time", SimpleNamespace(perf_counter=lambda: self.now))


class World:
    """Wider networks are worse, what is chosen by says the opposite of every second width; a training takes 1 s."""

    def __init__(self, clock, search_seconds=3.0):
        self.clock, self.search_seconds = clock, search_seconds
        self.trained, self.measured, self.searched, self.best_of = [], [], [], {"width": 2}

    def search(self, seed):
        self.searched.append(seed)
        self.clock.now += self.search_seconds
        return self

    def best(self, limits):
        self.clock.now += 0.5
        return self.best_of

    def estimate(self, architectures):
        return [-one["width"] for one in architectures]

    def train(self, network, dataset, seed):
        self.clock.now += 1.0
        self.trained.append((width_of(network), len(dataset), seed, network[0].weight.sum().item()))

    def measure(self, network, dataset):
        self.measured.append((width_of(network), len(dataset)))
        return 100.0 - width_of(network)

    def compare(self, budgets=({"parameters": 100}, {"parameters": 200}), **options):
        return compare_under_limits(
            new_model, budgets, self.search, self.train, self.measure, PARTS, **{"num_random": 2, **options}
        )


@pytest.fixture
def world(monkeypatch):
    return World(Clock(monkeypatch))


def test_all_keep_the_same_limits_and_each_seed_searches_once(world):
    comparison = world.compare()
    assert world.searched == [0, 1, 2]
    assert [(row.budget["parameters"], row.method) for row in comparison.rows] == [
        (budget, method) for budget in (100, 200) for method in ("found", "random", "random search at equal time")
    ]
    cost = Parameters(new_model())
    for row in comparison.rows:
        assert len(row.contestants) == (6 if row.method == "random" else 3)
        for one in row.contestants:
            assert one.costs == {"parameters": cost.of(one.architecture)}
            assert one.costs["parameters"] <= row.budget["parameters"]
            assert one.score == 100.0 - one.architecture["width"]
        assert row.scores == [mean(o.score for o in row.contestants if o.seed == seed) for seed in (0, 1, 2)]
    at_random = comparison.row({"parameters": 200}, "random").contestants
    assert len({one.architecture["width"] for one in at_random}) > 3  # each seed draws its own


def test_random_search_takes_the_time_of_the_search_and_chooses_by_validation_data(world):
    comparison = world.compare(budgets=[{"parameters": 200}], seeds=[7])
    row = comparison.row({"parameters": 200}, "random search at equal time")
    # The search took 3.5 s, so the fourth training of 1 s is the last to be begun.
    assert comparison.row({"parameters": 200}, "found").seconds == [3.5]
    assert (row.seconds, row.num_tried) == ([4.0], [4])
    tried = [width for width, size in world.measured if size == 3]
    assert row.contestants[0].architecture == {"width": min(tried)}
    assert len(set(tried)) == 4


def test_no_choice_sees_test_data_and_all_are_trained_alike_at_the_end(world):
    world.compare(budgets=[{"parameters": 200}], seeds=[0])
    assert [size for _, size in world.measured] == [3] * 4 + [2] * 4
    assert [size for _, size, *_ in world.trained] == [5] * 4 + [8] * 4
    assert {seed for _, _, seed, _ in world.trained} == {0}


def test_the_same_seeds_give_the_same_and_leave_random_numbers_alone(monkeypatch):
    torch.manual_seed(5)
    expected, told = torch.rand(1), []
    torch.manual_seed(5)
    rows = []
    for _ in range(2):
        world = World(Clock(monkeypatch))
        rows.append((world.compare(on_progress=told.append).to_json(), world.trained))
    assert rows[0] == rows[1]  # the new weights too
    assert torch.rand(1) == expected
    assert len(told) == 2 * 3 * (1 + 2)


def test_a_space_with_fewer_networks_than_time_is_tried_whole(world):
    world.search_seconds = 1000.0
    comparison = world.compare(budgets=[{"parameters": 30}], seeds=[0], num_random=9)
    # 7 * width + 2 parameters: of widths 1 to 4.
    assert comparison.row({"parameters": 30}, "random search at equal time").num_tried == [4]
    assert len(comparison.row({"parameters": 30}, "random").contestants) == 4


def test_differences_are_those_of_the_seeds_and_ranks_those_of_random_networks(world):
    comparison = world.compare()
    found, random = (comparison.row({"parameters": 200}, name).scores for name in ("found", "random"))
    gap = comparison.difference({"parameters": 200}, "random")
    assert gap.mean == pytest.approx(mean(found) - mean(random))
    assert gap.low < gap.mean < gap.high and 0 <= gap.p_value <= 1
    assert comparison.rank_correlations() == [1.0, 1.0, 1.0]
    world.estimate = lambda architectures: [one["width"] for one in architectures]
    assert world.compare().rank_correlations() == [-1.0, -1.0, -1.0]
    world.estimate = None
    assert world.compare().rank_correlations() == []


def test_rows_of_the_file_and_lines_of_the_table_say_what_was_measured(world, tmp_path):
    comparison = world.compare()
    comparison.save(tmp_path / "comparison.json")
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert rows == comparison.to_json()
    assert rows[0] == {
        "budget": 100,
        "method": "found",
        "parameters": 16.0,
        "test_accuracy": [98.0, 98.0, 98.0],
        "seconds": 3.5,
    }
    assert (rows[1]["seconds"], rows[2]["seconds"]) == (0.0, 4.0)
    out = io.StringIO()
    Console(file=out, width=140).print(comparison.table())
    for row in rows:
        assert f"{mean(row['test_accuracy']):.1f} ±" in out.getvalue()
    assert "random search at equal time (4 trained)" in out.getvalue()
    assert f"{comparison.difference({'parameters': 100}, 'random').mean:+.1f} ±" in out.getvalue()


def test_a_narrow_terminal_cuts_no_number_and_hides_no_limit(world):
    comparison, out = world.compare(), io.StringIO()
    Console(file=out, width=80).print(comparison.table())
    assert "…" not in out.getvalue()
    for row in comparison.to_json():
        assert f"{row['parameters']:,.0f} " in out.getvalue()
        assert f"{mean(row['test_accuracy']):.1f} ±" in out.getvalue()
    gap = comparison.difference({"parameters": 100}, "random")
    assert f"{gap.mean:+.1f} ± {(gap.high - gap.low) / 2:.1f}" in out.getvalue()
    assert " 100 " in out.getvalue()


def test_the_picture_is_written(world, tmp_path):
    pytest.importorskip("matplotlib")
    paths = world.compare().plot(tmp_path / "front")
    assert paths == [tmp_path / "front.png", tmp_path / "front.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_what_cannot_be_compared_is_refused_by_name(world):
    for options in ({"budgets": []}, {"seeds": []}):
        with pytest.raises(TrainingError, match="nothing to compare"):
            world.compare(**options)
    with pytest.raises(TrainingError, match="not 2 datasets"):
        compare_under_limits(new_model, [{"parameters": 9}], world.search, world.train, world.measure, PARTS[:2])
    with pytest.raises(CostError, match="nearest"):
        world.compare(budgets=[{"parameters": 3}])
    with pytest.raises(TrainingError, match="there are"):
        world.compare(seeds=[0]).row({"parameters": 5}, "found")
    world.best_of = {"width": 40}
    with pytest.raises(CostError, match=r"breaks limits.*parameters 282 \(at most 100\)"):
        world.compare()
    world.search = lambda seed: object()
    with pytest.raises(TrainingError, match="best"):
        world.compare()


def test_a_score_that_is_nan_is_named(world):
    world.measure = lambda network, dataset: math.nan
    with pytest.raises(NonFiniteError, match="width"):
        world.compare()


def test_a_front_is_what_a_search_may_give(world):
    from supernet.search import Entry, Front

    entry = Entry({"width": 3}, {"accuracy": 0.5}, {"parameters": 23.0})
    world.search = lambda seed: Front(SearchSpace(new_model()), {"accuracy": "max"}, [entry])
    comparison = world.compare(seeds=[0])
    assert comparison.rows[0].contestants[0].architecture == {"width": 3}


def search_by_width(seed):
    from supernet.search import Entry, Front

    entries = [Entry({"width": w}, {"accuracy": w + seed}, {"parameters": 7.0 * w + 2}) for w in (2, 5)]
    return Front(SearchSpace(new_model()), {"accuracy": "max"}, entries)


def train_nothing(network, dataset, seed):
    pass


def measure_width(network, dataset):
    return float(width_of(network)) + torch.get_num_threads() / 100


@pytest.mark.slow
def test_processes_that_share_the_seeds_give_the_same_rows():
    task = (new_model, [{"parameters": 60}], search_by_width, train_nothing, measure_width, PARTS)
    told = []
    alone, shared = (compare_under_limits(*task, processes=n, on_progress=told.append) for n in (1, 2))
    assert [(r.method, r.scores) for r in alone.rows[:2]] == [(r.method, r.scores) for r in shared.rows[:2]]
    assert len(told) == 2 * 3 * 2


@pytest.mark.slow
def test_processes_end_with_the_one_that_compares(tmp_path):
    command = [sys.executable, "-m", "tests.compare.process_that_compares", tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment) as comparing:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        comparing.kill()
    wait_for(lambda: not any(is_running(path.name) for path in tmp_path.iterdir()))


def wait_for(happens):
    """Return when something happens, and fail where it takes too long."""
    for _ in range(600):
        if happens():
            return
        time.sleep(0.1)
    raise AssertionError("a minute has passed")


def is_running(number):
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/stat")  # one that has ended, but that nobody has asked about, is a zombie
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
