"""A supernet on its device and among the processes, as a trainer's steps run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from supernet.errors import TrainingError
from supernet.execution.memory_format import channels_last_inputs, choose_memory_format, lay_out_weights
from supernet.execution.selection import is_mixture
from supernet.execution.slot import Slot
from supernet.execution.state import Forms
from supernet.execution.structure import copied, is_as_noted, noted
from supernet.execution.supernet import Supernet
from supernet.space.strides import give_back_strides, let_state_follow

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__: list[str] = []


class DistributedSupernet:
    """A supernet that Lightning Fabric has set up: on its device, in its precision, shared with the other processes.

    Args:
        supernet: Its choices have been replaced, and nothing has run.
        fabric: Lightning Fabric, which knows device, precision and processes.
        plan: One that the trial can follow.
        optimizer: The optimizer of the model's parameters.
        trial: Tries a batch: `trial(X)` runs the model as it will run, and returns its outputs in training form and in
            eval form.
        X: The batch to try.
        run: `run(model, X)` runs a batch through something that is called as the model is.
        forms: The forms, training or eval, of the model's modules.
        loss: A module whose parameters and buffers are treated as the model's; anything else has none.

    Attributes:
        module: What is called as the model is, in the precision and among the processes.
        weights: The parameters that are trained: the model's, and all others that the optimizer has.
        synced: Identities of those whose gradients a backward pass averages over the processes.
        optimizer: The optimizer as Fabric wraps it.
        inputs: The inputs of the batch that ran last.
        prepares: Whether batches have to be `prepared` before they run.

    Raises:
        SupernetError: A choice cannot run so. What `trial` raises is passed on.
    """

    def __init__(
        self,
        supernet: Supernet,
        fabric: Fabric,
        plan: Mapping[str, Any],
        optimizer: Optimizer,
        trial: Callable[[Any], tuple[Any, Any]],
        X: Any,
        run: Callable[[Any, Any], Any],
        forms: Forms,
        loss: Any,
    ) -> None:
        self.supernet, self.model, self._fabric, self._run = supernet, supernet.model, fabric, run
        self.inputs: Any = None
        fabric.to_device(self.model)
        self.synced = {id(p) for p in self.model.parameters()}
        outside = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in self.synced]
        supernet.count_in(*([loss] if isinstance(loss, nn.Module) else []), parameters=outside)
        self.weights = [p for p in [*self.model.parameters(), *outside] if p.requires_grad]
        # A trial sees one path; another may change its batch, which may be a part of the data itself.
        self._copies_batches = not all(
            isinstance(slot, Slot) and is_mixture(plan.get(label)) for label, slot in supernet.replaced
        )
        self._channels_last = self._is_laid_out = self._settles = False

        def dry_run(X: Any) -> tuple[Any, Any]:
            X = copied(X)
            before = noted(X)
            with supernet.preserve_buffers():
                result = trial(X)
            self._copies_batches |= not is_as_noted(X, before)
            return result

        def prepared() -> Callable[[], Any]:
            self._channels_last = choose_memory_format(self.model, X, lambda X: dry_run(X)[1])
            self._is_laid_out = self._channels_last
            return lambda: dry_run(self.prepared(X))

        forms.note()  # of what stands in the choices' places too
        with fabric.autocast():
            supernet.note_autocast()
        with forms.preserve():
            supernet.try_out(plan, lambda: dry_run(X), prepared)
        if supernet.is_reentrant and fabric.world_size > 1:
            raise TrainingError(
                "choices run under torch.utils.checkpoint with use_reentrant=True, whose gradients several processes "
                "cannot share; pass use_reentrant=False"
            )
        self.prepares = self._copies_batches or self._channels_last
        self.module, self.optimizer = fabric.setup(self.model, optimizer)  # DDP notes the strides of training
        if self._is_laid_out:
            self._give_back()

    # --- batches ---------------------------------------------------------------------------------------------

    def prepared(self, X: Any) -> Any:
        """Return a batch as the model is to have it."""
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

    # --- other passes than those of steps ----------------------------------------------------------------------

    def in_float32(self, X: Any, plan: Mapping[str, Any]) -> Any:
        """Run the model on a batch, but without autocast and apart from the other processes."""
        with torch.autocast(self._fabric.device.type, enabled=False), self.supernet.following(plan):
            return self._run(self.model, self.prepared(X))

    def forward_local(self, X: Any, plan: Mapping[str, Any]) -> Any:
        """Run the model on a batch, but apart from the other processes: without a gradient."""
        with torch.no_grad(), self.supernet.following(plan):
            return self._run(_Local(self.model, self._fabric.strategy.precision), self.prepared(X))

    def settle_order_of_sums(self, loss: Callable[[], torch.Tensor]) -> None:
        """Let DDP arrange gradients for its sums as it will from here on, by one backward pass that leaves no trace.

        It does so once, after its first pass; of three numbers and more, sums of another order have other bits, so a
        search that goes on in new processes would have those in its first step, and one that never stopped would not.

        Args:
            loss: A function that computes the loss of a batch.
        """
        arranging = [wrapper for wrapper in self._wrappers() if not wrapper.find_unused_parameters]
        if self._fabric.world_size < 3 or not arranging:
            return
        self._settles = True  # by a pass that is averaged, also where only every second one is
        with self.supernet.preserve_buffers():
            result = loss()
            if result.requires_grad:
                self.backward(result)
        self._settles = False
        for weight in self.weights:
            weight.grad = None

    # --- gradients ---------------------------------------------------------------------------------------------

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss."""
        # Where leaves pass on their gradients, what they pass them on to must still be there.
        options: dict[str, Any] = {"retain_graph": True} if self.supernet.is_reentrant else {}
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

    def average(self, gradients: Sequence[torch.Tensor]) -> None:
        """Average gradients of what stands outside the wrapped model over the processes, in place, in one message."""
        if self._fabric.world_size == 1 or not gradients:
            return
        together = _averaged(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def unscale(self, optimizer: Any) -> None:
        """Take a loss scaler's factor out of the gradients of the optimizer's parameters, where there is one."""
        self._fabric.strategy.precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))

    def no_grad_sync(self, enabled: bool) -> AbstractContextManager[Any]:
        """Keep DDP from waiting for gradients of the weights that a pass does not give, or does not give yet."""
        if self._fabric.world_size == 1 or not enabled or self._settles:
            return nullcontext()
        return self._fabric.no_backward_sync(self.module)

    # --- buffers that processes share --------------------------------------------------------------------------

    def shares_buffers_next(self) -> list[bool]:
        """Return whether the next pass gives all processes the first one's buffers, which the last one has decided."""
        return [bool(module.require_forward_param_sync) for module in self._wrappers()]

    def share_buffers_next(self, shares: Sequence[bool]) -> None:
        """Let the next pass do so, or not."""
        for module, share in zip(self._wrappers(), shares, strict=True):
            module.require_forward_param_sync = share

    def _wrappers(self) -> list[DistributedDataParallel]:
        modules = self.module.modules() if self._fabric.world_size > 1 else ()
        return [module for module in modules if isinstance(module, DistributedDataParallel)]


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
