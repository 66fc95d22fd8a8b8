"""Costs that a table says for each option: of a file, or fitted to what whole networks were measured to cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.cost.cost import CanonicalCost
from supernet.cost.joint import Joint, Means, checked_probabilities
from supernet.cost.table import Table, checked_table, cost_of
from supernet.cost.terms import Term
from supernet.errors import CostError, FileFormatError
from supernet.space import SearchSpace
from supernet.space.files import check_fingerprint, read_json, write_json

__all__ = ["TableCost", "fit_table"]

# N networks, F columns: one for each option, and one for what every network costs

FORMAT, VERSION = "supernet/cost table", 1
NUM_CHECKED = 500  # random architectures whose cost must follow from those that a table is fitted to


class TableCost(CanonicalCost):
    """A cost that is the sum of what a table says of the options that are decided for and reached.

    Args:
        space: The space of the architectures.
        table: Label -> (candidate's name, or value -> its cost), for each option of each choice that it names. Choices
            of sets have none.
        constant: What every network costs beside. Default: 0.
        name: What limits and tables call the cost. Default: "cost".
        unit: Its unit. Default: none.

    Raises:
        CostError: The table names other choices or options than the space has, or what it says is no finite number.

    >>> space = SearchSpace(nn.Sequential(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}, label="op")))
    >>> TableCost(space, {"op": {"conv": 2.5, "skip": 0.5}}, unit="ms").of({"op": "conv"})
    2.5
    """

    def __init__(
        self, space: SearchSpace, table: Table, *, constant: float = 0.0, name: str = "cost", unit: str = ""
    ) -> None:
        self.space, self.table, self.constant = space, checked_table(table, space, CostError), constant
        self.name, self.unit = name, unit
        self._by_outcome = [
            (label, dict(zip(space[label].outcomes, map(costs.__getitem__, space[label].options), strict=True)))
            for label, costs in self.table.items()
        ]
        self._means: Means | None = None

    def of_canonical(self, architecture: Mapping[str, Any]) -> float:
        """Return the sum of the table's entries."""
        return self.constant + sum([of[architecture[label]] for label, of in self._by_outcome if label in architecture])

    def terms(self) -> list[Term]:
        """Return what the cost is the sum of: see `Cost.terms`."""
        of_labels = [
            Term((label,), {(None,): 0.0, **{(d,): c for d, c in of.items()}}) for label, of in self._by_outcome
        ]
        return [Term((), {(): self.constant}), *of_labels]

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cost where each choice is decided on its own: see `Cost.expected`.

        Raises:
            CostError: A label lacks probabilities, or a choice stands inside too many others.
        """
        given = checked_probabilities(self.space, probabilities)
        if self._means is None:
            generator = torch.Generator().manual_seed(0)
            joints = []
            for label, costs in self.table.items():
                scope = (*self.space.around(label), label)
                cost = partial(cost_of, {label: costs}, self.space)
                joints.append(Joint(self.space, scope, cost, f"the {self.name} of {label!r}", generator))
            self._means = Means(self.space, joints)
        return self._means.sum(given) + self.constant

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a JSON file, with the fingerprint of its space.

        Args:
            path: Path of the file.
        """
        content = {"name": self.name, "unit": self.unit, "constant": self.constant, "table": self.table}
        write_json(Path(path), FORMAT, VERSION, {"space": self.space.fingerprint, **content})

    @classmethod
    def load(cls, path: str | os.PathLike[str], space: SearchSpace) -> TableCost:
        """Read a table from a file that `save` wrote.

        A file that you write needs no digest: `{"format": "supernet/cost table", "version": 1, "space":
        <space.fingerprint>, "name": ..., "unit": ..., "constant": ..., "table": {...}}`.

        Args:
            path: Path of the file.
            space: The space that it must be of.

        Raises:
            FileFormatError: The file is none of a table, is broken, or is of another space.
            FileNotFoundError: There is no such file.
        """
        content = read_json(Path(path), FORMAT, VERSION, "is no file of a table of costs")
        mend = "measure or fit them for the space of this model"
        check_fingerprint(content.get("space"), space, f"{path} holds costs", mend)
        try:
            name, unit, constant = (content[key] for key in ("name", "unit", "constant"))
            if not (isinstance(name, str) and isinstance(unit, str) and isinstance(content["table"], dict)):
                raise CostError("name and unit are texts, and the table is label -> costs")
            return cls(space, content["table"], constant=float(constant), name=name, unit=unit)
        except Exception as error:  # whatever wrong content leads to
            raise FileFormatError(f"{path} holds no table of costs of this space: {error!r:.300}") from error


def fit_table(
    space: SearchSpace,
    architectures: Sequence[Mapping[str, Any]],
    costs: Sequence[float] | Tensor,
    *,
    name: str = "latency_ms",
    unit: str = "ms",
) -> TableCost:
    """Return the table whose sums are nearest to what networks were measured to cost, by least squares.

    Where costs are sums over the options, as of an accelerator that runs one layer after another, it is exact for
    every architecture of the space. How far it goes elsewhere, networks tell that were left out.

    Args:
        space: The space of the architectures. Choices of sets are left out: the table has no entry for them.
        architectures: The architectures that were measured.
        costs: What each costs.
        name: What limits and tables call the cost. Default: "latency_ms".
        unit: Its unit. Default: "ms".

    Raises:
        ArchitectureError: One is none of the space.
        CostError: There is not one finite number for each; or an option occurs in none of the architectures, or only
            together with others, so that its cost does not follow from theirs.

    >>> space = SearchSpace(nn.ModuleList([ValueChoice([1, 2, 4], label=label) for label in "ab"]))
    >>> measured = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 4, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 4}]
    >>> cost = fit_table(space, measured, [3.0, 4.0, 7.5, 5.5, 9.5])
    >>> round(cost.of({"a": 4, "b": 4}), 6)
    11.5
    """
    cost_N = torch.as_tensor(costs, dtype=torch.float64).flatten()
    if len(cost_N) != len(architectures) or not len(cost_N) or not cost_N.isfinite().all():
        raise CostError(
            f"there are {len(architectures)} architectures and {len(cost_N)} costs, {int(cost_N.isfinite().sum())} of "
            "them finite; give one finite number for each architecture, and at least one"
        )
    columns = {
        (label, option): column
        for column, (label, option) in enumerate(
            (label, option) for label, domain in space.items() if not domain.is_set for option in domain.options
        )
    }
    shares_NF = _reached(space, [space.canonical(one) for one in architectures], columns)
    _, scale_F, directions_FF = torch.linalg.svd(shares_NF, full_matrices=False)
    known_RF = directions_FF[scale_F > scale_F[0] * 1e-9]
    _check_determined(space, known_RF, columns)
    # By directions that the architectures span; there is no saying of others, and nothing needs them.
    coordinates_NR = shares_NF @ known_RF.T
    *entries, constant = (torch.linalg.lstsq(coordinates_NR, cost_N[:, None]).solution[:, 0] @ known_RF).tolist()
    table: dict[str, dict[str, float]] = {}
    for (label, option), entry in zip(columns, entries, strict=True):
        table.setdefault(label, {})[option] = entry
    return TableCost(space, table, constant=constant, name=name, unit=unit)


def _reached(
    space: SearchSpace, architectures: Sequence[Mapping[str, Any]], columns: Mapping[tuple[str, str], int]
) -> Tensor:
    """Return (N, F) with 1 where an architecture reaches an option, and in the last column."""
    reached_NF = torch.zeros(len(architectures), len(columns) + 1, dtype=torch.float64)
    reached_NF[:, -1] = 1
    for row, architecture in enumerate(architectures):
        for label, decision in architecture.items():
            domain = space[label]
            if not domain.is_set:
                (position,) = domain.positions(decision)
                reached_NF[row, columns[label, domain.options[position]]] = 1
    return reached_NF


def _check_determined(space: SearchSpace, known_RF: Tensor, columns: Mapping[tuple[str, str], int]) -> None:
    """Raise `CostError` unless the costs of random architectures follow from those that were measured."""
    generator = torch.Generator().manual_seed(0)
    other_NF = _reached(space, [space.sample(generator) for _ in range(NUM_CHECKED)], columns)
    unknown_F = (other_NF - other_NF @ known_RF.T @ known_RF).abs().amax(0)
    if unknown_F.max() > 1e-6:
        label, option = list(columns)[int(unknown_F[:-1].argmax())]
        raise CostError(
            f"what {option!r} of choice {label!r} costs does not follow from the {len(known_RF)} independent "
            "architectures that were given; measure more, drawn at random, among them some with that option"
        )
