"""Each option is classified: whether a search, its processes, and runs that are averaged must have the same."""

import inspect

from supernet.runs import _differing
from supernet.training.loop import TrainingLoop
from supernet.training.options import FREE, NOT_COMPARED, SAME


def test_every_option_of_the_loop_is_classified():
    parameters = inspect.signature(TrainingLoop.__init__).parameters
    assert set(SAME) == set(parameters) - {"self", "model", "config"}


def test_runs_that_differ_in_what_moves_no_result_are_averaged():
    assert NOT_COMPARED - {"seed"} <= FREE
    assert _differing([{name: number for name in NOT_COMPARED} for number in range(2)]) == []
    assert _differing([{"process_timeout": number, "optimizer.lr": number} for number in range(2)]) == ["optimizer.lr"]
