"""What tests of all rooms share."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "trainers"))  # searches.py, which other processes run too

# Tests are small, and sums come in another order with another number of threads: with one, processes that the tests
# start give the same bits, and cores that are shared with other work do not make threads wait for each other.
torch.set_num_threads(1)
