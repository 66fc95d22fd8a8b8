"""What every trainer, choice, mutable, relaxation and searcher promises, as checks that yours can be run through too.

Each is a plain function, for any test runner: it returns nothing, and raises `AssertionError` with what was promised
and what was seen.
"""

from supernet.testing.choices import check_choice
from supernet.testing.mutables import check_mutable
from supernet.testing.relaxations import check_relaxation
from supernet.testing.searchers import check_searcher
from supernet.testing.trainers import check_trainer

__all__ = ["check_choice", "check_mutable", "check_relaxation", "check_searcher", "check_trainer"]
