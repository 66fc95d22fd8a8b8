"""Training and measuring single networks, such as architectures are compared by."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from supernet.data.loaders import Data, loader_of
from supernet.data.split import DataSplit
from supernet.errors import DataError, UnresolvedChoiceError
from supernet.execution.recalibration import statistics_anew
from supernet.execution.state import Forms, preserve_random_numbers, seeded
from supernet.execution.supernet import PlainModel
from supernet.processes.fabric import keep_from_ddp, new_fabric
from supernet.space import SearchSpace
from supernet.space import freeze as frozen
from supernet.training.forward import Forward, ForwardFn, LossFn, checked_loss
from supernet.training.loop import LoopOptions, TrainingLoop
from supernet.training.metrics import Meter, Metrics
from supernet.training.run_directory import RunDirectory
from supernet.training.verification import verify as check_frozen

__all__ = ["NetworkTrainer", "evaluate", "freeze", "recalibrate", "train"]


class NetworkTrainer(TrainingLoop):
    """Trains a plain network in the loop that searches run in; `train` makes one, and callbacks are given it.

    Args:
        network: A network without choices; the other arguments are those of `train`.

    Attributes:
        model: The network.
        history, stopped, given_options: The same as `SupernetTrainer` has by these names.
    """

    free_options = frozenset({"network"})
    supernet_kind = PlainModel

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        metrics: Metrics | None,
        optimizer: Optimizer,
        num_epochs: int,
        dataset: Data,
        **loop: Unpack[LoopOptions],
    ) -> None:
        super().__init__(network, loss, metrics, optimizer, num_epochs, dataset, **loop)
        self.measures_in_eval_form = loop.get("valid_dataset") is not None
        self._ours.add("measures_in_eval_form")
        # What the network is, for `supernet runs`: runs of other networks are no further seeds of one.
        structure = re.sub(r"0x[0-9a-f]+", "", repr(network))
        self.given_options["network"] = f"{type(network).__name__} {sha256(structure.encode()).hexdigest()[:8]}"
        self._set_up(_no_choice, _no_choice, {})

    def _check_model(self, model: nn.Module) -> None:
        check_has_no_choices(model)

    def _loaders(self, dataset: Data, valid_dataset: Data | None, **how: Any) -> tuple[Any, Any]:
        nothing: DataLoader[Any] = DataLoader([])  # type: ignore[arg-type]  # a list is a map-style dataset too
        valid_loader = nothing if valid_dataset is None else loader_of(valid_dataset, shuffle=False, **how)
        return loader_of(dataset, **how), valid_loader

    def train_epoch(self) -> None:
        """Go once over the data from `step` on."""
        for X, y in self.train_part.batches(self.epoch, self.step):
            with self.one_step():
                output = self.forward(X, {})
                self.optimizer_step(self.compute_loss("train", output, y), self.optimizer, clip=self.grad_clip)

    def _validate(self) -> None:
        if not self.measures_in_eval_form:
            return
        # Each process measures all of it, so that no sample is left out where it cannot be shared evenly.
        self.meters["valid"].reset()  # where a signal left in the midst of it
        with preserve_random_numbers(self.device), self.supernet.preserve_buffers(), self._forms.evaluating(self.loss):
            for X, y in self._evaluation_part.batches(0):
                if self._run.is_asked_to_leave():
                    break
                output = self.distributed.forward_local(X, {})
                with torch.no_grad():
                    self.meters["valid"].update(self.loss_of(output, y), output, y, X)
        self._run.leave_if_asked()

    def _write_result(self, run: RunDirectory) -> None:
        run.write_network(lambda: self.model)


def train(
    network: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    metrics: Metrics | None,
    optimizer: Optimizer,
    num_epochs: int,
    dataset: Data,
    *,
    resume: str | os.PathLike[str] | None = None,
    **loop: Unpack[LoopOptions],
) -> list[dict[str, float]]:
    """Train a plain network in place; the same seed gives the same weights.

    Architectures are compared fairly where each is trained so, with the same arguments, from newly made weights.
    Parts that are in eval form while the network itself is not stay so, such as a frozen backbone; after it all is in
    the form it had. It runs in the loop of the searches, with all that these have: schedules by steps, callbacks,
    stopping rules, run directories with exact resume, several processes.

    Args:
        network: A network without choices.
        loss, metrics, optimizer, num_epochs: The same as `SupernetTrainer` takes by these names.
        dataset: A torch Dataset or DataLoader, all of which is trained on.
        resume: "auto" goes on from the newest checkpoint in `run_dir`, or begins where there is none; the path of a run
            directory goes on from that one's. Default: begin.
        loop: The keyword arguments of `SupernetTrainer`; but `valid_dataset` is measured after each epoch, in eval
            form, and trains nothing (default: nothing is measured), and a `run_dir` receives no architecture.

    Returns:
        One dict for each epoch, those before a resume too: means over the training batches, "loss" and the metrics by
        name; with a `valid_dataset`, means over it, "valid_loss" and so on.

    Raises:
        UnresolvedChoiceError: The network still has choices.
        TrainingError: The optimizer lacks parameters of it, or an argument cannot be; `run_dir` holds a run that is not
            resumed, or one of another training.
        NonFiniteError: The loss is NaN or infinite; names epoch and step.
        DataError: The data cannot be read, or has fewer samples than one batch of a loader that drops.
        FileFormatError: A checkpoint is broken.

    >>> x, network = torch.randn(64, 1), nn.Linear(1, 1)
    >>> data, optimizer = TensorDataset(x, 3 * x), torch.optim.SGD(network.parameters(), 0.5)
    >>> history = train(network, nn.MSELoss(), None, optimizer, num_epochs=20, dataset=data, batch_size=16)
    >>> round(network.weight.item(), 3)
    3.0
    """
    trainer = NetworkTrainer(network, loss, metrics, optimizer, num_epochs, dataset, **loop)
    trainer.fit(resume)
    return [
        {name.removeprefix("train_"): value for name, value in record.items() if name.startswith(("train_", "valid_"))}
        for record in trainer.history
    ]


def _no_choice(*_: Any) -> nn.Module:
    raise AssertionError("a plain network has no choices")


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
        network: A network without choices; each module of it comes back in the form, training or eval, that it was in.
        loss, metrics, forward_fn, loss_fn: The same as `SupernetTrainer` takes by these names; each may be None.
        dataset: A torch Dataset or DataLoader, all of which is measured.
        batch_size, workers, device, precision: The same as `SupernetTrainer` takes by these names. Default batch size:
            256.

    Returns:
        Means over all samples: "loss", and the metrics by name.

    Raises:
        UnresolvedChoiceError: The network still has choices.
        DataError: The data cannot be read, or is empty.

    >>> data = TensorDataset(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    >>> evaluate(nn.Identity(), None, accuracy, data)
    {'accuracy': 0.5}
    """
    check_has_no_choices(network)
    loss, run = checked_loss(loss, loss_fn, may_lack=True), Forward(network, forward_fn, loss_fn)
    fabric = new_fabric(device, precision)
    loader = loader_of(dataset, batch_size=batch_size, workers=workers, seed=0, shuffle=False)
    loss = loss.to(fabric.device) if isinstance(loss, nn.Module) else loss
    meter = Meter(metrics, fabric.device)
    keep_from_ddp(network)
    module = fabric.setup_module(network)
    with torch.no_grad(), Forms(network).evaluating(loss):
        for X, y in DataSplit(loader, fabric.to_device, split=run.split).batches(0):
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
        network: A network without choices.
        dataset: A torch Dataset or DataLoader, best the one that it was trained on.
        forward_fn, loss_fn, batch_size, workers, device, precision: The same as `SupernetTrainer` takes by these names.

    Returns:
        The same network.

    Raises:
        UnresolvedChoiceError: The network still has choices.
        DataError: The data cannot be read, or gives no batch.
            After any of these, and whatever the network raises, the statistics are as they were.

    >>> recalibrate(nn.BatchNorm1d(1), TensorDataset(torch.tensor([[1.0], [3.0]]), torch.zeros(2))).running_mean
    tensor([2.])
    """
    check_has_no_choices(network)
    run = Forward(network, forward_fn, loss_fn)
    fabric = new_fabric(device, precision)
    part = DataSplit(
        loader_of(dataset, batch_size=batch_size, workers=workers, seed=0), fabric.to_device, split=run.split
    )
    keep_from_ddp(network)
    module, forms, batches = fabric.setup_module(network), Forms(network), 0
    with seeded(0, fabric.device), torch.no_grad(), forms.preserve(), statistics_anew(network, forms) as norms:
        for X, _ in part.batches(0) if norms else ():
            run(module, X)
            batches += 1
        if norms and not batches:
            raise DataError("the data gives no batch: it has fewer samples than one batch; lower batch_size")
    return network


def freeze(
    model: nn.Module, architecture: Mapping[str, Any], *, recalibrate: Data | None = None, verify: Any = None
) -> nn.Module:
    """Return the plain network that `architecture` describes, with the weights that `model` has.

    The model stays as it is; the network is a copy in which each choice is the chosen candidate, or a
    `torch.fx.GraphModule` that picks and reduces the chosen inputs. Nothing of this library is left in it. Each of its
    modules is in the form, training or eval, that it has in the model. Tensors that modules keep of their last pass are
    copied without its graph. What cannot be copied, such as a lock or an open file, is shared, which a warning says.

    Args:
        model: A module with choices, as written, or replaced by a trainer or through `replace_*`; or a `Supernet`,
            whose model is meant.
        architecture: Label -> decision, for every choice that it reaches.
        recalibrate: Data by which BatchNorm's running statistics are computed anew, as `supernet.recalibrate` does,
            which has more arguments. Default: they are those of the supernet, in which many networks are mixed.
        verify: A batch of inputs, with which the model is called: a tensor; several arguments in a tuple, or by name in
            a dict. The network must give for it what the supernet gives under that architecture, in training and in
            eval form (up to 1e-4 of the outputs' norm, 1e-10 in float64; 1e-2 of what is not float64 on a GPU, where
            TF32 rounds). Default: nothing is run.

    Raises:
        ArchitectureError: A label is unknown or missing, or a decision is not possible.
        ReplacementError: The module in a choice's place does not hold the chosen candidate itself, so that
            what it has learnt would be lost; or the network does not give what the supernet gives for `verify`, and
            the message names where they differ.
        SpaceError: One label means two different choices.
        DataError: The data cannot be read, or gives no batch.

    >>> model = nn.Sequential(LayerChoice({"conv": nn.Conv2d(8, 8, 3), "skip": nn.Identity()}, label="first"))
    >>> freeze(model, {"first": "skip"})
    Sequential(
      (0): Identity()
    )
    """
    network = frozen(model, architecture)
    if verify is not None:
        check_frozen(network, model, architecture, verify)
    return network if recalibrate is None else _recalibrate(network, recalibrate)


_recalibrate = recalibrate  # where an argument has its name


def check_has_no_choices(network: nn.Module) -> None:
    """Raise `UnresolvedChoiceError` if a network still has choices."""
    space = SearchSpace(network)
    if space:
        raise UnresolvedChoiceError(
            f"{type(network).__name__} still has choices ({', '.join(list(space)[:3])}); make it a plain network "
            "first, by freeze(model, architecture)"
        )
