"""A choice between values, and arithmetic on it: what stands where a model's constructor takes a number."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from supernet.errors import ChoiceError, UnresolvedChoiceError
from supernet.nn.choice import Alternative, Choice
from supernet.nn.domain import Decision, Domain

__all__ = ["Expression", "Value", "ValueChoice"]

MAX_JOINT = 100_000  # values of several choices that are looked at together


class Value:
    """What a value decided later has in common, a `ValueChoice` or an `Expression` of some: it bears arithmetic.

    `+ - * / // % **`, `-x`, `abs`, `round`, `math.floor`, `math.ceil` and comparisons give an `Expression`, and so do
    the functions `ValueChoice.min`, `max`, `to_int`, `to_float`, `condition`, `lookup` and `compute`: Python's own
    `min`, `max`, `int` and `table[x]` must know a value.
    """

    def leaves(self) -> tuple[ValueChoice, ...]:
        """Return the choices that this depends on, one of each label, in the order in which they stand in it."""
        raise NotImplementedError

    def evaluate(self, decisions: Mapping[str, Any]) -> Any:
        """Return the value under an architecture, label -> decision.

        Raises:
            ChoiceError: The arithmetic cannot be done for these values; says which.
        """
        raise NotImplementedError

    def functions(self) -> list[Callable[..., Any]]:
        """Return what is computed in this; nothing where it is a choice."""
        return []

    def values(self) -> list[Any]:
        """Return all values that this may have, each once, in the order in which the choices' candidates give them.

        Raises:
            ChoiceError: It depends on so many choices that these cannot be listed, or is not defined for some values.
        """
        leaves = self.leaves()
        if math.prod(len(leaf.candidates) for leaf in leaves) > MAX_JOINT:
            raise ChoiceError(
                f"{self} depends on {len(leaves)} choices with more than {MAX_JOINT:,} joint values; give it fewer"
            )
        labels = [str(leaf.label) for leaf in leaves]
        found = [
            self.evaluate(dict(zip(labels, each, strict=True)))
            for each in product(*(leaf.candidates for leaf in leaves))
        ]
        return list({(type(value), value): value for value in found}.values())

    def expectation(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean, differentiable in the probabilities, where the choices are decided independently.

        Args:
            probabilities: Label -> probability (K,) of each candidate of that choice.
        """
        leaves = self.leaves()
        total: Tensor | None = None
        for each in product(*(enumerate(leaf.candidates) for leaf in leaves)):
            value = self.evaluate({str(leaf.label): v for leaf, (_, v) in zip(leaves, each, strict=True)})
            of_leaves = zip(leaves, each, strict=True)
            weight = math.prod((probabilities[str(leaf.label)][k] for leaf, (k, _) in of_leaves), start=1.0)
            total = weight * value if total is None else total + weight * value
        return torch.as_tensor(total)

    # --- arithmetic ------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Expression:
        return _binary("+", operator.add, self, other)

    def __radd__(self, other: Any) -> Expression:
        return _binary("+", operator.add, other, self)

    def __sub__(self, other: Any) -> Expression:
        return _binary("-", operator.sub, self, other)

    def __rsub__(self, other: Any) -> Expression:
        return _binary("-", operator.sub, other, self)

    def __mul__(self, other: Any) -> Expression:
        return _binary("*", operator.mul, self, other)

    def __rmul__(self, other: Any) -> Expression:
        return _binary("*", operator.mul, other, self)

    def __truediv__(self, other: Any) -> Expression:
        return _binary("/", operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return _binary("/", operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Expression:
        return _binary("//", operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Expression:
        return _binary("//", operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Expression:
        return _binary("%", operator.mod, self, other)

    def __rmod__(self, other: Any) -> Expression:
        return _binary("%", operator.mod, other, self)

    def __pow__(self, other: Any) -> Expression:
        return _binary("**", operator.pow, self, other)

    def __rpow__(self, other: Any) -> Expression:
        return _binary("**", operator.pow, other, self)

    def __lt__(self, other: Any) -> Expression:
        return _binary("<", operator.lt, self, other)

    def __le__(self, other: Any) -> Expression:
        return _binary("<=", operator.le, self, other)

    def __gt__(self, other: Any) -> Expression:
        return _binary(">", operator.gt, self, other)

    def __ge__(self, other: Any) -> Expression:
        return _binary(">=", operator.ge, self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return _Equality("==", operator.eq, self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return _Equality("!=", operator.ne, self, other)

    def __hash__(self) -> int:
        return id(self)

    def __neg__(self) -> Expression:
        return Expression("-{}", operator.neg, (self,))

    def __abs__(self) -> Expression:
        return Expression("abs({})", abs, (self,))

    def __round__(self, digits: int | None = None) -> Expression:
        operands = (self,) if digits is None else (self, digits)  # with 0 digits it is a float, without it an int
        return Expression(f"round({', '.join(['{}'] * len(operands))})", round, operands)

    def __floor__(self) -> Expression:
        return Expression("floor({})", math.floor, (self,))

    def __ceil__(self) -> Expression:
        return Expression("ceil({})", math.ceil, (self,))

    def __bool__(self) -> bool:
        raise UnresolvedChoiceError(
            f"whether {self} holds is not known before it is decided, so the model cannot branch on it; use "
            "ValueChoice.condition(test, if_true, if_false), ValueChoice.min or max, or a LayerChoice"
        )

    def __int__(self) -> int:
        raise self._not_a_number("ValueChoice.to_int(x)")

    def __float__(self) -> float:
        raise self._not_a_number("ValueChoice.to_float(x)")

    def __index__(self) -> int:
        raise self._not_a_number(
            "an elastic layer of supernet.nn, Repeat, or ValueChoice.lookup(table, x), which take it"
        )

    def _not_a_number(self, mend: str) -> UnresolvedChoiceError:
        return UnresolvedChoiceError(f"{self} has no value before it is decided; use {mend}")

    # --- functions that Python does not let a class overload -------------------------------------------------

    @staticmethod
    def compute(function: Callable[..., Any], *operands: Any) -> Any:
        """Return a function of several values, of which any may be decided later, also in lists, tuples and dicts.

        Where none is, it is the function's value itself, and so of all that follow: as inside `fixed_architecture`.

        >>> width = ValueChoice([16, 24], label="width")
        >>> ValueChoice.compute(lambda x: x - x % 5, width).values()
        [15, 20]
        """
        name = getattr(function, "__name__", type(function).__name__)
        return _value(f"{name}({', '.join(['{}'] * len(operands))})", function, operands)

    @staticmethod
    def min(*operands: Any) -> Any:
        """Return the least of several values."""
        return ValueChoice.compute(min, *_several(operands))

    @staticmethod
    def max(*operands: Any) -> Any:
        """Return the largest of several values."""
        return ValueChoice.compute(max, *_several(operands))

    @staticmethod
    def to_int(operand: Any) -> Any:
        """Return the whole part of a value, as `int` does."""
        return ValueChoice.compute(int, operand)

    @staticmethod
    def to_float(operand: Any) -> Any:
        """Return a value as `float` does."""
        return ValueChoice.compute(float, operand)

    @staticmethod
    def lookup(table: Sequence[Any] | Mapping[Any, Any], key: Any) -> Any:
        """Return what a table has for a key, or at a position, that may be decided later; what it has may be, too."""
        return _value("{}[{}]", operator.getitem, (table, key))

    @staticmethod
    def condition(test: Any, if_true: Any, if_false: Any) -> Any:
        """Return one value where a test holds, and another where it does not."""
        return _value("({1} if {0} else {2})", _either, (test, if_true, if_false))


class Expression(Value):
    """A value that follows from those of choices; made by arithmetic on a `ValueChoice`, see `Value`.

    Args:
        text: How it is written, with `{}` for each operand.
        function: A function of the operands' values.
        operands: Values, some of them decided later.

    >>> width = ValueChoice([16, 32], label="width")
    >>> hidden = 4 * width + 1
    >>> hidden, hidden.values(), hidden.evaluate({"width": 32})
    ((4 * width) + 1, [65, 129], 129)
    """

    def __init__(self, text: str, function: Callable[..., Any], operands: Sequence[Any]) -> None:
        self._text, self._function, self._operands = text, function, tuple(operands)
        self._are_open = tuple(next(_inside(operand), None) is not None for operand in operands)  # tables may be large

    def functions(self) -> list[Callable[..., Any]]:
        """Return what is computed in this, in the order in which it stands in the text."""
        inner = [function for value in _inside(self._operands) for function in value.functions()]
        return [self._function, *inner]

    def leaves(self) -> tuple[ValueChoice, ...]:
        """Return the choices that this depends on, one of each label, in the order in which they stand in it."""
        return leaves_of(self._operands)

    def evaluate(self, decisions: Mapping[str, Any]) -> Any:
        """Return the value under an architecture, label -> decision.

        Raises:
            ChoiceError: The arithmetic cannot be done for these values; says which.
        """
        open_or_not = zip(self._operands, self._are_open, strict=True)
        operands = [evaluated(operand, decisions) if is_open else operand for operand, is_open in open_or_not]
        try:
            return self._function(*operands)
        except Exception as error:  # a user's function may raise anything
            given = {str(leaf.label): decisions[str(leaf.label)] for leaf in self.leaves()}
            raise ChoiceError(f"{self} cannot be computed for {given}: {type(error).__name__}: {error}") from error

    def __call__(self) -> NoReturn:
        """Raise: only a choice itself is called, for a supernet puts what follows its plan in the place of that."""
        leaves = " and ".join(f"self.{leaf.label} = {leaf.label}" for leaf in self.leaves())
        raise UnresolvedChoiceError(
            f"{self} is an expression, and none is called; keep its choices in the module ({leaves}, say), and do the "
            "arithmetic in forward, with what each of them gives when it is called"
        )

    def __repr__(self) -> str:
        return self._text.format(*map(shown, self._operands))


class _Binary(Expression):
    """Two operands with a symbol between them: in brackets where it is itself an operand."""


class _Equality(_Binary):
    """An equality. In `if`, `in` and dicts it says whether both are the same object, as of any module."""

    def __init__(self, symbol: str, function: Callable[..., Any], left: Any, right: Any) -> None:
        super().__init__(f"{{}} {symbol} {{}}", function, (left, right))
        self._is_negated = symbol == "!="

    def __bool__(self) -> bool:
        left, right = self._operands
        if isinstance(right, Value | nn.Module | None):
            return (left is right) != self._is_negated
        return super().__bool__()


class ValueChoice(Value, Choice):
    """One of several values stands here; which one is decided by a search.

    It stands as an argument of an elastic layer (`supernet.nn.Linear` and its kin) or of `Repeat`, alone or in
    arithmetic (`4 * width`); or as an attribute of a module whose `forward` calls it: `self.rate()` is the value then.
    Where values are mixed, such a call gives the weighted sum of numbers, a tensor.

    Args:
        candidates: The values: numbers or texts, no two the same.
        label: The decision's name. Choices of one label are one decision.
        prior: The probability of each value when an architecture is sampled; they sum to 1. Default: all the same.

    Raises:
        ChoiceError: There is no candidate, one is neither number nor text, two are the same, or the prior is not a
            distribution over them.

    >>> width = ValueChoice([16, 32], label="width")
    >>> model = nn.Sequential(supernet.nn.Linear(4, width), nn.ReLU(), supernet.nn.Linear(width, 2))
    >>> freeze(model, {"width": 16})
    Sequential(
      (0): Linear(in_features=4, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=2, bias=True)
    )
    """

    def __init__(self, candidates: Iterable[Any], *, label: str, prior: Sequence[float] | None = None) -> None:
        super().__init__(label)
        if isinstance(candidates, str | Mapping) or not isinstance(candidates, Iterable):
            raise ChoiceError(f"ValueChoice {label!r} takes a list of values, not {candidates!r}")
        self.candidates = [_as_candidate(value, label) for value in candidates]
        if not self.candidates:
            raise ChoiceError(f"ValueChoice {label!r} needs at least one value, but its candidates are empty")
        if label is None:
            raise ChoiceError(f"a ValueChoice needs a label, for it stands at no path: give {self.candidates} one")
        self._prior = None if prior is None else [float(p) for p in prior]
        self._domain = self._made_domain()

    def _made_domain(self) -> Domain:
        values, prior = tuple(self.candidates), None if self._prior is None else tuple(self._prior)
        return Domain(str(self.label), tuple(map(str, values)), values=values, prior=prior, noun="value")

    def domain(self) -> Domain:
        """Return what can be decided here: one of the values."""
        return self._domain

    def resolve(self, decision: Decision) -> nn.Module:
        """Return a module that, called, gives the value that has been decided."""
        graph = fx.Graph()
        graph.output(self.decided(decision))
        return fx.GraphModule(nn.Module(), graph, class_name="Decided")

    def decided(self, decision: Decision) -> Any:
        """Return the value that has been decided."""
        return self._domain.normalized(decision)

    def leaves(self) -> tuple[ValueChoice, ...]:
        """Return this choice alone."""
        return (self,)

    def evaluate(self, decisions: Mapping[str, Any]) -> Any:
        """Return what an architecture decides here."""
        return decisions[str(self.label)]

    def alternatives(self) -> list[Alternative]:
        """Raise: before a supernet runs it, nothing is decided here."""
        self.forward()

    def extra_repr(self) -> str:
        """Show the values and the label."""
        return f"{self.candidates}, label={self.label!r}"

    def __repr__(self) -> str:
        return f"ValueChoice({self.extra_repr()})"


def leaves_of(values: Iterable[Any]) -> tuple[ValueChoice, ...]:
    """Return the choices that some values depend on, one of each label.

    Raises:
        ChoiceError: Two choices of one label have other candidates.
    """
    found: dict[str, ValueChoice] = {}
    for value in _inside(list(values)):
        for leaf in value.leaves():
            known = found.setdefault(str(leaf.label), leaf)
            if known is not leaf and known.domain() != leaf.domain():
                raise ChoiceError(
                    f"two ValueChoices have the label {leaf.label!r}, so they are one decision, but one chooses "
                    f"between {known.candidates} and the other between {leaf.candidates}; make them the same, or give "
                    "them labels of their own"
                )
    return tuple(found.values())


def evaluated(value: Any, decisions: Mapping[str, Any]) -> Any:
    """Return a value under an architecture, or a list, tuple or dict of such: of what no choice decides, itself."""
    if isinstance(value, Value):
        return value.evaluate(decisions)
    if next(_inside(value), None) is None:
        return value
    if isinstance(value, Mapping):
        return {key: evaluated(each, decisions) for key, each in value.items()}
    return type(value)([evaluated(each, decisions) for each in value])


def _inside(value: Any) -> Iterator[Value]:
    """Yield the values decided later that stand in a list, tuple or dict, or this itself.

    Raises:
        ChoiceError: One is the key of a dict, under which nothing will be found, or stands in another container.
    """
    if isinstance(value, Value):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            for inner in _inside(key):
                raise ChoiceError(
                    f"{inner} is a key of a table, which must be known; let it be the key that is looked up"
                )
        yield from (inner for each in value.values() for inner in _inside(each))
    elif type(value) in (list, tuple):
        yield from (inner for each in value for inner in _inside(each))
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for inner in (inner for each in value for inner in _inside(each)):
            raise ChoiceError(
                f"{inner} stands in a {type(value).__name__}, in which no choice is looked for; give a list"
            )


def values_of(value: Any) -> list[Any]:
    """Return all values that this may have: of one that no choice decides, itself."""
    return value.values() if isinstance(value, Value) else [value]


def _binary(symbol: str, function: Callable[..., Any], left: Any, right: Any) -> Expression:
    return _Binary(f"{{}} {symbol} {{}}", function, (left, right))


def _value(text: str, function: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """Return an expression; its value, where nothing in it is decided later."""
    expression = Expression(text, function, operands)
    return expression if next(_inside(expression._operands), None) is not None else expression.evaluate({})


def _either(test: Any, if_true: Any, if_false: Any) -> Any:
    return if_true if test else if_false


def _several(operands: Sequence[Any]) -> Sequence[Any]:
    """Return the operands, which may have come as one list."""
    return operands[0] if len(operands) == 1 and isinstance(operands[0], Sequence) else operands


def shown(operand: Any) -> str:
    """Return an operand as it stands in a text: a choice by its label, a text in quotes."""
    if isinstance(operand, ValueChoice):
        return str(operand.label)
    if isinstance(operand, Mapping):
        return f"{{{', '.join(f'{key!r}: {shown(value)}' for key, value in operand.items())}}}"
    if type(operand) in (list, tuple):
        inside = ", ".join(map(shown, operand))
        return f"[{inside}]" if isinstance(operand, list) else f"({inside}{',' * (len(operand) == 1)})"
    text = repr(operand) if isinstance(operand, str) else str(operand)
    return f"({text})" if isinstance(operand, _Binary) else text


def _as_candidate(value: Any, label: str) -> Any:
    """Return a candidate as JSON has it, or raise `ChoiceError`."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        value = value.item()
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ChoiceError(
            f"ValueChoice {label!r} chooses between numbers or texts, not {value!r}; give names to values of other "
            "kinds, and look them up: ValueChoice.lookup(table, choice)"
        )
    return value
