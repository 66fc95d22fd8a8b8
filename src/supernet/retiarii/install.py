"""Registering our modules under the names that NNI had."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from supernet.errors import NameTakenError
from supernet.retiarii import fixed, serializer, trial
from supernet.retiarii.absent import AbsentModule

__all__ = ["install"]

OURS = "supernet.retiarii"

# NNI's module -> ours. Those of 2.3 (trainer), of v1 (nas.pytorch) and of 2.8 to 2.10 (nas) held the same objects under
# other paths.
MODULES = {
    "nni.retiarii": OURS,
    "nni.retiarii.experiment": f"{OURS}.experiment",
    "nni.retiarii.experiment.pytorch": f"{OURS}.experiment.pytorch",
    "nni.retiarii.fixed": f"{OURS}.fixed",
    "nni.retiarii.nn": f"{OURS}.nn",
    "nni.retiarii.nn.pytorch": f"{OURS}.nn.pytorch",
    "nni.retiarii.oneshot": f"{OURS}.oneshot",
    "nni.retiarii.oneshot.interface": f"{OURS}.oneshot.interface",
    "nni.retiarii.oneshot.pytorch": f"{OURS}.oneshot.pytorch",
    "nni.retiarii.oneshot.pytorch.darts": f"{OURS}.oneshot.pytorch.darts",
    "nni.retiarii.oneshot.pytorch.enas": f"{OURS}.oneshot.pytorch.enas",
    "nni.retiarii.oneshot.pytorch.proxyless": f"{OURS}.oneshot.pytorch.proxyless",
    "nni.retiarii.oneshot.pytorch.random": f"{OURS}.oneshot.pytorch.random",
    "nni.retiarii.oneshot.pytorch.utils": f"{OURS}.oneshot.pytorch.utils",
    "nni.retiarii.serializer": f"{OURS}.serializer",
    "nni.retiarii.trainer": f"{OURS}.oneshot",
    "nni.retiarii.trainer.pytorch": f"{OURS}.oneshot.pytorch",
    "nni.retiarii.trainer.pytorch.darts": f"{OURS}.oneshot.pytorch.darts",
    "nni.retiarii.trainer.pytorch.enas": f"{OURS}.oneshot.pytorch.enas",
    "nni.retiarii.trainer.pytorch.proxyless": f"{OURS}.oneshot.pytorch.proxyless",
    "nni.retiarii.trainer.pytorch.random": f"{OURS}.oneshot.pytorch.random",
    "nni.retiarii.trainer.pytorch.utils": f"{OURS}.oneshot.pytorch.utils",
    "nni.nas.experiment": f"{OURS}.experiment.pytorch",
    "nni.nas.experiment.pytorch": f"{OURS}.experiment.pytorch",
    "nni.nas.fixed": f"{OURS}.fixed",
    "nni.nas.nn": f"{OURS}.nn",
    "nni.nas.nn.pytorch": f"{OURS}.nn.pytorch",
    "nni.nas.nn.pytorch.choice": f"{OURS}.nn.pytorch",
    "nni.nas.nn.pytorch.layers": f"{OURS}.nn.pytorch",
    "nni.nas.oneshot": f"{OURS}.oneshot",
    "nni.nas.oneshot.pytorch": f"{OURS}.oneshot.pytorch",
    "nni.nas.utils": f"{OURS}.serializer",
    "nni.nas.utils.serializer": f"{OURS}.serializer",
    "nni.nas.pytorch.fixed": f"{OURS}.fixed",
    "nni.nas.pytorch.mutables": f"{OURS}.mutables",
    "nni.nas.pytorch.utils": f"{OURS}.oneshot.pytorch.utils",
}


class _AbsentModules(MetaPathFinder, Loader):
    """Finds every module of NNI that one-shot trainers had no part in: it imports, and says so when used."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find anything below `nni`; what is ours stands in `sys.modules` and is never looked for."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith("nni.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module all of whose names are absent."""
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


def install(*, over_real_nni: bool = False) -> None:
    """Register Retiarii's modules under the name `nni`, in this process; a second call changes nothing.

    Args:
        over_real_nni: Whether these names win where a real nni is installed. Default: an error is raised.

    Raises:
        NameTakenError: A real nni is installed, or has been imported.
    """
    if isinstance(sys.modules.get("nni"), AbsentModule):
        return
    real = sys.modules.get("nni") or importlib.util.find_spec("nni")
    if real is not None and not over_real_nni:
        place = getattr(real, "origin", None) or getattr(real, "__file__", None)
        raise NameTakenError(
            f"a real nni is installed ({place}), and without more it wins: `import nni` gives that one. Uninstall it, "
            "or let the names of supernet.retiarii win in this process, by install(over_real_nni=True) before anything "
            "imports nni"
        )
    for name in [name for name in sys.modules if name == "nni" or name.startswith("nni.")]:
        del sys.modules[name]
    modules: dict[str, ModuleType] = {name: AbsentModule(name) for name in ("nni", "nni.nas", "nni.nas.pytorch")}
    for name, source in (("nni", trial), ("nni.nas", serializer), ("nni.nas", fixed)):
        vars(modules[name]).update({public: getattr(source, public) for public in source.__all__})
    modules |= {name: importlib.import_module(ours) for name, ours in MODULES.items()}
    for name, module in modules.items():
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent and child not in vars(modules[parent]):
            setattr(modules[parent], child, module)
    sys.meta_path.insert(0, _AbsentModules())
