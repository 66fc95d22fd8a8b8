"""Distillation: a network is trained to give what a teacher gives, too (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax, softmax

from supernet.checks import check_functions, check_numbers
from supernet.data.batches import batch_size
from supernet.errors import TrainingError
from supernet.execution.structure import are_finite, copied, is_as_noted, mapped, noted, outline_of, tensors_of
from supernet.space import SearchSpace
from supernet.training.description import as_json, name_of
from supernet.training.forward import Returned, judged
from supernet.training.metrics import Meter, Metrics

if TYPE_CHECKING:
    from supernet.training.preparation import Preparation

__all__ = ["Distillation", "Taught", "kl_divergence"]


class Taught(NamedTuple):
    """A target, and what a teacher gives for the same samples: what the loss takes of a batch that is taught.

    Attributes:
        target: The target, as the dataset has it.
        output: The teacher's output. It has no gradient.
    """

    target: Any
    output: Any


def kl_divergence(
    output: torch.Tensor, teacher_output: torch.Tensor, *, temperature: float = 1.0, dim: int = -1
) -> torch.Tensor:
    """Return T^2 KL(teacher || network) of softmaxes at the temperature T, its mean over all but the classes.

    Gradients of softened targets are 1/T^2 times as large; the factor T^2 lets the weight of this loss mean the same at
    each temperature (arXiv 1503.02531, section 2).

    Args:
        output: Logits of the network.
        teacher_output: Logits of the teacher, of the same shape.
        temperature: What both are divided by. Default: 1.
        dim: Dimension of the classes. Default: the last one.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(0.)
    """
    log_q, p = log_softmax(_softened(output, temperature), dim), softmax(_softened(teacher_output, temperature), dim)
    return temperature**2 * kl_div(log_q, p, reduction="none").sum(dim).mean()


def _softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # 16 bits have too few digits for a difference of logarithms.
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits) / temperature


class Distillation:
    """How a teacher takes part in the steps of the weights, of any trainer: `distillation=Distillation(...)`.

    What the weights descend is `(1 - weight) * loss + weight * distillation loss`. It is in the record as `train_loss`,
    and the first of the two losses alone as `train_task_loss`. Whatever else is measured, such as architectures, and
    what an architecture's parameters descend, is the task's loss alone.

    Args:
        teacher: A module, which is called as the model is, in eval form and without a gradient; it goes to the model's
            device and into eval form. Or "largest": the supernet's architecture that costs most, as it is trained so
            far, in training form, without moving running statistics (in place, arXiv 1903.05134); or an architecture of
            your own instead. Or "stored": a dataset made by `WithLogits`, which has stored what a teacher gave.
        temperature: What logits are divided by before their Kullback-Leibler divergence is taken, see
            `kl_divergence`. Default: 1.
        weight: Share of the teacher, from 0 to 1, where targets count no more. Default: 0.5.
        loss: `(output, teacher's output) -> tensor`, one number, instead of that divergence; one that gives the model
            no gradient is refused by the first step. A module's parameters are trained where the optimizer has them.
            Default: `kl_divergence` of outputs (N, classes).

    Raises:
        TrainingError: The teacher is none of these, a number cannot be, or there are both a loss and a temperature.

    >>> Distillation("largest", temperature=2.0)
    Distillation('largest', temperature=2.0, weight=0.5)
    """

    def __init__(
        self,
        teacher: nn.Module | str | Mapping[str, Any],
        *,
        temperature: float | None = None,
        weight: float = 0.5,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
    ) -> None:
        if not isinstance(teacher, nn.Module | Mapping) and teacher not in ("largest", "stored"):
            raise TrainingError(f"teacher is a module, 'largest', an architecture, or 'stored', not {teacher!r:.80}")
        check_functions(loss=loss)
        check_numbers(0, 1, weight=weight)
        if loss is not None and temperature is not None:
            raise TrainingError("temperature is of the divergence that stands in the place of a loss; give one of them")
        temperature = 1.0 if temperature is None else temperature
        check_numbers(temperature=temperature)
        if temperature == 0:
            raise TrainingError("temperature is a number above 0, not 0; at 1 softmaxes are as they are")
        self.teacher, self.loss = teacher, loss
        self.temperature, self.weight = float(temperature), float(weight)

    def __repr__(self) -> str:
        teacher = type(self.teacher).__name__ if isinstance(self.teacher, nn.Module) else repr(self.teacher)
        how = f"temperature={self.temperature}" if self.loss is None else f"loss={as_json(self.loss)}"
        return f"Distillation({teacher}, {how}, weight={self.weight})"

    def compare(self, output: Any, teacher_output: Any) -> torch.Tensor:
        """Return the distillation loss of an output beside the teacher's."""
        if self.loss is not None:
            return self.loss(output, teacher_output)
        return kl_divergence(output, teacher_output, temperature=self.temperature, dim=1)


class DistilledLoss(nn.Module):
    """The loss of a task, mixed with that of a distillation where the target is `Taught`.

    Args:
        loss: The task's, `(output, target) -> tensor`.
        distillation: How the teacher takes part.

    Attributes:
        last: What the losses of the task and of the distillation were of the batch before.
    """

    def __init__(self, loss: Callable[[Any, Any], torch.Tensor], distillation: Distillation) -> None:
        super().__init__()
        self.loss, self._distillation = loss, distillation
        self.beside = distillation.loss if isinstance(distillation.loss, nn.Module) else None
        self.last = torch.tensor(math.nan), torch.tensor(math.nan)
        self._teaches = False  # known from the first batch that can show it

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Return the loss."""
        if not isinstance(target, Taught):
            return self.loss(output, target)
        weight = self._distillation.weight
        with torch.no_grad() if weight == 1 else nullcontext():  # then it is for the record only
            of_task = self.loss(output, target.target)
        of_teacher = self._distillation.compare(judged(output, target)[0], target.output)
        self.last = of_task.detach(), of_teacher.detach()
        if not self._teaches and torch.is_grad_enabled():
            self._check_teaches(output, of_teacher)
        return of_teacher if weight == 1 else (1 - weight) * of_task + weight * of_teacher

    def _check_teaches(self, output: Any, of_teacher: torch.Tensor) -> None:
        """Raise `TrainingError` if the distillation loss depends on nothing that is trained but its own parameters."""
        if not any(tensor.requires_grad for tensor in tensors_of(output)):  # of a path without parameters
            return
        own = set() if self.beside is None else {id(parameter) for parameter in self.beside.parameters()}
        if all(id(leaf) in own for leaf in _leaves_behind(of_teacher)):
            loss = self._distillation.loss
            raise TrainingError(
                f"the loss of the distillation{'' if loss is None else f', {as_json(loss)},'} gives no gradient to the "
                "model, so the teacher would teach nothing; compute it from the output as the model gives it, not "
                "detached and not as a plain number; where a batch may have nothing to compare, add output.sum() * 0"
            )
        self._teaches = True


def _leaves_behind(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the leaves that a tensor's gradient would go to; nothing is computed, so that no hook runs."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


class TaughtMeter(Meter):
    """Measures batches that are taught by their targets, and the task's loss of them beside what is descended.

    Args:
        metrics, device: The same as `Meter` takes.
        loss: What has just been computed where a batch is taken in.
    """

    def __init__(self, metrics: Metrics | None, device: torch.device, loss: DistilledLoss) -> None:
        super().__init__(metrics, device)
        self._loss = loss

    def update(self, loss: Any, output: Any, target: Any, X: Any = None, *, counts: bool = True) -> None:
        """Take in one batch: see `Meter`."""
        if isinstance(target, Taught):
            target = target.target
            of_sample = output.target if isinstance(output, Returned) else target
            self._means.update("task_loss", self._loss.last[0], batch_size(of_sample, X) if counts else 0)
        super().update(loss, output, target, X, counts=counts)


class Teaching:
    """Lets a teacher say what it gives for each training batch of a trainer.

    Args:
        distillation: How the teacher takes part.
        trainer: Its model has not been replaced yet; device, precision and how batches run are known.

    Attributes:
        architecture: What teaches in place; None where a module or a dataset does.
    """

    def __init__(self, distillation: Distillation, trainer: Preparation) -> None:
        self._trainer, self.distillation, self._teacher = trainer, distillation, distillation.teacher
        self.architecture = trainer.teacher_in_place(self._teacher) if self.is_in_place else None
        self._copies_batches = False
        self._first: Taught | None = None  # until it teaches
        self._last: tuple[Any, Any] | None = None  # inputs, and what a module or a dataset taught of them
        if isinstance(self._teacher, nn.Module):
            self._check_teacher(self._teacher)
            self._run = trainer._forward.of(self._teacher)
            self._teacher.to(trainer.device).eval()
        elif self._teacher == "stored" and trainer._forward.takes_whole_batches:
            raise TrainingError(
                "a loss_fn is given whole batches, and cannot take stored outputs from them; give loss and forward_fn, "
                "or a teacher that runs"
            )
        teacher: Any = self._teacher
        if isinstance(teacher, nn.Module):
            from supernet.training.snapshot import digest  # which knows the loop

            tensors = [t.to_dense() if t.layout != torch.strided else t for t in teacher.state_dict().values()]
            teacher = f"{name_of(type(teacher))} {digest(tensors)[:16]}"
        # What it is, which must be the same where a search goes on, and in all processes.
        self.identity = {"teacher": as_json(teacher), "distillation loss": as_json(distillation.loss)}

    def _check_teacher(self, teacher: nn.Module) -> None:
        name, model = type(teacher).__name__, self._trainer.model
        if {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}:
            raise TrainingError(
                f"the teacher {name} has parameters of the model, which are trained; give a copy, or let an "
                "architecture teach in place, teacher='largest'"
            )
        if SearchSpace(teacher):
            raise TrainingError(f"the teacher {name} has choices; give the network, freeze(teacher, architecture)")

    @property
    def is_in_place(self) -> bool:
        """Whether an architecture of the supernet teaches."""
        return not isinstance(self._teacher, nn.Module) and self._teacher != "stored"

    def begin(self) -> None:
        """Teach from here on."""
        trainer, self._first = self._trainer, None
        trainer.train_part.taught = self.targets
        if self._teacher == "stored":
            for part in (trainer.valid_part, trainer._evaluation_part, trainer._recalibration_part):
                part.taught = _targets_alone

    @torch.no_grad()
    def targets(self, X: Any, y: Any) -> Any:
        """Return what stands in the place of a training batch's target."""
        if self.architecture is None:
            taught = y if self._teacher == "stored" else Taught(y, self._output(X))
            self._last = X, taught.output
            return taught
        trainer = self._trainer
        with trainer.supernet.preserve_buffers():
            output = trainer.distributed.forward_local(X, self.architecture)
        return Taught(y, judged(output, y)[0])

    def _output(self, X: Any) -> Any:
        X = copied(X) if self._copies_batches else X
        precision = self._trainer.fabric.strategy.precision
        # One that is not mixed is the model's own, not the teacher's.
        with precision.forward_context() if self._trainer.precision.endswith("-mixed") else nullcontext():
            return judged(self._run(self._teacher, X), None)[0]

    def why_not_finite(self) -> str | None:
        """Return why a loss is not finite, where what was taught last shows it; this waits for the device."""
        X, output = self._last or (None, None)
        if are_finite(X) and any(is_broken(tensor) for tensor in tensors_of(output)):
            name = type(self._teacher).__name__
            return f"so is what the teacher {name} gives for a batch that is finite: look at its weights first"
        of_task, of_teacher = self._trainer.loss.last
        if of_task.isfinite() and not of_teacher.isfinite():
            loss = self.distillation.loss
            which = "" if loss is None else f", {as_json(loss)}"
            return (
                f"so is the loss of the distillation{which}, which is where to look first: that of the task is finite"
            )
        return None

    # --- whether it fits ---------------------------------------------------------------------------------------

    def first(self, X: Any, y: Any, output: Any) -> Taught:
        """Return what the target of the first batch becomes.

        Raises:
            TrainingError: The teacher does not run, or its output does not fit that of the model.
        """
        if self._first is None:
            self._first = self._taught_first(X, y, mapped(judged(output, y)[0], torch.Tensor.detach))
        return self._first

    def _taught_first(self, X: Any, y: Any, output: Any) -> Taught:
        if output is None:
            raise TrainingError(
                "a teacher's output is compared with the model's, but loss_fn returns the loss alone; let it return "
                "(loss, output, target)"
            )
        is_stored = self._teacher == "stored"
        if is_stored and not isinstance(y, Taught):
            raise TrainingError(
                "teacher='stored' takes a dataset that has stored outputs; give WithLogits(dataset, path)"
            )
        if not is_stored and isinstance(y, Taught):
            raise TrainingError("the dataset has stored outputs, which teacher='stored' takes; give one teacher")
        taught = y if is_stored else Taught(y, output if self.is_in_place else self._first_output(X))
        self._check_fits(output, taught.output)
        return taught

    def _first_output(self, X: Any) -> Any:
        X = copied(X)
        before = noted(X)
        try:
            with torch.no_grad():
                output = self._output(X)
        except Exception as error:
            raise TrainingError(
                f"the teacher {type(self._teacher).__name__} does not run on a batch of the training part: "
                f"{type(error).__name__}: {error}; it is called as the model is"
            ) from error
        self._copies_batches = not is_as_noted(X, before)
        return output

    def _check_fits(self, output: Any, of_teacher: Any) -> None:
        teacher = (
            f"the teacher {type(self._teacher).__name__}" if isinstance(self._teacher, nn.Module) else "the teacher"
        )
        shown = f"the model gives {outline_of(output)}, {teacher} {outline_of(of_teacher)}"
        mend = "give loss=, a function of both, such as partial(kl_divergence, temperature=2.0, dim=1) of two tensors"
        if self.distillation.loss is None:
            if outline_of(output) != outline_of(of_teacher):
                raise TrainingError(f"the teacher's output does not fit: {shown}; let both be of one shape, or {mend}")
            if not isinstance(output, torch.Tensor) or output.dim() != 2:
                raise TrainingError(f"a divergence is taken of outputs (N, classes), but {shown}; {mend}")
            return
        try:
            with torch.no_grad():
                loss = self.distillation.compare(output, of_teacher)
        except Exception as error:
            raise TrainingError(
                f"the loss of the distillation fails where {shown}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise TrainingError(
                f"the loss of a distillation is a tensor of one number, but it returned {outline_of(loss)}; reduce it, "
                "say by .mean()"
            )


def is_broken(logits: torch.Tensor) -> bool:
    """Say whether there is NaN or an infinity; -inf is what a class has that is ruled out."""
    return bool((logits.isnan() | logits.isposinf()).any())


def check_is_taught(y: Any) -> None:
    """Raise `TrainingError` if a target has stored outputs, but there is nothing that takes them."""
    if isinstance(y, Taught):
        raise TrainingError(
            "the dataset has stored outputs of a teacher; give distillation=Distillation('stored'), or the dataset "
            "itself"
        )


def _targets_alone(X: Any, y: Any) -> Any:
    return y.target if isinstance(y, Taught) else y
