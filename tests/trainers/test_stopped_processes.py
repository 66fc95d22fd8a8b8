"""A search by several processes that is stopped anywhere and goes on ends, in each of them, as one that never was."""

import json
import random
import signal
from pathlib import Path

import pytest
import searches

import programs

SCRIPT = Path(__file__).with_name("stopped_searches.py")
KINDS = [*searches.KINDS, "of each", "network"]
VARIANTS = ["plain", "accumulated", "plateau", "bf16", "torchmetrics"]


def run(processes, what, run_dir, *arguments, check=True):
    run_dir.mkdir(parents=True, exist_ok=True)
    return programs.run(SCRIPT, what, run_dir, *arguments, processes=processes, check=check, timeout=580)


def results(run_dir, processes):
    return [json.loads((run_dir / f"result-{rank}.json").read_text()) for rank in range(processes)]


def check_cycles(run_dir, processes, names, seed, stops):
    run(processes, "cycles", run_dir, *names, "--seed", str(seed), "--stops", str(stops))
    found = results(run_dir, processes)
    assert [one["differing"] for one in found] == [[]] * processes
    assert found[0]["stops"] >= len(names)


def steps_saved(run_dir):
    return sorted(int(path.stem.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*.safetensors"))


def check_signals(run_dir, processes, name, rng, signals):
    """Give one process a signal before one of its steps, again and again."""
    for number in signals:
        before, rank = rng.randint(1, 3), rng.randrange(processes)
        stop = ("--die", number.name, "--before", str(before), "--rank", str(rank))
        begun_at = max(steps_saved(run_dir), default=0)
        ended = run(processes, "search", run_dir, name, *stop, check=False)
        description = json.loads((run_dir / "run.json").read_text())
        if description["status"] == "finished":  # fewer steps were left, so no signal was given
            assert steps_saved(run_dir)[-1] < begun_at + before
            break
        assert ended.returncode != 0
        if number == signal.SIGTERM:
            assert (description["status"], description["signal"]) == ("interrupted", "SIGTERM")
            assert steps_saved(run_dir)[-1] >= begun_at + before  # that step was finished, and saved
    else:
        run(processes, "search", run_dir, name)
    assert [one["differing"] for one in results(run_dir, processes)] == [[]] * processes


@pytest.mark.slow
def test_searches_of_two_processes_stopped_in_mid_epoch_end_bit_equal_in_both(tmp_path):
    check_cycles(tmp_path, 2, ["first order/plateau", "of each/plain", "enas/torchmetrics"], seed=0, stops=3)


def test_a_search_of_two_processes_goes_on_exactly_after_sigterm_and_sigkill(tmp_path):
    check_signals(tmp_path, 2, "proxyless/plain", random.Random(0), [signal.SIGTERM, signal.SIGKILL])


def test_a_search_of_three_processes_that_accumulates_goes_on_exactly(tmp_path):
    check_cycles(tmp_path, 3, ["first order/accumulated"], seed=1, stops=2)  # sums of three depend on their order


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_search_stopped_again_and_again_ends_bit_equal_in_all_processes(tmp_path, kind, processes):
    names = [f"{kind}/{v}" for v in VARIANTS if (kind, v) != ("second order", "accumulated")]
    check_cycles(tmp_path, processes, names, seed=1, stops=4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_search_goes_on_exactly_after_signals_at_random_steps(tmp_path, kind, processes):
    rng = random.Random(f"{kind} {processes}")
    check_signals(tmp_path, processes, f"{kind}/plain", rng, rng.choices([signal.SIGTERM, signal.SIGKILL], k=5))
