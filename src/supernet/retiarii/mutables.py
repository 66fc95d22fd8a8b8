"""`nni.nas.pytorch.mutables`: older signatures of the choices, which some of NNI's examples still used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from supernet.errors import ChoiceError
from supernet.retiarii import choices
from supernet.retiarii.absent import names_absent_from

__all__ = ["InputChoice", "LayerChoice", "MutableScope"]


class LayerChoice(choices.LayerChoice):
    """A LayerChoice whose label is called `key`."""

    def __init__(
        self,
        op_candidates: Iterable[nn.Module] | Mapping[str, nn.Module],
        reduction: str = "sum",
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        ignored: dict[str, Any] = {"return_mask": True} if return_mask else {}
        super().__init__(op_candidates, label=key, **ignored)


class InputChoice(choices.InputChoice):
    """An InputChoice whose label is called `key`; `choose_from` names its inputs, which come in that order."""

    NO_KEY = ""

    def __init__(
        self,
        n_candidates: int | None = None,
        choose_from: Sequence[str] | None = None,
        n_chosen: int | None = None,
        reduction: str = "sum",
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        count = n_candidates if choose_from is None else len(choose_from)
        if count is None or n_candidates not in (None, count):
            raise ChoiceError(
                "an InputChoice needs n_candidates or choose_from, and both of one length, not "
                f"{n_candidates} and {choose_from}"
            )
        self._choose_from = None if choose_from is None else list(choose_from)
        ignored: dict[str, Any] = {"return_mask": True} if return_mask else {}
        super().__init__(count, n_chosen, reduction, label=key, **ignored)


class MutableScope(nn.Module):
    """A base class that only names a part of the model."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


__getattr__ = names_absent_from(__name__, "nni.nas.pytorch.mutables")
