"""What subclasses of Retiarii's trainers override, read and assign.

Scripts inherit those trainers and write parts of their loop anew: `_logits_and_loss`, `_train_one_epoch`, ... Such a
part is written for a loop in plain PyTorch: it calls the model, differentiates, and steps the optimizers itself. So a
class that overrides one runs in that loop, which each trainer has beside ours; any other runs in ours.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from supernet.data.loaders import derive_seed, length_of, loader_of
from supernet.data.split import DataSplit
from supernet.errors import DataError, TrainingError
from supernet.execution.state import Forms
from supernet.nn import InputChoice, LayerChoice
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup, to_device
from supernet.space.original import pinned_choices
from supernet.trainers import BaseOneShotTrainer
from supernet.training.metrics import Meter
from supernet.training.optimizers import check_optimizer

__all__ = ["Assignable", "RetiariiTrainer"]

logger = logging.getLogger("supernet")

ALL_HOOKS = (
    "_init_dataloader", "init_dataloader", "_train_one_epoch", "_validate_one_epoch", "_logits_and_loss",
    "_logits_and_loss_for_arch_update", "_logits_and_loss_for_weight_update", "_backward", "_unrolled_backward",
    "_compute_virtual_model", "_restore_weights", "_compute_hessian", "_train_model", "_train_controller", "_resample",
)  # fmt: skip


class Assignable:
    """An attribute that scripts read, and assign before `fit`.

    In Retiarii's loop it is an attribute as any other. In ours it stands for the one of the name `ours`, and assigning
    it calls the trainer's method of the name `follow`, so that it is not without effect.
    """

    def __init__(self, ours: str, follow: str) -> None:
        self.ours, self.follow = ours, follow

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Any, owner: type | None = None) -> Any:
        if trainer is None:
            return self
        if trainer.is_ours and self.ours != self.name:
            return getattr(trainer, self.ours)
        if self.name not in vars(trainer):
            raise AttributeError(
                f"{type(trainer).__name__} has no {self.name} yet; assign it, or override _init_dataloader, or call "
                "super().__init__ with what it is made from"
            )
        return vars(trainer)[self.name]

    def __set__(self, trainer: Any, value: Any) -> None:
        if trainer.is_ours and "optimizer" in vars(trainer):  # what construction sets last
            getattr(trainer, self.follow)(value)
        else:
            vars(trainer)[self.name] = value


class RetiariiTrainer(BaseOneShotTrainer):
    """The part of Retiarii's trainers that scripts inherit from; comes before ours in their bases.

    A subclass runs in Retiarii's loop if it overrides one of `hooks`, has a `fit` that does not call the inherited one
    or an `export` that takes arguments, does not call `super().__init__`, or gives None for what it sets itself. There
    all is plain, in one process, and of our options only `own_options` are taken.
    """

    hooks: ClassVar[tuple[str, ...]] = ("_init_dataloader", "init_dataloader")
    own_options: ClassVar[tuple[str, ...]] = ("seed",)  # of those that both loops know
    overridden: ClassVar[tuple[str, ...]] = ()  # hooks, and a fit of its own
    why_own_loop: ClassVar[str | None] = None  # why this class runs in Retiarii's loop, if it does
    seed: int = 0
    split: str = "random"

    if TYPE_CHECKING:  # what its subclasses have from our trainers, or from their arguments

        def __getattr__(self, name: str) -> Any: ...

    train_loader = Assignable("train_loader", "_use_train_loader")
    valid_loader = Assignable("valid_loader", "_use_valid_loader")
    metrics = Assignable("metrics", "_use_metrics")
    loss = Assignable("loss", "_use_loss")
    nas_modules = Assignable("nas_modules", "_refuse_modules")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        base: Any = next(c for c in cls.__mro__ if _is_retiariis(c))
        if base is cls:
            return
        has_own_fit = not _calls_inherited(cls, "fit", base)
        foreign = [name for name in ALL_HOOKS if name not in base.hooks]
        mistaken = [name for name in foreign if getattr(cls, name, None) is not getattr(base, name, None)]
        if mistaken and not has_own_fit:
            raise TrainingError(
                f"{cls.__name__} defines {', '.join(mistaken)}, which {base.__name__} never calls; it calls "
                f"{', '.join(base.hooks)}: override one of these, or write a fit of your own"
            )
        changed = [name for name in base.hooks if getattr(cls, name) is not getattr(base, name)]
        of_ours = [name for name in _steps_of_ours(base) if getattr(cls, name) is not getattr(base, name)]
        if changed and of_ours:
            raise TrainingError(
                f"{cls.__name__} overrides {', '.join(changed)} of Retiarii's loop and {', '.join(of_ours)} of "
                "supernet's; only one of the two loops runs: keep to one of them"
            )
        cls.overridden = (*changed, "fit") if has_own_fit else tuple(changed)
        if cls.overridden:
            cls.why_own_loop = f"it overrides {', '.join(cls.overridden)}"
        elif _needs_arguments(cls.export):
            cls.why_own_loop = "its export takes arguments"

    @property
    def is_ours(self) -> bool:
        """Whether this trainer runs in our loop."""
        return "fabric" in vars(self)

    # --- construction --------------------------------------------------------------------------------------

    def _why_own_loop(self, **given: Any) -> str | None:
        """Return why this trainer runs in Retiarii's loop, None if it runs in ours.

        Raises:
            TrainingError: Something is None that no subclass sets.
        """
        missing = [name for name, value in given.items() if value is None]
        if self.why_own_loop or not missing:
            return self.why_own_loop
        if _is_retiariis(type(self)):
            raise TrainingError(f"{', '.join(missing)} of {type(self).__name__} is None; give it")
        return f"it was given None for {', '.join(missing)}"

    def _take_arguments(self, why: str, options: Mapping[str, Any], *, device: Any, **attributes: Any) -> None:
        """Take the arguments as attributes, and put the model on the device."""
        options = {name: value for name, value in options.items() if name != "progress"}  # there is no bar
        unknown = set(options) - set(self.own_options)
        if unknown:
            raise TrainingError(
                f"{type(self).__name__} runs in Retiarii's loop, for {why}; that knows no "
                f"{', '.join(sorted(unknown))}: leave it out, or inherit supernet's own trainer and write train_step"
            )
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(default if device is None else device)
        for name, value in {**attributes, **options}.items():
            setattr(self, name, value)
        others = [c for c in pinned_choices(self.model) if not isinstance(c, LayerChoice | InputChoice)]
        if others:
            raise TrainingError(
                f"{type(self).__name__} runs in Retiarii's loop, for {why}; that knows LayerChoice and InputChoice "
                f"only, not {others[0].description()}: write it as a LayerChoice, or inherit supernet's own trainer"
            )
        self.model.to(self.device)
        self._forms = Forms(self.model)
        self.nas_modules = []

    def init_dataloader(self) -> None:
        """Make `train_loader` and `valid_loader`; a hook."""
        self._init_dataloader()

    def _init_dataloader(self) -> None:
        """Make `train_loader` and `valid_loader` of the two halves of `dataset`, if there is one; a hook."""
        if self.dataset is None:
            return
        if isinstance(self.dataset, DataLoader):
            raise DataError("dataset is a DataLoader; give its dataset, or override _init_dataloader to set both")
        count = len(self.dataset)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator).tolist() if self.split == "random" else list(range(count))
        self.train_loader, self.valid_loader = (
            self._loader(Subset(self.dataset, half)) for half in (order[: count // 2], order[count // 2 :])
        )

    def _loader(self, dataset: Any, shuffle: bool = True) -> DataLoader[Any]:
        return DataLoader(dataset, self.batch_size, shuffle=shuffle, num_workers=self.workers)

    # --- the loop ------------------------------------------------------------------------------------------

    def fit(self, resume: Any = None) -> None:
        """Train the supernet and search, in Retiarii's loop or in ours."""
        patched = [name for name in self.hooks if name in vars(self)]
        if patched:
            raise TrainingError(f"{', '.join(patched)} of this trainer was assigned; override it in a subclass instead")
        if self.is_ours:
            super().fit(resume)  # type: ignore[safe-super, call-arg]
            return
        if resume is not None:
            raise TrainingError(f"{type(self).__name__} runs in Retiarii's loop, which cannot be resumed")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainingError(f"{type(self).__name__} runs in Retiarii's loop, which knows one process only")
        with Forms(self._given("model")).preserve():
            for epoch in range(self._given("num_epochs")):
                self._fit_one_epoch(epoch)

    def _fit_one_epoch(self, epoch: int) -> None:
        self._train_one_epoch(epoch)

    def export(self, *epoch: Any) -> Any:
        """Return the best architecture: what our loop's does, or what the modules in the choices' places say."""
        if self.is_ours:
            return super().export(*epoch)  # type: ignore[safe-super]
        architecture: dict[str, Any] = {}
        with torch.no_grad():
            for label, module in self.nas_modules:
                if label not in architecture:
                    architecture[label] = module.export()
        return architecture

    def _to_training_form(self) -> None:
        """Put the model into training form, but for what was in eval form before."""
        self._forms = vars(self).get("_forms") or Forms(self.model)
        self._forms.train()

    def _given(self, name: str) -> Any:
        """Return an attribute that the loop needs, or say that the subclass has not set it."""
        value = getattr(self, name, None)
        if value is None:
            raise TrainingError(f"{name} of {type(self).__name__} is None; give it, or set self.{name} before fit()")
        return value

    def _on_device(self, loader: Iterable[Any]) -> Iterable[Any]:
        return (to_device(batch, self.device) for batch in loader)

    def _pairs(self) -> Iterable[tuple[Any, Any]]:
        """Return a batch of the training and one of the validation data at a time, until either is at its end."""
        return zip(self._on_device(self.train_loader), self._on_device(self.valid_loader), strict=False)

    def _shared_alphas(self) -> list[torch.Tensor]:
        """Let the modules of one label have one alpha, on the device, and return each alpha once."""
        alphas: dict[str, torch.Tensor] = {}
        for label, module in self.nas_modules:
            module.to(self.device)
            module.alpha = alphas.setdefault(label, module.alpha)
        return list(alphas.values())

    def _note(
        self, meters: AverageMeterGroup, logits: Any, y: Any, loss: torch.Tensor, at: tuple[str, int, int, Any]
    ) -> None:
        """Take the metrics of a batch into the epoch's means, and log them where it is time.

        Args:
            meters: The means of the epoch.
            logits: What the model returned.
            y: What the metrics compare it with.
            loss: Loss of the batch.
            at: What is trained, the epoch, the step, and the loader of the epoch.
        """
        measured = {} if self.metrics is None else self.metrics(logits, y)
        meters.update({**(measured if isinstance(measured, Mapping) else {"metric": measured}), "loss": loss.item()})
        what, epoch, step, loader = at
        if self.log_frequency and step % self.log_frequency == 0:
            of = f"[{epoch + 1}/{self.num_epochs}] Step [{step + 1}/{length_of(loader) or '?'}]"
            logger.info("%s %s  %s", what, of, meters)

    # --- what assigning does in our loop -------------------------------------------------------------------

    def _use_train_loader(self, loader: Any) -> None:
        vars(self)["train_loader"], self.train_part = self._part_of_ours(loader, self.seed)
        self._recalibration_part = self.train_part.unsharded(shuffle=True)

    def _use_valid_loader(self, loader: Any) -> None:
        vars(self)["valid_loader"], self.valid_part = self._part_of_ours(loader, derive_seed(self.seed, 1))
        self._evaluation_part = self.valid_part.unsharded(shuffle=False)

    def _part_of_ours(self, loader: Any, seed: int) -> tuple[DataLoader[Any], DataSplit]:
        among: dict[str, Any] = {"rank": self.fabric.global_rank, "world_size": self.fabric.world_size}
        loader = loader_of(loader, batch_size=64, workers=0, seed=seed, **among)
        return loader, DataSplit(loader, self.fabric.to_device, seed, self._forward.split, **among)

    def _use_metrics(self, metrics: Any) -> None:
        vars(self)["metrics"] = metrics
        self.meters = {part: Meter(metrics, self.device) for part in ("train", "valid")}

    def _use_loss(self, loss: Any) -> None:
        if isinstance(loss, nn.Module) and loss.state_dict():
            raise TrainingError("a loss with parameters or buffers is a part of the search; give it to the constructor")
        vars(self)["loss"] = loss

    def _use_architecture_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.architecture_optimizer = self.fabric.setup_optimizers(optimizer)

    def _use_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_optimizer(optimizer, self.model)
        if self.scheduler is not None:
            raise TrainingError("the scheduler is of the optimizer that was given; give this one to the constructor")
        self.given_optimizer = optimizer
        vars(self)["optimizer"] = self.distributed.optimizer = self.fabric.setup_optimizers(optimizer)

    def _refuse_modules(self, modules: Any) -> None:
        raise TrainingError(
            "nas_modules are what stands in the choices' places, and cannot be assigned; assign their alphas in place "
            "(module.alpha.data.copy_(...)), or inherit BaseOneShotTrainer, and put in modules of your own"
        )


def _is_retiariis(cls: type) -> bool:
    return cls.__module__.startswith("supernet.retiarii.")


def _calls_inherited(cls: type, name: str, base: type) -> bool:
    """Say whether every override of a method between a class and a base of it calls the one that it overrides."""
    for c in cls.__mro__[: cls.__mro__.index(base)]:
        code = getattr(inspect.unwrap(vars(c)[name]), "__code__", None) if name in vars(c) else None
        if code is not None and not {"super", *(b.__name__ for b in c.__mro__[1:-1])} & set(code.co_names):
            return False
    return True


def _needs_arguments(method: Callable[..., Any]) -> bool:
    """Say whether a method cannot be called without arguments."""
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        return True
    return False


def _steps_of_ours(base: type) -> list[str]:
    """Return the methods that our loop calls, which Retiarii's never does."""
    ours = [c for c in base.__mro__ if c.__module__.startswith("supernet.trainers.") and c is not BaseOneShotTrainer]
    names = {name for c in ours for name, value in vars(c).items() if inspect.isfunction(value) and name[0] != "_"}
    return sorted(names - {"fit", "export"})
