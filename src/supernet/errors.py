"""What can go wrong for a user, as one tree: catch `SupernetError`, or a branch of it.

SupernetError
├── ChoiceError            a choice is written in a way that cannot mean anything
│   └── MixtureError       what a choice decides between cannot be mixed; a trainer that samples can search it
├── UnresolvedChoiceError  a model was run while it still has choices
├── SpaceError             the choices of a model do not make one search space
├── ArchitectureError      an architecture does not belong to the space, or is incomplete
├── ReplacementError       a choice could not be replaced, or what replaced it cannot be read
│   └── AlreadyReplacedError  the model's choices have been replaced already
├── DataError              a dataset, loader or batch cannot be used as asked
├── TrainingError          a trainer or its arguments cannot work, or training broke down
│   └── NonFiniteError     a loss or an architecture parameter is NaN or infinite
├── CostError              a cost or a limit of costs cannot be, or no network keeps it
├── ExportError            a network cannot be written for other runtimes, or what was written computes something else
├── FileFormatError        a file is not what it should be
├── NameTakenError         a real nni is installed where its names are asked for
└── MissingExtraError      an optional dependency is not installed
"""

import warnings

__all__ = [
    "AlreadyReplacedError",
    "ArchitectureError",
    "ChoiceError",
    "CostError",
    "DataError",
    "ExportError",
    "FileFormatError",
    "MissingExtraError",
    "MixtureError",
    "NameTakenError",
    "NonFiniteError",
    "ReplacementError",
    "SpaceError",
    "SupernetError",
    "TrainingError",
    "UnresolvedChoiceError",
]


class SupernetError(Exception):
    """The root of every error that this library raises on purpose."""


class ChoiceError(SupernetError, ValueError):
    """A choice is written in a way that cannot mean anything."""


class MixtureError(ChoiceError):
    """What a choice decides between cannot be mixed, as a trainer would have it; one that samples can search it."""


class UnresolvedChoiceError(SupernetError, RuntimeError):
    """A model was run while it still has choices that nobody has decided."""


class SpaceError(SupernetError, ValueError):
    """The choices of a model do not make one search space, or not one that can be counted."""


class ArchitectureError(SupernetError, ValueError):
    """An architecture does not belong to the space, or leaves a decision open."""


class ReplacementError(SupernetError, RuntimeError):
    """A choice could not be replaced, or what replaced it does not hold what it must."""


class AlreadyReplacedError(ReplacementError):
    """The model's choices have been replaced already; `restore(model)` puts them back."""


class DataError(SupernetError, ValueError):
    """A dataset, loader or batch cannot be used as asked."""


class TrainingError(SupernetError, RuntimeError):
    """A trainer or its arguments cannot work together, or training broke down."""


class NonFiniteError(TrainingError):
    """A loss or an architecture parameter became NaN or infinite."""


class CostError(SupernetError, ValueError):
    """A cost or a limit of costs cannot be, or no network keeps it."""


class ExportError(SupernetError, RuntimeError):
    """A network cannot be written as asked, or what was written does not compute what the network does."""


class FileFormatError(SupernetError, ValueError):
    """A file is truncated, foreign, or belongs to something else."""


class MissingExtraError(SupernetError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class NameTakenError(SupernetError, ImportError):
    """A real nni is installed, so its names cannot be given to our classes unasked."""


def __getattr__(name: str) -> type[SupernetError]:
    """Give what has another name now."""
    if name == "TakenOverError":
        warnings.warn("TakenOverError is called AlreadyReplacedError now", DeprecationWarning, stacklevel=2)
        return AlreadyReplacedError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
