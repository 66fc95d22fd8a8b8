"""Training and measuring single networks, such as architectures are compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from supernet.checks import check_counts, check_numbers
from supernet.errors import DataError, NonFiniteError, UnresolvedChoiceError
from supernet.execution.memory_format import channels_last_inputs, choose_memory_format
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import Buffers, Forms, seeded
from supernet.space import SearchSpace
from supernet.space import freeze as frozen
from supernet.space.strides import give_back_strides, let_state_follow
from supernet.trainers.data import Data, Part, first_batch, length_of, loader_of
from supernet.trainers.fabric import new_fabric
from supernet.trainers.forward import Forward, ForwardFn, LossFn, checked_loss
from supernet.trainers.loop import check_optimizer
from supernet.trainers.metrics import Meter, Metrics
from supernet.trainers.progress import ProgressBar

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["evaluate", "freeze", "recalibrate", "train"]


def train(
    network: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    metrics: Metrics | None,
    optimizer: Optimizer,
    num_epochs: int,
    dataset: Data,
    *,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    batch_size: int = 64,
    workers: int = 0,
    scheduler: LRScheduler | None = None,
    grad_clip: float | None = 5.0,
    device: str | torch.device | None = None,
    precision: str = "32-true",
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a plain network in place; the same seed gives the same weights.

    Architectures are compared fairly where each is trained so, with the same arguments, from newly made weights.
    Parts that are in eval form while the network itself is not stay so, such as a frozen backbone; after it all is in
    the form it had.

    Args:
        network: a network without choices.
        loss, metrics, optimizer, num_epochs, forward_fn, loss_fn, batch_size, workers, grad_clip, device, precision,
            seed, progress: as `SupernetTrainer` has them.
        dataset: a torch Dataset or DataLoader, all of which is trained on.
        scheduler: of the learning rate, stepped once an epoch.

    Returns:
        One dict of means over the training batches for each epoch: "loss", and the metrics by name.

    Raises:
        UnresolvedChoiceError: the network still has choices.
        TrainingError: the optimizer lacks parameters of it, or an argument cannot be.
        NonFiniteError: the loss is NaN or infinite; names the epoch.
        DataError: the data cannot be read, or has fewer samples than one batch of a loader that drops.
    """
    _check_plain(network)
    loss = checked_loss(loss, loss_fn)
    run = Forward(network, forward_fn, loss_fn)
    check_optimizer(optimizer, network, loss)
    check_counts(num_epochs=num_epochs, batch_size=batch_size)
    check_counts(0, workers=workers)
    check_numbers(grad_clip=grad_clip or 0)
    fabric = new_fabric(device, precision)
    loader = loader_of(dataset, batch_size=batch_size, workers=workers, seed=seed)
    loss = loss.to(fabric.device) if isinstance(loss, nn.Module) else loss
    meter, history = Meter(metrics, fabric.device), []
    forms = Forms(network)
    part = Part(loader, fabric.to_device, split=run.split)
    shown = ProgressBar("training", num_epochs, shown=progress)
    with _layout_kept(network, optimizer), seeded(seed, fabric.device), forms.kept(), shown as bar:
        channels_last = _lay_out(network, fabric, loader, seed, forms, run)
        module, stepper = fabric.setup(network, optimizer)
        forms.train()
        for epoch in range(num_epochs):
            bar.begin_epoch(epoch, length_of(loader))
            for X, y in part.batches(epoch):
                output = run(module, channels_last_inputs(X) if channels_last else X)
                batch_loss = loss(output, y)
                meter.update(batch_loss, output, y, X)
                stepper.zero_grad()
                fabric.backward(batch_loss)
                if grad_clip:
                    fabric.clip_gradients(module, stepper, max_norm=grad_clip, error_if_nonfinite=False)
                stepper.step()
                bar.advance()
            history.append(meter.read())
            meter.reset()
            if "loss" not in history[-1]:
                raise DataError("an epoch had no batch: the data has fewer samples than one batch; lower batch_size")
            if not math.isfinite(history[-1]["loss"]):
                raise NonFiniteError(
                    f"the loss is not finite (NaN or infinite) in epoch {epoch + 1}; the learning rate may be too "
                    "high, or the data may hold such values"
                )
            if scheduler is not None:
                scheduler.step()
            bar.end_epoch(epoch, history[-1])
    return history


def evaluate(
    network: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    metrics: Metrics | None,
    dataset: Data,
    *,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: str = "32-true",
) -> dict[str, float]:
    """Measure a plain network, in eval form, on every sample of a dataset.

    Args:
        network: a network without choices; each module of it comes back in the form, training or eval, that it was in.
        loss, metrics, forward_fn, loss_fn: as `SupernetTrainer` has them; each may be None.
        dataset: a torch Dataset or DataLoader.
        batch_size, workers, device, precision: as `SupernetTrainer` has them. Default batch size: 256.

    Returns:
        Means over all samples: "loss", and the metrics by name.

    Raises:
        UnresolvedChoiceError: the network still has choices.
        DataError: the data cannot be read, or is empty.
    """
    _check_plain(network)
    loss, run = checked_loss(loss, loss_fn, may_lack=True), Forward(network, forward_fn, loss_fn)
    fabric = new_fabric(device, precision)
    loader = loader_of(dataset, batch_size=batch_size, workers=workers, seed=0, shuffle=False)
    loss = loss.to(fabric.device) if isinstance(loss, nn.Module) else loss
    meter = Meter(metrics, fabric.device)
    module = fabric.setup_module(network)
    with torch.no_grad(), Forms(network).evaluating():
        for X, y in Part(loader, fabric.to_device, split=run.split).batches(0):
            output = run(module, X)
            meter.update(None if loss is None else loss(output, y), output, y, X)
    return meter.read()


def recalibrate(
    network: nn.Module,
    dataset: Data,
    *,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: str = "32-true",
) -> nn.Module:
    """Compute the running statistics of a plain network's BatchNorms anew, in place.

    Those of a supernet are of all its paths mixed, so a network that is frozen from it measures badly before. Each
    statistic becomes the plain average over batches, while all other modules, such as dropout, are in eval form.
    Weights, random numbers and forms stay as they are; so do statistics of a BatchNorm that is in eval form while the
    network itself is not, such as a pretrained backbone's.

    Args:
        network: a network without choices.
        dataset: a torch Dataset or DataLoader, best the one that it was trained on.
        forward_fn, loss_fn, batch_size, workers, device, precision: as `SupernetTrainer` has them.

    Returns:
        The same network.

    Raises:
        UnresolvedChoiceError: the network still has choices.
        DataError: the data cannot be read, or gives no batch.
            After any of these, and whatever the network raises, the statistics are as they were.
    """
    _check_plain(network)
    run = Forward(network, forward_fn, loss_fn)
    fabric = new_fabric(device, precision)
    part = Part(loader_of(dataset, batch_size=batch_size, workers=workers, seed=0), fabric.to_device, split=run.split)
    module, forms, batches = fabric.setup_module(network), Forms(network), 0
    with seeded(0, fabric.device), torch.no_grad(), forms.kept(), statistics_anew(network, forms) as norms:
        for X, _ in part.batches(0) if norms else ():
            run(module, X)
            batches += 1
        if norms and not batches:
            raise DataError("the data gives no batch: it has fewer samples than one batch; lower batch_size")
    return network


def freeze(model: nn.Module, architecture: Mapping[str, Any], *, recalibrate: Data | None = None) -> nn.Module:
    """Return the plain network that `architecture` describes, with the weights that `model` has.

    The model stays as it is; the network is a copy in which each choice is the chosen candidate, or a
    `torch.fx.GraphModule` that picks and reduces the chosen inputs. Nothing of this library is left in it. Each of its
    modules is in the form, training or eval, that it has in the model. Tensors that modules keep of their last pass are
    copied without its graph. What cannot be copied, such as a lock or an open file, is shared, which a warning says.

    Args:
        model: a module with choices, as written, or taken over by a trainer or through `replace_*`.
        architecture: label -> decision; decides every choice that it reaches.
        recalibrate: data by which BatchNorm's running statistics are computed anew, as `supernet.recalibrate` does,
            which has more arguments. Default: they are those of the supernet, in which many networks are mixed.

    Raises:
        ArchitectureError: a label is unknown or missing, or a decision is not possible.
        ReplacementError: the module in a choice's place does not hold the chosen candidate itself, so that
            what it has learnt would be lost.
        SpaceError: one label means two different choices.
        DataError: the data cannot be read, or gives no batch.
    """
    network = frozen(model, architecture)
    return network if recalibrate is None else _recalibrate(network, recalibrate)


_recalibrate = recalibrate  # where an argument has its name


def _check_plain(network: nn.Module) -> None:
    space = SearchSpace(network)
    if space:
        raise UnresolvedChoiceError(
            f"{type(network).__name__} still has choices ({', '.join(list(space)[:3])}); make it a plain network "
            "first, by freeze(model, architecture)"
        )


@contextmanager
def _layout_kept(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Bring weights back to their strides after this context, and what belongs to them too."""
    try:
        yield
    finally:
        give_back_strides(network)
        let_state_follow(network.parameters(), optimizer.state)


def _lay_out(
    network: nn.Module, fabric: Fabric, loader: DataLoader[Any], seed: int, forms: Forms, run: Forward
) -> bool:
    """Choose the network's memory format by a trial, which leaves no other trace."""
    fabric.to_device(network)
    buffers = Buffers(network)

    def trial(X: Any) -> Any:
        with seeded(seed, fabric.device), buffers.kept(), torch.no_grad():
            forms.train()
            trained = run(network, X)
            return run.in_eval_form(network, X, trained)

    X, _ = run.split(fabric.to_device(first_batch(loader)))
    with forms.kept():
        return choose_memory_format(network, X, trial)
