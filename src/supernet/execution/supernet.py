"""A model whose choices run: it computes whatever a plan says, with weights that all architectures share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supernet.errors import ArchitectureError, TrainingError
from supernet.execution.activation_checkpoints import gradients_dropped, with_leaves
from supernet.execution.choice_slot import ChoiceSlot
from supernet.execution.fast.shared import one_pass
from supernet.execution.input_slot import InputSlot
from supernet.execution.plan import Plan
from supernet.execution.replace import (
    check_not_replaced,
    replace_input_choice,
    replace_layer_choice,
    replace_other_choices,
    replace_value_choice,
    restore,
)
from supernet.execution.selection import Selection, is_mixture, read_entry, usual_entries
from supernet.execution.slot import LayerSlot, Slot
from supernet.execution.state import Buffers, Forms, seeded
from supernet.execution.structure import are_finite, copied
from supernet.execution.trial import Trial, try_out
from supernet.execution.value_slot import ValueSlot
from supernet.nn import InputChoice, LayerChoice
from supernet.space import SearchSpace
from supernet.space.hanging import check_nothing_is_lost

__all__ = ["Supernet"]


class Supernet(nn.Module):
    """A model whose choices run: `supernet(batch, plan)` computes what the plan says, for a training loop of your own.

    All positional arguments but the last, and all keyword arguments, go to the model's forward. The last is the plan:
    an architecture, which runs that path; or label -> weights of all options, which mixes what they give; or label ->
    `Selection`, of some. It need not name choices that are not reached. An architecture that breaks what `require` has
    given the model is refused, a mixture is not. A pass of `supernet.model` itself follows the plan of the last pass,
    so call the supernet wherever you mean a plan; before the first such a pass is an error.

    What can be known only by running the model is tried at the first pass, on the arguments given there: whether it
    bears each decision of an `InputChoice`, whether candidates change their input in place, whether mixed values give
    at one-hot weights what their path gives, and whether the fast way of mixtures gives the same outputs. From then on
    that way is taken where it is known. It leaves no trace in parameters, buffers, forms and random numbers; other
    attributes that a forward sets are the model's own affair. Of an `example` it is tried too whether the model bears
    small and large values together.
    Under `torch.compile`, in inference mode and in transforms of `torch.func` nothing can be tried: until a pass beside
    these, or an `example`, candidates run one by one, and what the model does not bear is not said.

    `state_dict` has the keys of the model as written: a plain model with the same choices loads it, and the other way
    round. `named_parameters` calls them `model.` and that name: what needs both to be the same, as
    `torch.func.functional_call` and `torch.distributed.checkpoint.state_dict` do, is given `supernet.model`.

    Args:
        model: A module with choices. Modules that run are put in their places; `restore(model)` puts the choices back.
        example: Arguments of a pass, `(*args, plan)`, on which all is tried at once. Default: at the first pass.
        layer: Makes what stands in a `LayerChoice`'s place and follows the plan. Default: `LayerSlot`;
            `partial(LayerSlot, lean=True)` holds less memory.
        input: The same for an `InputChoice`. Default: `InputSlot`.

    Attributes:
        model: The model itself.
        space: Its `SearchSpace`.
        replaced: Label and module of what stands in each choice's place.

    Raises:
        AlreadyReplacedError: The choices of the model have been replaced already.
        TrainingError: The model has no choices, or `example` is no tuple.
        SpaceError: One label means two different choices.
        ChoiceError: The model does not bear a decision of a choice, or a choice cannot run so.
        ReplacementError: Something hangs on an elastic layer that no frozen network could have.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    >>> supernet = Supernet(model)
    >>> supernet(torch.ones(1, 4), {"op": "skip"})
    tensor([[1., 1., 1., 1.]])
    """

    runs_plans = True  # so that `freeze`, which stands below, takes the model inside
    may_lack_choices = False

    def __init__(
        self,
        model: nn.Module,
        example: tuple[Any, ...] | None = None,
        *,
        layer: Callable[[LayerChoice, Plan], nn.Module] = LayerSlot,
        input: Callable[[InputChoice, Plan], nn.Module] = InputSlot,
    ) -> None:
        super().__init__()
        if example is not None and not isinstance(example, tuple):
            raise TrainingError(
                f"example is a tuple of arguments, the plan last, not a {type(example).__name__}; give (X, plan)"
            )
        self.space = SearchSpace(model)
        check_not_replaced(model)
        check_nothing_is_lost(model)
        if not self.space and not self.may_lack_choices:
            raise TrainingError(
                f"{type(model).__name__} has no choices that a plan could decide; mark some by LayerChoice or "
                "InputChoice, or run it as it is"
            )
        self._plan = Plan()
        self.replaced: list[tuple[str, nn.Module]] = []
        try:
            replace_layer_choice(model, lambda choice: layer(choice, self._plan), self.replaced)
            replace_input_choice(model, lambda choice: input(choice, self._plan), self.replaced)
            replace_value_choice(model, lambda choice: ValueSlot(choice, self._plan), self.replaced)
            replace_other_choices(model, lambda choice: ChoiceSlot(choice, self._plan), self.replaced)
            self.model = model
            self._slots = {label: slot for label, slot in self.replaced if isinstance(slot, Slot)}
            for slot in self._slots.values():
                slot.fast = None  # not before it has been tried
            # Those that not every entry suits which is a decision or as many weights as there are options.
            self._particular = [label for label, slot in self._slots.items() if type(slot).check is not Slot.check]
            # What most entries of a plan are: a name, and the shape of weights of all options.
            self._usual = {(label, usual) for label in self._slots for usual in usual_entries(self.space[label])}
            self._is_constrained = bool(self.space.constraints)
            self._beside: list[nn.Module] = []  # what is trained too
            self.count_in()
            self.is_reentrant = False
            self._each_pass: Callable[[], AbstractContextManager[None]] = one_pass
            self._tried: dict[tuple[bool, bool], set[str]] = {}  # (in training form, under autocast) -> what was mixed
            self._loading: _Loading | None = None
            self.register_state_dict_post_hook(_leave_out_model)
            self.register_load_state_dict_pre_hook(_put_in_model)
            self.register_load_state_dict_post_hook(_name_as_written)
            if example is not None:
                self._try(*self._with_plan(example, {}), {}, tries_values=True)
        except BaseException:
            restore(model)
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on all arguments but the last positional one, which is the plan."""
        args, plan = self._with_plan(args, kwargs)
        if self._is_constrained:
            self._check_allowed(plan)
        tried = self._tried.get(self._form())
        if tried is None or any(is_mixture(entry) and label not in tried for label, entry in plan.items()):
            self._try(args, plan, kwargs)
        with self.following(plan):
            return self.model(*args, **kwargs)

    def _with_plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the model's arguments, and the plan that is the last of these; the rest of it `following` checks."""
        if not args or not isinstance(args[-1], Mapping):
            given = type(args[-1]).__name__ if args else "nothing"
            mend = "; give it without its name: supernet(X, plan)" if "plan" in kwargs else ""
            raise ArchitectureError(f"the last positional argument is the plan, label -> decision, not {given}{mend}")
        for label in self._particular:
            if label in args[-1]:
                self.check(label, args[-1][label])
        return args[:-1], args[-1]

    def _check_allowed(self, plan: Mapping[str, Any]) -> None:
        """Raise `ArchitectureError` where a plan is an architecture that breaks a constraint."""
        if not any(isinstance(entry, Tensor | Selection) for entry in plan.values()):
            with suppress(KeyError):  # one that leaves a choice open, which is said where that runs
                path = self.space.follow({label: self._read(label, entry) for label, entry in plan.items()}.__getitem__)
                if not self.space.allows(path):
                    self.space.validate(path)

    def check(self, label: str, entry: Any) -> None:
        """Raise unless a plan may have this entry.

        Raises:
            ArchitectureError: There is no such choice, or it is none of its decisions.
            ChoiceError: There is not a weight for each option, or the choice cannot run so.
        """
        read = self._read(label, entry)
        if label in self._slots:
            self._slots[label].check(read)

    def _read(self, label: str, entry: Any) -> Any:
        """Return a plan's entry as slots read it, or raise: see `check`."""
        if label in self._slots:
            return read_entry(self.space[label], entry)
        if label not in self.space:
            known = ", ".join(map(repr, self.space)) or "none"
            raise ArchitectureError(f"the plan has an entry for {label!r}, but the choices of this model are: {known}")
        return entry  # of another module it is not known what it follows

    def following(self, plan: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Let the model, called in whatever way in this context, follow a plan: one pass.

        Raises:
            ArchitectureError, ChoiceError: An entry is none that its choice can run. Then the last plan stands.
        """
        entries = dict(plan)
        for label, entry in plan.items():  # paths are hot: each label costs as little as it can
            if (label, entry if type(entry) is str else type(entry) is Tensor and entry.shape) not in self._usual:
                entries[label] = self._read(label, entry)
        self._plan.clear()
        self._plan.update(with_leaves(entries) if self.is_reentrant else entries)
        return self._each_pass()

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Compute no gradient of the weights in this context, and bring running statistics back after it.

        What a step of an architecture's parameters stands in, its backward pass too.
        """
        with self.without_gradients(), self.preserve_buffers() if self._has_buffers else nullcontext():
            yield

    def without_gradients(self) -> AbstractContextManager[None]:
        """Compute no gradient of the weights in this context."""
        return gradients_dropped(self._weights()) if self.is_reentrant else self._requiring_no_gradients()

    @contextmanager
    def _requiring_no_gradients(self) -> Iterator[None]:
        frozen = [w for m, name in self._places if (w := m._parameters.get(name)) is not None and w.requires_grad]
        for weight in frozen:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in frozen:
                weight.requires_grad_(True)

    def preserve_buffers(self, only_after: type[Exception] | None = None) -> AbstractContextManager[None]:
        """Bring running statistics, and all other buffers, back after this context: always, or if it is left so."""
        return self._buffers_of_all.preserve(only_after)

    def count_in(self, *modules: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> None:
        """Let `frozen_weights` and `preserve_buffers` hold what else is trained, such as a loss, as the model's own.

        They find parameters and buffers by their places, so also those that were put there later. After a whole module
        of the model has been replaced, call this, be it without arguments.
        """
        self._beside = [*self._beside, *modules, nn.ParameterList(parameters)]
        every = nn.ModuleList([self, *self._beside])
        self._places = [
            (m, name) for m in every.modules() for name, weight in m._parameters.items() if weight is not None
        ]
        self._buffers_of_all = Buffers(every)
        self._has_buffers = True  # until a trial shows that no forward makes any

    def _weights(self) -> Iterator[nn.Parameter]:
        return (weight for m, name in self._places if (weight := m._parameters.get(name)) is not None)

    def labels_not_finite(self) -> list[str]:
        """Return the labels for which the last plan has weights with NaN or infinities; waits for the device."""
        return [label for label, entry in self._plan.items() if not are_finite(entry)]

    def note_autocast(self) -> None:
        """Note, for `explain`, that passes are under autocast, or that they are not, as it is now."""
        for _, module in self.replaced:
            if isinstance(module, Slot):
                module.autocast.add(self._is_under_autocast())

    def _is_under_autocast(self) -> bool:
        weight = next(self._weights(), None)
        return weight is not None and torch.is_autocast_enabled(weight.device.type)

    def explain(self) -> str:
        """Return how the choices run, those of the same candidates together."""
        labels: dict[str, list[str]] = {}
        for label, module in self.replaced:
            how = module.explain() if isinstance(module, Slot) else f"  {type(module).__name__}"
            labels.setdefault(how, []).append(label)
        return "\n".join(f"{', '.join(dict.fromkeys(same))}:\n{how}" for how, same in labels.items())

    def candidates_without_parameters(self) -> dict[str, list[str]]:
        """Return label -> names of the candidates without parameters, where the modules in place say `candidates`."""
        return {
            label: [name for name, candidate in candidates.items() if next(candidate.parameters(), None) is None]
            for label, module in self.replaced
            if isinstance(candidates := getattr(module, "candidates", None), Mapping | nn.ModuleDict)
        }

    # --- what only running shows -----------------------------------------------------------------------------

    def try_out(
        self,
        plan: Mapping[str, Any],
        trial: Trial,
        prepared: Callable[[], Trial] | None = None,
        tries_values: bool = True,
    ) -> None:
        """Find out by a trial, which follows a plan and leaves no trace, how the choices are to run from now on."""
        with self.following(plan):
            of_model = self.model, self._plan, self.replaced
            self.is_reentrant |= try_out(*of_model, trial, self.space, prepared, tries_values)
        self._has_buffers = self._buffers_of_all.are_there
        slots = self._slots.values()
        self._each_pass = one_pass if any(slot.fast or slot.tells_passes_apart for slot in slots) else nullcontext

    def _form(self) -> tuple[bool, bool]:
        return self.training, self._is_under_autocast()

    def _try(
        self, args: tuple[Any, ...], plan: Mapping[str, Any], kwargs: dict[str, Any], tries_values: bool = False
    ) -> None:
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return  # where nothing can be tried; a later pass will
        if torch._C._are_functorch_transforms_active():
            return
        device, forms = next((weight.device for weight in self._weights()), torch.device("cpu")), Forms(self)

        def run() -> Any:
            given_args, given_kwargs = copied((args, kwargs))
            with seeded(0, device):
                return self.model(*given_args, **given_kwargs)

        def trial() -> Any:
            with torch.no_grad(), self.preserve_buffers(), forms.preserve():
                outputs = [run()]
                if self.training:
                    self.eval()
                    outputs.append(run())
                return outputs

        self.note_autocast()
        self.try_out(plan, trial, tries_values=tries_values)
        training, autocast = self._form()
        for form in {(training, autocast), (False, autocast)}:
            self._tried.setdefault(form, set()).update(label for label, entry in plan.items() if is_mixture(entry))


class PlainModel(Supernet):
    """The same around a model that may have no choices: single networks are trained in the loop of searches."""

    may_lack_choices = True


def _leave_out_model(supernet: nn.Module, state: Any, prefix: str, local_metadata: Any) -> None:
    """Call what a supernet saves as the model as written does."""
    metadata = getattr(state, "_metadata", {})
    metadata[prefix[:-1]] = metadata.pop(f"{prefix}model", {})
    for named in (state, metadata):
        _rename(named, f"{prefix}model.", prefix)


class _Loading(NamedTuple):
    """A load under way, in which all is called as the model is here, to be called as written again after it."""

    prefix: str
    metadata: dict[str, Any]  # the user's own
    before: dict[str, Any]  # what was in it, or None
    messages: list[tuple[list[str], int]]  # lists of what is wrong, and how much was in each

    def end(self) -> None:
        for path, value in self.before.items():
            if value is None:
                self.metadata.pop(path, None)
            else:
                self.metadata[path] = value
        for messages, start in self.messages:
            messages[start:] = [text.replace(f"{self.prefix}model.", self.prefix, 1) for text in messages[start:]]


def _put_in_model(supernet: Any, state: Any, prefix: str, _: Any, strict: bool, *messages: list[str]) -> None:
    """Find what has been saved of the model as written."""
    if supernet._loading is not None:  # which has failed
        supernet._loading.end()
    metadata, path = _metadata_of_load(), prefix[:-1]
    moved = {f"{prefix}model.{of[len(prefix) :]}": value for of, value in metadata.items() if of.startswith(prefix)}
    moved.pop(f"{prefix}model.", None)  # of the whole, if that has no name
    moved |= {f"{prefix}model": metadata[path]} if path in metadata else {}
    before = {of: metadata.get(of) for of in moved}
    metadata.update(moved)
    supernet._loading = _Loading(prefix, metadata, before, [(each, len(each)) for each in messages])
    _rename(state, prefix, f"{prefix}model.")


def _name_as_written(supernet: Any, incompatible: Any) -> None:
    """Name what is missing or unexpected as in the model as written."""
    supernet._loading.end()
    supernet._loading = None


def _metadata_of_load() -> dict[str, Any]:
    """Return the versions of modules that `load_state_dict` goes by: to a child it shows its own alone."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return (frame and frame.f_locals["metadata"]) or {}


def _rename(named: dict[str, Any], old: str, new: str) -> None:
    moved = {name: named.pop(name) for name in list(named) if name.startswith(old)}
    named.update({new + name.removeprefix(old): value for name, value in moved.items()})
