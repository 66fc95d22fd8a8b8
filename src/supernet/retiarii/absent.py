"""Names of NNI that its one-shot trainers could not run either: they import, and say so when used."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

from supernet.errors import ChoiceError

__all__: list[str] = []


def absent(name: str, instead: str) -> type:
    """Return a class of that name that cannot be made: its error says what to use."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ChoiceError(f"{name} had no meaning for Retiarii's one-shot trainers, and has none here: {instead}")

    return type(name.rpartition(".")[2], (), {"__init__": refuse, "__doc__": instead})


class AbsentModule(ModuleType):
    """A module that only multi-trial search used, or that NNI itself dropped: each of its names is absent."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # it may have submodules, which are as absent

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(
            f"{self.__name__}.{name}",
            "it belongs to multi-trial search or to another version of NNI; train a supernet by a trainer of supernet, "
            "then freeze(model, trainer.export()) and supernet.train",
        )
