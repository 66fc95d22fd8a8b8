"""Loaders, samplers and streams of a user's own, read by two processes, give what one with twice the batch gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from searches_on_loaders import CASES

import programs
from supernet.data.order import Batches

SCRIPT = Path(__file__).with_name("searches_on_loaders.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all searches came to: in one process, in each of two; and what these printed."""
    path = tmp_path_factory.mktemp("shared") / "result"
    programs.run(SCRIPT, path, timeout=300)
    printed = programs.run(SCRIPT, path, processes=2, timeout=300).stdout
    files = [f"{path}-{name}.safetensors" for name in ("1-0", "2-0", "2-1")]
    return [load_file(file) for file in files], printed


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_the_batch_give_what_one_gives_on_loaders(found, case):
    one, first, second = ({k: v for k, v in r.items() if k.startswith(f"{case}/")} for r in found[0])
    assert one
    assert one.keys() == first.keys() == second.keys()
    # Half a batch is rounded otherwise in bfloat16; what the two have in common is far more than what a share is.
    tolerance = 2e-2 if case == "bf16" else 2e-5
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_stream_that_shares_itself_and_a_sampler_for_other_processes_are_refused_by_name_in_all(found):
    lines = found[1].splitlines()
    sharded, others = ([line for line in lines if line.startswith(what)] for what in ("SHARDED", "OTHERS"))
    assert len(sharded) == len(others) == 2
    assert all("the beginning of the training part, of all of which each process takes its share" in s for s in sharded)
    assert all("DistributedSampler shares the samples among 3 processes, but there are 2" in line for line in others)


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "samples"),
    [
        (5, 4, 2, [2, 3]),
        (3, 4, 2, [3, 3]),  # the second stands in for none: one sample alone BatchNorm does not bear
        (1, 4, 3, [1, 1, 1]),
        (5, 4, 4, [2, 3, 2, 2]),
        (2, 1, 4, [1, 1, 1, 1]),
    ],
)
def test_shares_of_the_last_group_make_the_mean_of_means_the_mean_over_its_samples(
    count, batch_size, world_size, samples
):
    numbers = torch.arange(float(count)) ** 2
    means, given = [], []
    for rank in range(world_size):
        batches = Batches(count, batch_size, seed=0, shuffle=True, drop_last=False, rank=rank, world_size=world_size)
        ((keys),) = list(batches)
        mine = [key.index for key in keys]
        given.append(len(mine))
        means.append(numbers[mine].mean() * batches.share_of(0))
    assert given == samples
    assert torch.stack(means).mean() == pytest.approx(numbers.mean().item())
