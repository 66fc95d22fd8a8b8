"""One-shot neural architecture search on PyTorch.

user's model with choices -> SearchSpace -> supernet -> trainer.fit() -> trainer.export() -> freeze -> plain network
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from supernet.execution import Supernet, replace_input_choice, replace_layer_choice, replace_value_choice, restore
from supernet.nn import Cell, InputChoice, LayerChoice, NasBench101Cell, NasBench201Cell, Repeat, ValueChoice
from supernet.runs import load_runs
from supernet.space import (
    Architecture,
    SearchSpace,
    fixed_architecture,
    load_architecture,
    require,
    save_architecture,
)
from supernet.trainers import (
    BaseOneShotTrainer,
    BilevelTrainer,
    DartsTrainer,
    Distillation,
    EnasTrainer,
    ProxylessTrainer,
    RandomTrainer,
    SampledTrainer,
    SinglePathTrainer,
    SupernetTrainer,
    WithLogits,
    accuracy,
    kl_divergence,
    load_weights,
    store_logits,
)
from supernet.training.evaluation import evaluate, freeze, recalibrate, train

if TYPE_CHECKING:
    from supernet.deploy import export_network, load_network
    from supernet.nn.existing import choose, elastic, sort_channels

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "BaseOneShotTrainer",
    "BilevelTrainer",
    "Cell",
    "DartsTrainer",
    "Distillation",
    "EnasTrainer",
    "InputChoice",
    "LayerChoice",
    "NasBench101Cell",
    "NasBench201Cell",
    "ProxylessTrainer",
    "RandomTrainer",
    "Repeat",
    "SampledTrainer",
    "SearchSpace",
    "SinglePathTrainer",
    "Supernet",
    "SupernetTrainer",
    "ValueChoice",
    "WithLogits",
    "accuracy",
    "choose",
    "elastic",
    "evaluate",
    "export_network",
    "fixed_architecture",
    "freeze",
    "kl_divergence",
    "load_architecture",
    "load_network",
    "load_runs",
    "load_weights",
    "recalibrate",
    "replace_input_choice",
    "replace_layer_choice",
    "replace_value_choice",
    "require",
    "restore",
    "save_architecture",
    "sort_channels",
    "store_logits",
    "train",
]


# What most users import in vain is imported when it is asked for.
_LATE = {
    **dict.fromkeys(("choose", "elastic", "sort_channels"), "supernet.nn.existing"),
    **dict.fromkeys(("export_network", "load_network"), "supernet.deploy"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for late."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
