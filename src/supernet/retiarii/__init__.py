"""Retiarii's names on our own classes: what scripts written for `nni.retiarii.oneshot` rely on.

Nothing is registered under the name `nni` until `install` is called, or a script is run by
`supernet-retiarii script.py`.
"""

from supernet.retiarii.absent import AbsentModule, names_absent_from, without_meaning
from supernet.retiarii.fixed import apply_fixed_architecture, fixed_arch
from supernet.retiarii.install import install
from supernet.retiarii.serializer import basic_unit, model_wrapper, serialize, serialize_cls

_MULTI_TRIAL = "it belongs to multi-trial search; train a supernet by one of supernet's trainers"
Mutator = without_meaning("Mutator", _MULTI_TRIAL)
Sampler = without_meaning("Sampler", _MULTI_TRIAL)
codegen, converter, evaluator, execution, graph, strategy = (
    AbsentModule(f"nni.retiarii.{name}")
    for name in ("codegen", "converter", "evaluator", "execution", "graph", "strategy")
)

__getattr__ = names_absent_from(__name__, "nni.retiarii")

__all__ = [
    "apply_fixed_architecture",
    "basic_unit",
    "fixed_arch",
    "install",
    "model_wrapper",
    "serialize",
    "serialize_cls",
]
