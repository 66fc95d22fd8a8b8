"""A model whose choices run, on its device and shared with the other processes: what a trainer's steps run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from supernet.errors import ChoiceError, TrainingError
from supernet.execution import (
    ChoiceSlot,
    InputSlot,
    LayerSlot,
    Plan,
    replace_input_choice,
    replace_layer_choice,
    replace_other_choices,
    restore,
)
from supernet.execution.memory_format import agree, channels_last_inputs, choose_memory_format, lay_out_weights
from supernet.execution.plan import is_in_reentrant_checkpoint
from supernet.execution.risks import check_risks
from supernet.execution.selection import is_mixture
from supernet.execution.state import Buffers, Forms, no_grad_for
from supernet.execution.structure import copied, is_as_noted, mapped, noted
from supernet.nn import InputChoice, LayerChoice
from supernet.space.strides import give_back_strides, let_state_follow

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []

logger = logging.getLogger("supernet")

_SLOTS = (LayerSlot, InputSlot, ChoiceSlot)


class Supernet:
    """A model whose choices follow a plan.

    Args:
        model: a module with choices, which are replaced in place.
        fabric: of the processes.
        layer: makes what stands in a `LayerChoice`'s place and follows the plan.
        input: the same for an `InputChoice`.
        plan: one that the trial can follow.
        optimizer: of the model's parameters.
        trial: tries a batch: `trial(X)` runs the model as it will run, and returns its outputs in training form and
            in eval form.
        X: the batch to try.
        run: `run(model, X)` runs a batch through something that is called as the model is.
        forms: of the model's modules.
        loss: a module whose parameters and buffers are treated as the model's; anything else has none.

    Attributes:
        weights: the parameters that are trained: the model's, and all others that the optimizer has.
        synced: identities of those whose gradients a backward pass averages over the processes.
        replaced: (label, module) of what stands in the choices' places.
        optimizer: the optimizer as Fabric wraps it.
        inputs: of the batch that ran last.

    Raises:
        SupernetError: a choice cannot run so. What `trial` raises is passed on. After either the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        fabric: Fabric,
        layer: Callable[[LayerChoice, Plan], nn.Module],
        input: Callable[[InputChoice, Plan], nn.Module],
        plan: dict[str, Any],
        optimizer: Optimizer,
        trial: Callable[[Any], tuple[Any, Any]],
        X: Any,
        run: Callable[[Any, Any], Any],
        forms: Forms,
        loss: Any,
    ) -> None:
        self.model, self._fabric, self._run, self._plan = model, fabric, run, Plan(plan)
        self.replaced: list[tuple[str, nn.Module]] = []
        try:
            replace_layer_choice(model, lambda choice: layer(choice, self._plan), self.replaced)
            replace_input_choice(model, lambda choice: input(choice, self._plan), self.replaced)
            replace_other_choices(model, lambda choice: ChoiceSlot(choice, self._plan), self.replaced)
            for label, slot in self.replaced:
                if isinstance(slot, InputSlot | ChoiceSlot) and label in plan:
                    slot.check(plan[label])
            fabric.to_device(model)
            self._buffers = Buffers(nn.ModuleList([model, *([loss] if isinstance(loss, nn.Module) else [])]))
            self.synced = {id(p) for p in model.parameters()}
            outside = [p for g in optimizer.param_groups for p in g["params"] if id(p) not in self.synced]
            self.weights = [p for p in [*model.parameters(), *outside] if p.requires_grad]
            # A trial sees one path; another may change its batch, which may be a part of the data itself.
            mixtures = [isinstance(slot, _SLOTS) and is_mixture(plan.get(label)) for label, slot in self.replaced]
            self._copies_batches = not all(mixtures)

            def dry_run(X: Any) -> tuple[Any, Any]:
                X = copied(X)
                before = noted(X)
                with self._buffers.preserve(), self._plan.one_pass():
                    result = trial(X)
                self._copies_batches |= not is_as_noted(X, before)
                return result

            forms.note()  # of what stands in the choices' places too
            with forms.preserve(), self._noting_reentrant_checkpoints():
                self._plan.fast = False  # first as written: what is wrong with a model is said in its own terms
                check_risks(model, self._plan, self.replaced, lambda: dry_run(X))
                self._channels_last = choose_memory_format(model, X, lambda X: dry_run(X)[1])
                self._is_laid_out = self._channels_last
                self._check_changed_inputs(lambda: dry_run(self._prepared(X)))
                self._go_fast(lambda: dry_run(self._prepared(X)))
            self._module, self.optimizer = fabric.setup(model, optimizer)  # DDP notes the strides of training
            if self._is_laid_out:
                self._give_back()
        except BaseException:
            restore(model)
            raise

    @contextmanager
    def _noting_reentrant_checkpoints(self) -> Iterator[None]:
        def note(*_: Any) -> None:
            self._plan.reentrant |= is_in_reentrant_checkpoint()

        handles = [module.register_forward_pre_hook(note) for _, module in self.replaced]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._plan.reentrant and self._fabric.world_size > 1:
            raise TrainingError(
                "choices run under torch.utils.checkpoint with use_reentrant=True, whose gradients several processes "
                "cannot share; pass use_reentrant=False"
            )

    def _check_changed_inputs(self, trial: Callable[[], Any]) -> None:
        """Raise if the model goes on with an input that a candidate changes in place.

        It would find it changed where that candidate is frozen, and finds it as it was where all are mixed.
        """
        mixtures = self._mixtures()
        changing = [(mixture, name) for mixture in mixtures for name in mixture.apart.changing()]
        if not changing:
            return
        expected = trial()
        for mixture, name in changing:
            with mixture.changed_by(name):
                found = trial()
            if not agree(expected, found):
                raise ChoiceError(
                    f"candidate {name!r} of choice {mixture.label!r} changes its input in place, and the model uses "
                    "that input again after the choice: where the candidates are mixed it is as it was, in a frozen "
                    "network it would not be; let the candidate work on a copy, such as by inplace=False"
                )

    def _mixtures(self) -> list[LayerSlot]:
        """Return what stands in the places of layer choices that the plan lets run as mixtures."""
        slots = [(label, module) for label, module in self.replaced if isinstance(module, LayerSlot)]
        return [slot for label, slot in slots if is_mixture(self._plan.get(label))]

    def _go_fast(self, trial: Callable[[], Any]) -> None:
        """Let mixtures take the fast way, if a trial gives the same outputs so."""
        mixtures = self._mixtures()
        if not mixtures:
            return
        expected = trial()
        cache: dict[Any, Any] = {}
        traces = [trace for mixture in mixtures for trace in mixture.trace(cache).traces.values()]
        self._plan.fast = True
        try:
            differs = None if agree(expected, trial()) else "gives another output"
        except Exception as error:
            differs = f"raises {type(error).__name__} ({str(error).splitlines()[0] if str(error) else error!r})"
        if differs is None:
            count = sum(not trace.runs_as_it_is for trace in traces)
            logger.info(
                "%d of the %d candidates in %d choices run the fast way, %d as they are; trainer.explain() says why",
                *(count, len(traces), len(mixtures), len(traces) - count),
            )
        else:
            self._plan.fast = False
            logger.warning(
                "%s %s the fast way, so all its choices run candidate by candidate; please report the model",
                type(self.model).__name__,
                differs,
            )

    def explain(self) -> str:
        """Return how the choices run, those of the same candidates together."""
        labels: dict[str, list[str]] = {}
        for label, module in self.replaced:
            how = module.explain() if isinstance(module, LayerSlot) else f"  {type(module).__name__}"
            labels.setdefault(how, []).append(label)
        return "\n".join(f"{', '.join(dict.fromkeys(same))}:\n{how}" for how, same in labels.items())

    def __call__(self, X: Any, plan: dict[str, Any]) -> Any:
        """Run the model on a batch, its choices following the plan."""
        self._plan.update(self._through_leaves(plan))
        needs_no_gradient = not any(w.requires_grad for w in self.weights[:1])
        with self.no_grad_sync(needs_no_gradient), self._plan.one_pass():
            return self._run(self._module, self._prepared(X))

    def _prepared(self, X: Any) -> Any:
        self.inputs = X
        if self._copies_batches:  # the model changes them in place, and a batch may be used again
            X = copied(X)
        if not self._channels_last:
            return X
        if not self._is_laid_out:
            self._lay_out()
        return channels_last_inputs(X)

    @contextmanager
    def laid_out(self) -> Iterator[None]:
        """Let the weights be laid out as the model runs in this context, and as the user has them after it."""
        if self._is_laid_out or not self._channels_last:
            yield
            return
        self._lay_out()
        try:
            yield
        finally:
            self._give_back()

    def _lay_out(self) -> None:
        lay_out_weights(self.model)
        self._let_state_follow()
        self._is_laid_out = True

    def _give_back(self) -> None:
        give_back_strides(self.model)
        self._let_state_follow()
        self._is_laid_out = False

    def _let_state_follow(self) -> None:
        let_state_follow(self.weights, getattr(self.optimizer, "optimizer", self.optimizer).state)  # Fabric wraps it

    def in_float32(self, X: Any, plan: dict[str, Any]) -> Any:
        """Run the model on a batch as `__call__` does, but without autocast and apart from the other processes."""
        self._plan.update(self._through_leaves(plan))
        with torch.autocast(self._fabric.device.type, enabled=False), self._plan.one_pass():
            return self._run(self.model, self._prepared(X))

    def forward_local(self, X: Any, plan: dict[str, Any]) -> Any:
        """Run the model on a batch as `__call__` does, but apart from the other processes: without a gradient."""
        self._plan.update(plan)
        with torch.no_grad(), self._plan.one_pass():
            return self._run(_Local(self.model, self._fabric.strategy.precision), self._prepared(X))

    def _through_leaves(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Return the plan for a pass.

        A reentrant checkpoint goes backward through what it was not given by itself, and frees the graph there: so for
        its passes that graph ends in leaves, which pass their gradients on.
        """
        if not self._plan.reentrant:
            return plan
        return {label: mapped(entry, _leaf_of) for label, entry in plan.items()}

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss."""
        # Where leaves pass on their gradients, what they pass them on to must still be there.
        options: dict[str, Any] = {"retain_graph": True} if self._plan.reentrant else {}
        self._fabric.backward(loss, **options)

    def gradients(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor | None]:
        """Return the loss's gradient of each parameter, None where it does not depend; `.grad` is left alone."""
        if not loss.requires_grad:
            return [None] * len(parameters)
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        self.backward(loss)
        result = [p.grad for p in parameters]
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
        self.average([g for p, g in zip(parameters, result, strict=True) if g is not None and id(p) not in self.synced])
        return result

    def clip(self, optimizer: Any, norm: float) -> Any:
        """Clip the gradients of the optimizer's parameters to a norm, and return what the norm was."""
        return self._fabric.clip_gradients(self._module, optimizer, max_norm=norm, error_if_nonfinite=False)

    def norm(self, optimizer: Any) -> torch.Tensor:
        """Return the norm of the gradients of the optimizer's parameters, without a loss scaler's factor."""
        self._fabric.strategy.precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
        norms = [
            torch.linalg.vector_norm(p.grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def preserve_buffers(self, only_after: type[Exception] | None = None) -> AbstractContextManager[None]:
        """Bring running statistics, and all other buffers, back after this context: always, or if it is left so."""
        return self._buffers.preserve(only_after)

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Compute no gradient of the weights in this context, and bring running statistics back after it."""
        with self.without_gradients(), self._buffers.preserve():
            yield

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Compute no gradient of the weights in this context."""
        if not self._plan.reentrant:
            with no_grad_for(self.weights):
                yield
            return
        # There a gradient comes only from where an input has one.
        before = [w.grad for w in self.weights]
        for w in self.weights:
            w.grad = None
        try:
            yield
        finally:
            for w, grad in zip(self.weights, before, strict=True):
                w.grad = grad

    def no_grad_sync(self, enabled: bool) -> AbstractContextManager[Any]:
        """Keep DDP from waiting for gradients of the weights that a pass does not give, or does not give yet."""
        if self._fabric.world_size == 1 or not enabled:
            return nullcontext()
        return self._fabric.no_backward_sync(self._module)

    def settle_order_of_sums(self, loss: Callable[[], torch.Tensor]) -> None:
        """Let DDP arrange gradients for its sums as it will from here on, by one backward pass that leaves no trace.

        It does so once, after its first pass; of three numbers and more, sums of another order have other bits, so a
        search that goes on in new processes would have those in its first step, and one that never stopped would not.

        Args:
            loss: computes that of a batch.
        """
        arranging = [wrapper for wrapper in self._wrappers() if not wrapper.find_unused_parameters]
        if self._fabric.world_size < 3 or not arranging:
            return
        with self._buffers.preserve():
            result = loss()
            if result.requires_grad:
                self.backward(result)
        for weight in self.weights:
            weight.grad = None

    def shares_buffers_next(self) -> list[bool]:
        """Return whether the next pass gives all processes the first one's buffers, which the last one has decided."""
        return [bool(module.require_forward_param_sync) for module in self._wrappers()]

    def share_buffers_next(self, shares: Sequence[bool]) -> None:
        """Let the next pass do so, or not."""
        for module, share in zip(self._wrappers(), shares, strict=True):
            module.require_forward_param_sync = share

    def _wrappers(self) -> list[DistributedDataParallel]:
        modules = self._module.modules() if self._fabric.world_size > 1 else ()
        return [module for module in modules if isinstance(module, DistributedDataParallel)]

    def average(self, gradients: Sequence[torch.Tensor]) -> None:
        """Average gradients of what stands outside the wrapped model over the processes, in place, in one message."""
        if self._fabric.world_size == 1 or not gradients:
            return
        together = _averaged(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def candidates_without_parameters(self) -> dict[str, list[str]]:
        """Return label -> names of the candidates without parameters, where the modules in place say `candidates`."""
        return {
            label: [name for name, candidate in candidates.items() if next(candidate.parameters(), None) is None]
            for label, module in self.replaced
            if isinstance(candidates := getattr(module, "candidates", None), Mapping | nn.ModuleDict)
        }


def _averaged(tensor: torch.Tensor) -> torch.Tensor:
    """Average a tensor over the processes, in place: in the group of the gradients, on the device."""
    if distributed.get_backend() == "nccl":
        distributed.all_reduce(tensor, op=distributed.ReduceOp.AVG)
        return tensor
    distributed.all_reduce(tensor)
    return tensor.div_(distributed.get_world_size())


class _Local:
    """A model that is called in a precision as Fabric's wrapper would, but apart from the other processes."""

    def __init__(self, model: nn.Module, precision: Any) -> None:
        self._model, self._precision = model, precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._precision.convert_input((args, kwargs))
        with self._precision.forward_context():
            return self._precision.convert_output(self._model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _leaf_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a leaf of the same values that passes the gradients it gets on to the tensor."""
    if not tensor.requires_grad:
        return tensor
    leaf = tensor.detach().requires_grad_()

    def pass_on(leaf: torch.Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        torch.autograd.backward(tensor, gradient, retain_graph=True)

    leaf.register_post_accumulate_grad_hook(pass_on)
    return leaf
