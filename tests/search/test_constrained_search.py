"""Under latency bounds on NAS-Bench-201 searches end nearer to the best than random ones do."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.constrained_search import SEARCHERS, Benchmark

from supernet.search import RandomSearcher

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = [DATA / "nas_bench_201.npz", DATA / "nas_latency.npz"]

HERE = all(file.exists() for file in FILES)
pytestmark = pytest.mark.skipif(not HERE, reason="shared/data/nas_bench_201.npz or nas_latency.npz is not here")


@pytest.fixture(scope="module")
def benchmark():
    return Benchmark(DATA)


@pytest.fixture(scope="module")
def bounds(benchmark):
    return [benchmark.limits(device, share) for device, share in (("pixel3", 0.5), ("titanx_32", 0.25))]


def test_the_tables_are_of_the_cells_that_the_space_has(benchmark):
    rows = [benchmark.row(architecture) for architecture in benchmark.space.enumerate()]
    assert sorted(rows) == list(range(15_625))
    assert benchmark.truth[6111] == benchmark.truth.max()  # the row that its publishers name


def regrets(benchmark, bounds, kind, seeds):
    return [benchmark.regrets(kind, seed, limits, [100])[0] for limits in bounds for seed in range(seeds)]


@pytest.fixture(scope="module")
def of_random(benchmark, bounds):
    return np.mean(regrets(benchmark, bounds, RandomSearcher, 4))


@pytest.mark.parametrize(("name", "seeds"), [("regularized evolution", 4), ("evolution of SPOS", 4), ("TPE", 1)])
def test_after_100_evaluations_the_regret_is_less_than_that_of_random_search(benchmark, bounds, of_random, name, seeds):
    if name == "TPE":
        pytest.importorskip("optuna")
    assert np.mean(regrets(benchmark, bounds, SEARCHERS[name], seeds)) < of_random
