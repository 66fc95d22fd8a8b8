"""A comparison over two processes that never ends: each says which it is, and sleeps. For the test beside it."""

import os
import sys
import time
from pathlib import Path

from tests.compare.test_comparison_under_limits import PARTS, measure_width, new_model, train_nothing

from supernet.compare import compare_under_limits


def sleep(seed):
    """Write the number of this process into the directory that the command names."""
    (Path(os.environ["WHERE"]) / str(os.getpid())).touch()
    time.sleep(600)


if __name__ == "__main__":
    os.environ["WHERE"] = sys.argv[1]
    compare_under_limits(
        new_model, [{"parameters": 60}], sleep, train_nothing, measure_width, PARTS, seeds=(0, 1), processes=2
    )
