"""What a trainer promises."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from supernet.errors import SupernetError, TrainingError
from supernet.execution import restore
from supernet.nn import Choice
from supernet.space import freeze
from supernet.testing.comparing import differences, flat, in_words, promised, random_numbers
from supernet.testing.processes import in_processes
from supernet.trainers import BaseOneShotTrainer, Callback, Checkpointing, SupernetTrainer

__all__ = ["check_trainer"]

Make = Callable[..., Any]  # of a trainer


class _Stop(Exception):
    """What a search is stopped by."""


def check_trainer(make: Make, *, processes: int = 1) -> None:
    """Check that a trainer holds what users rely on, by some ten small searches.

    Of every trainer that inherits `BaseOneShotTrainer` and has its model as `model`:

    - `export` returns an architecture of the model's space, and `freeze` makes a network without choices of it.
    - `export` moves nothing: no weight, buffer or state of the algorithm, and no random numbers; twice gives the same.
    - The same seed gives the same result, bit for bit.

    Of one that inherits `SupernetTrainer`, further:

    - Global random numbers do not matter, and a run directory changes nothing.
    - A search that is stopped in the middle of an epoch, or at its end, and goes on in a new trainer ends bit-equal to
      one that never was.
    - What trains the architecture is not among the model's parameters, nor in the optimizer of its weights. A search
      moves it; `train_architecture`, where there is one, moves no weight.
    - Training form and `requires_grad` are after a search as before.
    - `stateful` names all that a checkpoint holds of the algorithm: no attribute is found by the scan that will end.
    - An error in any pass of a step, or while the supernet is built, leaves the model whole: weights as the last step
      of their optimizer left them, training form, `requires_grad`, and the choices where they were written, once
      `restore` has put them back. Global random numbers are as before.
    - The architecture of the last record, where records have one, is what `export` returns.
    - Several processes run one path: plans, weights, records and exports are the same in all.

    Args:
        make: Returns a new trainer each time it is called, of a new model with the same weights, on the same data, for
            two epochs or more of two steps or more. It is called with keyword arguments of `SupernetTrainer` (`run_dir`
            and `checkpointing`), which it passes on; for other trainers without arguments.
        processes: Number of processes that run the search together, if it is not 1. They share nothing with this
            one, so `make` is a function at the top of a module, or a `functools.partial` of one. Default: 1.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> def make(**options):
    ...     torch.manual_seed(0)
    ...     model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Linear(2, 2)], label="op"))
    ...     task = model, nn.MSELoss(), None, SGD(model.parameters(), 0.1), 2, TensorDataset(x, x)
    ...     return BilevelTrainer(*task, relaxation=Softmax, batch_size=4, **options)
    >>> x = torch.randn(16, 2)
    >>> check_trainer(make)
    """
    torch.manual_seed(0)
    whole = make()
    steps, moved, before, trained = _Steps(), list[str](), dict[str, str](), dict[str, str]()
    if isinstance(whole, SupernetTrainer):
        whole.callbacks.append(steps)
        moved, before, trained = _noting_moves(whole), outline(whole.model), flat(_trained(whole))
    whole.fit()
    expected = result_of(whole)
    _check_export(whole)
    if isinstance(whole, SupernetTrainer):
        _check_last_record(whole)
        _check_equal(outline(whole.model), before, "training form and requires_grad are after a search as before")
        _check_state_is_named(whole)
        promise = "a search moves what trains the architecture"
        promised(promise, not trained or flat(_trained(whole)) != trained, lambda: f"{in_words(list(trained))} stay")
        _check_apart(whole)
        again = make()
        with _other_random_numbers(1):
            again.fit()
            _check_equal(result_of(again), expected, "the same seed gives the same result, bit for bit")
        _check_whole_after_errors_in_steps(make)
        _check_whole_after_errors_while_building(make)
        _check_goes_on(make, expected, steps.of_epochs)
        promised("train_architecture moves no weight", not moved, lambda: f"it moves {in_words(sorted(set(moved)))}")
    else:
        torch.manual_seed(0)
        again = make()
        again.fit()
        _check_equal(result_of(again), expected, "the same seed gives the same result, bit for bit")
    if processes > 1:
        _check_processes(make, processes)


def result_of(trainer: BaseOneShotTrainer) -> dict[str, str]:
    """Return what two runs of one search must have in common, as text by path."""
    result = {**state_of(trainer), **flat(trainer.export(), "export")}
    for record in getattr(trainer, "history", []):
        result |= flat({k: v for k, v in record.items() if k != "cost"}, f"record of epoch {record['epoch']}")
    return result


def state_of(trainer: Any) -> dict[str, str]:
    """Return the weights, buffers and state of the algorithm."""
    state: dict[str, Any] = {"weight": dict(_model(trainer).named_parameters())}
    state["buffer"] = dict(_model(trainer).named_buffers())
    if isinstance(trainer, SupernetTrainer):
        state["optimizer"], state["state"] = trainer.given_optimizer, trainer.stateful()
        state["loss"] = trainer.loss if isinstance(trainer.loss, nn.Module) else None
    return flat(state)


def _model(trainer: Any) -> nn.Module:
    model = getattr(trainer, "model", None)
    promised("a trainer has its model as `model`", isinstance(model, nn.Module), f"that is {model!r}")
    return model  # type: ignore[return-value]


def _name(trainer: Any) -> str:
    return type(trainer).__name__


def _check_equal(seen: Mapping[str, str], expected: Mapping[str, str], promise: str) -> None:
    differing = differences(expected, seen)
    promised(promise, not differing, lambda: f"these differ: {in_words(differing)}")


def _check_export(trainer: Any) -> None:
    state, drawn = state_of(trainer), random_numbers()
    first = trainer.export()
    _check_equal(state_of(trainer), state, "export() moves nothing")
    _check_equal(random_numbers(), drawn, "export() leaves global random numbers as they are")
    second = trainer.export()
    promised("export() twice returns the same", first == second, f"it returned {first}, then {second}")
    promise = "export() returns an architecture of the model's space"
    try:
        network = freeze(_model(trainer), first)
    except SupernetError as error:
        raise AssertionError(f"{promise}; but {first} is none: {error}") from error
    left = [name for name, module in network.named_modules() if isinstance(module, Choice)]
    promised("a network that is frozen has no choices", not left, f"{in_words(left)} are left")


def _noting_moves(trainer: Any) -> list[str]:
    """Return a list that receives the names of the weights that `train_architecture` moves, where a trainer has it."""
    moved: list[str] = []
    inner = getattr(trainer, "train_architecture", None)

    def noting(*batches: Any, **options: Any) -> Any:
        before = flat(dict(trainer.model.named_parameters()))
        result = inner(*batches, **options)  # type: ignore[misc]
        moved.extend(differences(before, flat(dict(trainer.model.named_parameters()))))
        return result

    if inner is not None:
        trainer.train_architecture = noting
    return moved


def _trained(trainer: SupernetTrainer) -> dict[str, torch.Tensor]:
    """Return path -> what is trained of the algorithm's state, but for the model's weights."""
    weights = {id(p) for p in trainer.model.parameters()}
    return {path: p for path, p in _parameters(trainer.stateful(), "stateful()") if id(p) not in weights}


def _check_state_is_named(trainer: SupernetTrainer) -> None:
    unnamed = trainer.named_state.unnamed()
    promised("stateful() names all that a checkpoint holds of the algorithm", not unnamed, f"not {in_words(unnamed)}")


def _check_last_record(trainer: SupernetTrainer) -> None:
    recorded, exported = trainer.history[-1].get("architecture"), trainer.space.canonical(trainer.export())
    promised(
        "the architecture of the last record is what export() returns",
        recorded in (None, exported),
        f"the record has {recorded}, and export() returned {exported}",
    )


def _check_apart(trainer: SupernetTrainer) -> None:
    """Check that what trains the architecture is no weight. The choices are put back."""
    while_searching = dict(trainer.model.named_parameters())
    written = {id(p) for p in restore(trainer.model).parameters()}
    added = [name for name, p in while_searching.items() if id(p) not in written]
    promised("what trains the architecture is not among the model's parameters", not added, f"{in_words(added)} are")
    trained = {id(p) for group in trainer.given_optimizer.param_groups for p in group["params"]}
    both = [path for path, p in _parameters(trainer.stateful(), "stateful()") if id(p) in trained - written]
    promised("the optimizer of the weights does not train the architecture", not both, f"it has {in_words(both)}")


def _parameters(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) of what is trained in a tree of values."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            yield path, value
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", p) for name, p in value.named_parameters())
    elif hasattr(value, "param_groups"):
        for group in value.param_groups:
            yield from ((f"{path}[{i}]", p) for i, p in enumerate(group["params"]))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _parameters(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from _parameters(inner, f"{path}[{position}]")


# --- stopped, and gone on with -----------------------------------------------------------------------------


class _Steps(Callback):
    """Counts the steps of each epoch."""

    def __init__(self) -> None:
        self.of_epochs: list[int] = []

    def epoch_began(self, trainer: Any) -> None:
        self.of_epochs.append(0)

    def step_ended(self, trainer: Any) -> None:
        self.of_epochs[-1] += 1


class _StopsAt(Callback):
    """Stops in a step of an epoch, which is lost; or at the epoch's end."""

    def __init__(self, epoch: int, step: int | None = None) -> None:
        self.place = epoch, step

    def step_ended(self, trainer: Any) -> None:
        if (trainer.epoch, trainer.step) == self.place:
            raise _Stop

    def epoch_ended(self, trainer: Any, record: Mapping[str, Any]) -> None:
        if (trainer.epoch, None) == self.place:
            raise _Stop


def _check_goes_on(make: Make, expected: Mapping[str, str], steps: list[int]) -> None:
    promised(
        "a search has two epochs or more of two steps or more, each of which stands in one_step()",
        len(steps) > 1 and min(steps) > 1,
        f"there were epochs of {steps} steps",
    )
    last = len(steps) - 1
    # In the last epoch too, since schedules and stopping rules have a history by then.
    places = {"at the end of an epoch": (0,), "in the middle of an epoch": (last, steps[last] // 2)}
    for number, (where, place) in enumerate(places.items()):
        with TemporaryDirectory() as directory:
            run_dir = Path(directory, "run")
            stopped = make(run_dir=run_dir, checkpointing=Checkpointing(every_steps=1))
            stopped.callbacks.append(_StopsAt(*place))
            promise = "a callback's error ends the search"
            with _other_random_numbers(number), _raising(_Stop, promise):
                stopped.fit()
            rest = make(run_dir=run_dir, checkpointing=Checkpointing(every_steps=1))
            # Other global random numbers in each: a search that draws from these does not come to the same.
            with _other_random_numbers(number + 10):
                rest.fit(resume="auto")
                promise = f"a search that is stopped {where} and goes on ends as one that never was, bit for bit"
                _check_equal(result_of(rest), expected, promise)


@contextmanager
def _other_random_numbers(seed: int) -> Iterator[None]:
    """Let global random numbers be others than those of another search, and be left as they are."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what a user's data may draw from
    before = random_numbers()
    yield
    promise = "a search leaves global random numbers as they are"
    _check_equal(random_numbers(), before, promise)


@contextmanager
def _raising(error: type[Exception], promise: str) -> Iterator[None]:
    """Expect an error."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"{promise}; but it was swallowed")


# --- whole after an error ----------------------------------------------------------------------------------


def _check_whole_after_errors_in_steps(make: Make) -> None:
    passes = _passes_of_a_step(make())
    for number in range(1, passes + 1):
        trainer = make()
        place = f"in pass {number} of {passes} of a step"
        model, before, drawn = trainer.model, outline(trainer.model), random_numbers()
        weights = [flat(dict(model.named_parameters()))]
        trainer.given_optimizer.register_step_post_hook(
            lambda *_, model=model, weights=weights: weights.append(flat(dict(model.named_parameters())))
        )
        with _failing(model, number), _raising(_Stop, f"an error {place} ends the search"):
            trainer.fit()
        _check_equal(outline(model), before, f"an error {place} leaves training form and requires_grad as they were")
        promise = f"an error {place} leaves the weights as the last step of their optimizer did"
        _check_equal(flat(dict(model.named_parameters())), weights[-1], promise)
        _check_equal(random_numbers(), drawn, f"an error {place} leaves global random numbers as they were")
        written, now = outline(restore(make().model)), outline(restore(model))
        _check_equal(now, written, f"an error {place} leaves a model whose choices restore() puts back")


def _passes_of_a_step(trainer: SupernetTrainer) -> int:
    """Return how many passes of the model the first step has."""
    passes: list[int] = []
    trainer.callbacks.append(_StopsAt(0, 0))
    handle = trainer.model.register_forward_pre_hook(lambda *_: passes.append(1))
    with _raising(_Stop, "each step stands in one_step()"):
        trainer.fit()
    handle.remove()
    return len(passes)


@contextmanager
def _failing(model: nn.Module, number: int) -> Iterator[None]:
    """Let a pass of the model fail, from the first one inside on."""
    passes: list[int] = []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) == number:
            raise _Stop

    handle = model.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def _check_whole_after_errors_while_building(make: Make) -> None:
    """Let the first, a middle, and the last call of a module fail while the trainer is made."""
    calls: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, _: None if _is_copy(module) else calls.append(module))
    try:
        written = outline(restore(make().model))
    finally:
        handle.remove()
    # Three calls, for a trial of a large model makes thousands.
    for number in sorted({1, len(calls) // 2, len(calls)} - {0}):
        root: list[nn.Module] = []
        counted: list[int] = []

        def fail(module: nn.Module, _: Any, root: Any = root, counted: Any = counted, number: int = number) -> None:
            if _is_copy(module):
                return
            root.append(module)
            counted.append(1)
            if len(counted) == number:
                raise _Stop

        handle = register_module_forward_pre_hook(fail)
        try:
            with _not_reported():
                make()
        except Exception:
            has_failed = True
        else:  # a pass that is only tried
            has_failed = False
        finally:
            handle.remove()
        if has_failed and len(outline(root[0])) == len(written):
            promise = "an error while the supernet is built leaves the model as it was written"
            _check_equal(outline(root[0]), written, promise)


@contextmanager
def _not_reported() -> Iterator[None]:
    """Keep out of the log what a trial of the fast way says of our error, which it takes for the model's fault."""

    def is_of_another(record: logging.LogRecord) -> bool:
        return _Stop.__name__ not in record.getMessage()

    logger = logging.getLogger("supernet")
    logger.addFilter(is_of_another)
    try:
        yield
    finally:
        logger.removeFilter(is_of_another)


def _is_copy(module: nn.Module) -> bool:
    """Say whether a module is of a copy without values, on which costs are counted."""
    return any(p.is_meta for p in module.parameters())


def outline(model: nn.Module) -> dict[str, str]:
    """Return path -> kind and training form of each module, and path -> shape and requires_grad of each parameter."""
    modules = {f"module {n!r}": f"{type(m).__qualname__} {m.training}" for n, m in model.named_modules()}
    return {**modules, **{n: f"{tuple(p.shape)} {p.requires_grad}" for n, p in model.named_parameters()}}


# --- several processes -------------------------------------------------------------------------------------


def _check_processes(make: Make, processes: int) -> None:
    promise = f"all of {processes} processes run the same paths and come to the same"
    try:
        first, *others = in_processes(_result_with_plans, make, count=processes)
    except TrainingError as error:
        raise AssertionError(f"{promise}; but {error}") from error
    for rank, other in enumerate(others, start=1):
        differing = differences(first, other)
        promised(promise, not differing, f"in process {rank} these are others than in the first: {in_words(differing)}")


def _result_with_plans(make: Make) -> dict[str, str]:
    """Return the plan of each pass, and what all processes must come to."""
    trainer = make()
    plans: list[dict[str, str]] = []
    forward = getattr(trainer, "forward", None)
    if forward is not None:

        def noting(X: Any, plan: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
            plans.append(flat(plan, f"plan {len(plans)}"))
            return forward(X, plan, *rest, **options)

        trainer.forward = noting
    trainer.fit()
    # State may be each process's own, as of its data, and running statistics are those of its samples.
    result = {path: text for path, text in result_of(trainer).items() if not path.startswith(("state", "buffer"))}
    stateful = trainer.stateful() if isinstance(trainer, SupernetTrainer) else {}
    return {
        **result,
        **flat(dict(_parameters(stateful, "stateful()"))),
        **{p: t for plan in plans for p, t in plan.items()},
    }
