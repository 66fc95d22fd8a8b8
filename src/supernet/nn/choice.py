"""What all kinds of choice have in common: a label, a domain, and that they do not run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from supernet.errors import ArchitectureError, ChoiceError, UnresolvedChoiceError
from supernet.nn.domain import Decision, Domain

__all__ = ["Alternative", "Choice"]

# The decisions that constructors follow inside `fixed_architecture`, and the labels met so far.
_fixed: ContextVar[tuple[Mapping[str, Any], set[str]] | None] = ContextVar("supernet_fixed", default=None)


@contextmanager
def constructors_follow(decisions: Mapping[str, Any]) -> Iterator[set[str]]:
    """Let the choices that are constructed inside become what `decisions` says; yield the labels met."""
    met: set[str] = set()
    token = _fixed.set((decisions, met))
    try:
        yield met
    finally:
        _fixed.reset(token)


def is_following() -> bool:
    """Say whether choices that are constructed now become what has been decided."""
    return _fixed.get() is not None


def decisions_followed() -> dict[str, Any] | None:
    """Return the decisions that constructors have followed so far; None where they follow none."""
    fixed = _fixed.get()
    return None if fixed is None else {label: each for label, each in fixed[0].items() if label in fixed[1]}


class ShowsConstructor(type):
    """A metaclass with a `__call__` of its own, which would hide the constructor from `inspect`, `help` and editors."""

    @property
    def __signature__(cls) -> inspect.Signature:
        _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)


class _BecomesWhatIsDecided(ShowsConstructor):
    """Lets a constructor give the decided module itself.

    A metaclass rather than `__new__`, since copying and unpickling call `__new__` without arguments, and
    since a subclass may have a constructor of its own.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        choice = super().__call__(*args, **kwargs)
        if (settled := choice.settled()) is not None:
            return settled
        fixed = _fixed.get()
        if fixed is None:
            return choice
        decisions, met = fixed
        if choice.label is None:
            raise ArchitectureError(
                f"{choice.description()} is built inside fixed_architecture, but has no label, and its path "
                "in the model is not known yet; give it a label, or use freeze(Net(), architecture)"
            )
        met.add(choice.label)
        return choice.decided(decisions[choice.label]) if choice.label in decisions else choice


class Risk(NamedTuple):
    """A decision whose result the model may not bear, though it bears others.

    Attributes:
        decision: The decision to try.
        what: What the choice does then: the words between "choice 'label'" and "which Net does not bear".
        mend: What to do about it: the words after "give it".
    """

    decision: Decision
    what: str
    mend: str


class Alternative(NamedTuple):
    """One of what a choice does now, as the module in its place says.

    Attributes:
        decision: The decision.
        weight: Its weight (), differentiable. Default: it is the only one.
        is_detached: Whether only its output is wanted: nothing inside it gets a gradient.
    """

    decision: Decision
    weight: Tensor | None = None
    is_detached: bool = False


class Choice(nn.Module, metaclass=_BecomesWhatIsDecided):
    """A decision in a model, not yet made: base of `LayerChoice`, `InputChoice`, and of kinds of your own.

    A kind of your own writes `domain`, `resolve` and, where options are modules, `branches`, and registers these as
    children. Spaces, samples, counts, freezing, records, plots and trainers know it by that alone. What has weights is
    made in the constructor, and `resolve` puts it together: what that made anew no search could train.

    Args:
        label: The decision's name. Choices of one label are one decision. Default: the path in the model.

    Raises:
        ChoiceError: The label is no text, or empty.

    Attributes:
        is_sequence: Whether what is in a branch runs one after another, of one input, and each branch is a beginning of
            the longest. Then a mixture runs each module once, and weights what comes out after each branch. Default:
            it runs what each decision makes of the choice.

    >>> class Rate(Choice):
    ...     def domain(self):
    ...         return Domain(str(self.label), ("low", "high"), values=(0.1, 0.5))
    ...
    ...     def resolve(self, decision):
    ...         return nn.Dropout(self.domain().normalized(decision))
    >>> freeze(nn.Sequential(Rate("rate")), {"rate": 0.5})[0]
    Dropout(p=0.5, inplace=False)
    """

    is_sequence = False
    _prior: list[float] | None = None

    def __init__(self, label: str | None) -> None:
        super().__init__()
        if label is not None and (not isinstance(label, str) or not label):
            raise ChoiceError(f"a label is a text that is not empty, not {label!r}")
        self._label = label
        self._path: str | None = None

    @property
    def label(self) -> str | None:
        """The name of this decision: as given, else its path in the model that was last made a space or supernet."""
        return self._path if self._label is None else self._label

    @property
    def key(self) -> str | None:
        """The same as `label`."""
        return self.label

    @property
    def prior(self) -> list[float] | None:
        """The prior as given."""
        return self._prior

    def domain(self) -> Domain:
        """Return what can be decided here, under this choice's label."""
        raise NotImplementedError(f"{type(self).__name__} does not define domain()")

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Return the children that run where each option is chosen; nothing where no option has modules of its own."""
        return ()

    def resolve(self, decision: Any) -> nn.Module:
        """Return the module that stands where `decision` has been made.

        Raises:
            ArchitectureError: It is no decision of this choice.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define resolve()")

    def mixed(self, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what a mixture of the options gives, where decisions are sets of them.

        Where a decision is one option, no method is needed: what each makes of the choice is mixed.

        Args:
            weights: Weight (K,) of each option.
            args, kwargs: Arguments of the module that stands here.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define mixed()")

    def decided(self, decision: Any) -> Any:
        """Return what a constructor gives where `decision` has been made before: the module, unless this is a value."""
        return self.resolve(decision)

    def settled(self) -> nn.Module | None:
        """Return what a constructor gives where its arguments leave nothing to decide; None where they do."""
        return None

    def risks(self) -> Sequence[Risk]:
        """Return decisions to try before a search, for what they give may be of another kind; none by default."""
        return ()

    def description(self) -> str:
        """Name this choice for a message."""
        kind = type(self).__name__
        return f"{kind} {self.label!r}" if self.label else f"the {kind}"

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: a model with choices does not run as it is."""
        raise UnresolvedChoiceError(
            f"{self.description()} has not been decided, so the model cannot run as it is; hand the model to a "
            "trainer, or make it a plain network by freeze(model, architecture)"
        )
