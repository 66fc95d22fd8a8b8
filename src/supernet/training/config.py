"""What a trainer is given beside its task: each option once, with its default, its text and its check.

A user writes them as keyword arguments of a trainer, `Trainer(..., batch_size=32, precision="bf16-mixed")`, or as one
`TrainingConfig` that several trainers are given.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from enum import Flag, auto
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from supernet.checks import check_counts, check_numbers
from supernet.data.loaders import Data
from supernet.errors import TrainingError
from supernet.processes.fabric import TIMEOUT, new_fabric
from supernet.training.callbacks import Callback
from supernet.training.distillation import Distillation
from supernet.training.forward import ForwardFn, LossFn
from supernet.training.metrics import Metrics
from supernet.training.run_directory import Checkpointing
from supernet.training.stopping import StoppingRule

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["FabricConfig", "LoopOptions", "TrainerArguments", "TrainingConfig"]

Check = Callable[[str, Any], Any]


class Same(Flag):
    """Where an option must be the same."""

    NOWHERE = 0
    RESUMED = auto()  # where a search goes on: what has been trained depends on it
    PROCESSES = auto()  # in all processes of a run
    RUNS = auto()  # in runs that do the same, of which means over seeds are taken
    EVERYWHERE = RESUMED | PROCESSES | RUNS


def _about(text: str, same: Same = Same.EVERYWHERE, check: Check | None = None) -> dict[str, Any]:
    """Return what a field knows of its option.

    Args:
        text: Its sentences in the docstring; the default is added where none says it.
        same: Where it must be the same.
        check: `(name, value) -> value`, which raises `TrainingError` for what cannot be. Default: all can be.
    """
    return {"text": text, "same": same, "check": check}


def _count(least: int) -> Check:
    def check(name: str, value: Any) -> int:
        check_counts(least, **{name: value})
        return int(value)  # NumPy's are no JSON

    return check


def _count_or_none(name: str, value: Any) -> Any:
    check_counts(0, **{name: value or 0})
    return value


def _norm(name: str, value: Any) -> float | None:
    check_numbers(**{name: value or 0})
    return None if value is None else float(value)


def _seconds(name: str, value: Any) -> Any:
    check_numbers(0.1, 1e6, **{name: value})
    return value


def _whole_number(name: str, value: Any) -> int:
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TrainingError(f"{name} is a whole number, not {value!r}")
    return int(value)


def _seed(name: str, value: Any) -> int:
    seed = _whole_number(name, value)
    if not -(2**63) <= seed < 2**64:  # negative ones too: each is a seed of its own to torch
        raise TrainingError(f"{name} is a whole number of 64 bits, as torch takes them, not {value!r}")
    return seed


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence):
        one = getattr(value, "__name__", None) or f"{type(value).__name__}(...)"
        raise TrainingError(f"{name} is a list, not {value!r}; give [{one}]")
    return tuple(value)


def _callbacks(name: str, value: Any) -> tuple[Callback, ...]:
    moments = [moment for moment in vars(Callback) if not moment.startswith("_")]
    for callback in (found := _tuple(name, value)):
        if isinstance(callback, type):
            raise TrainingError(
                f"{name} has the class {callback.__name__}; give one that is made, {callback.__name__}(...)"
            )
        if not all(callable(getattr(callback, moment, None)) for moment in moments):
            raise TrainingError(
                f"{name} has {callback!r}, which is no supernet.trainers.Callback; let a class inherit that and "
                f"override what it needs of {', '.join(moments)}"
            )
    return found


def _distillation(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, Distillation):
        raise TrainingError(f"{name} is a supernet.Distillation or None, not {value!r:.80}; give Distillation(teacher)")
    return value


def _stop_or_skip(name: str, value: Any) -> Any:
    if value not in ("stop", "skip"):
        raise TrainingError(f"{name} is 'stop' or 'skip', not {value!r}")
    return value


def _of_class(cls: type) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, cls):
            raise TrainingError(f"{name} is a supernet.trainers.{cls.__name__}, not {value!r}")
        return value

    return check


class _Checked:
    """Looks at each option as its field says."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            if check := one.metadata["check"]:
                object.__setattr__(self, one.name, check(one.name, getattr(self, one.name)))


def _naming_unknown(cls: type) -> Callable[..., None]:
    """Return a config's constructor, which then says which option it does not know, and how it is given."""
    constructor: Callable[..., None] = vars(cls)["__init__"]
    known = [one.name for one in fields(cls)]

    @functools.wraps(constructor)
    def naming(self: Any, *args: Any, **options: Any) -> None:
        unknown = [name for name in options if name not in known]
        if of_fabric := [name for name in unknown if name in FIELDS and cls is TrainingConfig]:
            given = ", ".join(f"{name}=..." for name in of_fabric)
            raise TypeError(
                f"{cls.__name__} has {', '.join(map(repr, of_fabric))} in its fabric; give {cls.__name__}.of({given}), "
                f"which takes all, or fabric=FabricConfig({given})"
            )
        if unknown:
            raise TypeError(unknown_argument(cls.__name__, unknown, known))
        constructor(self, *args, **options)

    return naming


@dataclass(frozen=True, kw_only=True)
class FabricConfig(_Checked):
    """Devices, processes and precision, which Lightning Fabric carries.

    Args:
        {options}
    """

    device: str | torch.device | None = field(
        default=None,
        metadata=_about(
            'Device, such as "cpu" or "cuda:1". Default: an accelerator where there is one.',
            Same.RUNS,  # its kind is compared between processes
        ),
    )
    devices: int | None = field(
        default=None,
        metadata=_about(
            "Number of processes on this node. Default: as `torchrun` says, else 1.", Same.PROCESSES | Same.RUNS
        ),
    )
    num_nodes: int | None = field(
        default=None,
        metadata=_about("Number of nodes. Default: as `torchrun` says, else 1.", Same.PROCESSES | Same.RUNS),
    )
    strategy: str = field(
        default="auto",
        metadata=_about(
            "How processes share the work, as Lightning Fabric names it. Default: DDP where there are several.",
            Same.PROCESSES | Same.RUNS,
        ),
    )
    precision: str = field(
        default="32-true",
        metadata=_about(
            'Precision as Lightning Fabric names it, such as "bf16-mixed". Default: "32-true", which computes in the '
            "model's own dtype.",
        ),
    )
    process_timeout: float = field(
        default=TIMEOUT,
        metadata=_about(
            "Seconds that a process waits for the others, before all end with an error that says what was waited for.",
            Same.PROCESSES,
            _seconds,
        ),
    )

    def launched(self, *, unused_parameters: bool) -> Fabric:
        """Return a Fabric whose processes are there: see `new_fabric`."""
        options = {**vars(self)}
        timeout = float(options.pop("process_timeout"))
        return new_fabric(**options, unused_parameters=unused_parameters, timeout=timeout)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Checked):
    """How to train: batches, clipping, files, what is called and what stops; it does not change.

    >>> config = TrainingConfig.of(batch_size=32, precision="bf16-mixed")
    >>> config.batch_size, config.accumulate, config.fabric.precision
    (32, 1, 'bf16-mixed')

    Args:
        {options}
    """

    batch_size: int = field(
        default=64,
        metadata=_about("Samples of a batch in each process, where `dataset` is no DataLoader.", check=_count(1)),
    )
    workers: int = field(
        default=0,
        metadata=_about("Processes that load data, where `dataset` is no DataLoader.", Same.NOWHERE, _count(0)),
    )
    grad_clip: float | None = field(
        default=5.0,
        metadata=_about("Largest norm of the weights' gradient; None or 0 does not clip.", check=_norm),
    )
    accumulate: int = field(
        default=1,
        metadata=_about(
            "Batches whose gradients are averaged into one step of each optimizer. Steps of several optimizers still "
            "alternate batch by batch: each has its own gradients and steps at its last.",
            check=_count(1),
        ),
    )
    log_frequency: int | None = field(
        default=None,
        metadata=_about("Steps between log lines. Default: a line an epoch.", Same.PROCESSES, _count_or_none),
    )
    seed: int = field(
        default=0,
        metadata=_about(
            "Seed of the split, the order of the data, the architecture parameters, and all that `fit` draws.",
            Same.RESUMED | Same.PROCESSES,
            _seed,
        ),
    )
    run_dir: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_about(
            "Directory for metrics, checkpoints, the architecture, the network's weights and plots. Default: no files.",
            Same.NOWHERE,  # what processes see there is compared
        ),
    )
    checkpointing: Checkpointing = field(
        default=Checkpointing(),
        metadata=_about(
            "When a checkpoint is written into `run_dir`. Default: each epoch, the last 2 and the best.",
            Same.PROCESSES,
            _of_class(Checkpointing),
        ),
    )
    callbacks: Sequence[Callback] = field(
        default=(),
        metadata=_about("Called in the first process while the search runs. Default: none.", Same.NOWHERE, _callbacks),
    )
    stop_when: Sequence[StoppingRule] = field(
        default=(),
        metadata=_about(
            "Rules `record -> reason or None`, asked after each epoch. Default: none.",
            Same.PROCESSES | Same.RUNS,
            _tuple,
        ),
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata=_about(
            'Whether a loss that is NaN or infinite stops the search ("stop"), or its step is skipped and counted, and '
            'buffers are as before it ("skip"). A step of an optimizer whose gradient is such is skipped then, too, '
            "and evaluations leave out batches that hold such numbers.",
            check=_stop_or_skip,
        ),
    )
    distillation: Distillation | None = field(
        default=None,
        metadata=_about("What teaches the weights, beside the targets. Default: nothing.", check=_distillation),
    )
    progress: bool = field(
        default=True,
        metadata=_about("Whether to show a bar where there is a terminal.", Same.NOWHERE),
    )
    fabric: FabricConfig = field(
        default=FabricConfig(),
        metadata=_about(
            "Devices, processes and precision; among the keyword arguments of a trainer these stand beside the others. "
            "Default: an accelerator where there is one, and the processes that `torchrun` has started.",
            check=_of_class(FabricConfig),
        ),
    )

    @classmethod
    def of(cls, config: TrainingConfig | None = None, /, **options: Any) -> TrainingConfig:
        """Return a config in which these options stand in the place of those of another.

        Args:
            config: Config whose options hold where they are not given. Default: all have their defaults.
            options: Options by name, those of Fabric beside the others.

        Raises:
            TrainingError: An option cannot be; names it.
            TypeError: There is no such option; names the nearest.
        """
        if unknown := [name for name in options if name not in FIELDS]:
            raise TypeError(unknown_argument(cls.__name__, unknown, FIELDS))
        config = cls() if config is None else _of_class(cls)("config", config)
        of_fabric = {f.name: options.pop(f.name) for f in fields(FabricConfig) if f.name in options}
        return replace(config, fabric=replace(config.fabric, **of_fabric), **options)

    def flat(self) -> dict[str, Any]:
        """Return name -> option, those of Fabric beside the others, as `of` takes them."""
        return {name: value for name, value in {**vars(self), **vars(self.fabric)}.items() if name != "fabric"}


FIELDS = {f.name: f for cls in (TrainingConfig, FabricConfig) for f in fields(cls) if f.name != "fabric"}


def unknown_argument(taker: str, unknown: Sequence[str], known: Iterable[str]) -> str:
    """Return what is wrong with arguments that a trainer does not know, and the nearest that it does."""
    nearest = [near for name in unknown for near in get_close_matches(name, known, n=1)]
    mend = f"did you mean {' and '.join(map(repr, nearest))}?" if nearest else f"it takes: {', '.join(known)}"
    return f"{taker} takes no argument {', '.join(map(repr, unknown))}; {mend}"


def describe_options(cls: type, options: Iterable[Field[Any]]) -> None:
    """Put the text of options in the place of `{options}` in a class's docstring."""
    found = re.search("^( *){options}$", cls.__doc__ or "", re.MULTILINE)  # python -OO leaves none
    if found:
        wrap = TextWrapper(120, initial_indent=found[1], subsequent_indent=f"{found[1]}    ", break_on_hyphens=False)
        entries = (wrap.fill(f"{option.name}: {_sentences(option)}") for option in options)
        cls.__doc__ = (cls.__doc__ or "").replace(found[0], "\n".join(entries))


def _sentences(option: Field[Any]) -> str:
    text, default = option.metadata["text"], option.default
    shown = f'"{default}"' if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else default
    return text if "Default:" in text else f"{text} Default: {shown}."


for _config in (TrainingConfig, FabricConfig):
    _config.__init__ = _naming_unknown(_config)  # type: ignore[method-assign]
    describe_options(_config, fields(_config))


class LoopOptions(TypedDict, total=False):
    """The keyword arguments that every trainer takes, for type checkers: the optional part of the task, and options."""

    valid_dataset: Data | None
    forward_fn: ForwardFn | None
    loss_fn: LossFn | None
    scheduler: LRScheduler | ReduceLROnPlateau | None
    scheduler_interval: Literal["epoch", "step"]
    config: TrainingConfig | None
    batch_size: int
    workers: int
    grad_clip: float | None
    accumulate: int
    log_frequency: int | None
    seed: int
    run_dir: str | os.PathLike[str] | None
    checkpointing: Checkpointing
    callbacks: Sequence[Callback]
    stop_when: Sequence[StoppingRule]
    on_nonfinite: Literal["stop", "skip"]
    distillation: Distillation | None
    progress: bool
    device: str | torch.device | None
    devices: int | None
    num_nodes: int | None
    strategy: str
    precision: str
    process_timeout: float


class TrainerArguments(LoopOptions, total=False):
    """All that every trainer takes, by name, for type checkers: `def __init__(self, *task, **config: Unpack[...])`."""

    model: nn.Module
    loss: Callable[[Any, Any], torch.Tensor] | None
    metrics: Metrics | None
    optimizer: Optimizer
    num_epochs: int
    dataset: Data
