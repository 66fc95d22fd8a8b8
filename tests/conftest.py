"""What tests of all rooms share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "trainers"))  # searches.py, which other processes run too
