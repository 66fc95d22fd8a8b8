"""Lists of blocks of which the first run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from supernet.errors import MixtureError
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes

__all__: list[str] = []


class _Blocks(Mutable):
    """A list of blocks whose number a choice decides, with the blocks at the paths that they had."""

    plain_class: type[nn.Module]

    def _all(self) -> list[nn.Module]:
        return [block for name, block in self._modules.items() if name != "sizes" and block is not None]

    def _now(self) -> list[nn.Module]:
        sizes = self.sizes.now()
        if sizes is None:
            label = self.choices()[0].label
            raise MixtureError(
                f"choice {label!r} is mixed, but the blocks whose number it decides are run by the model's own code, "
                "one after another, and have no weighted sum; use a trainer that samples, or an nn.Sequential of them"
            )
        return self._all()[: sizes["depth"]]

    def __len__(self) -> int:
        return len(self._now())

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._now())

    def __getitem__(self, index: Any) -> Any:
        return self._now()[index]

    def __dir__(self) -> list[str]:
        return list(object.__dir__(self))

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a list of the class that it was, with the first blocks."""
        depth = self.sizes.under(decisions)["depth"]
        plain = self.plain_class.__new__(self.plain_class)
        plain.__dict__.update({key: value for key, value in self.__dict__.items() if key != "_supernet_plain"})
        kept = [(name, block) for name, block in self._modules.items() if name != "sizes"][:depth]
        plain.__dict__["_modules"] = dict(kept)
        return plain

    def extra_repr(self) -> str:
        """Show the depth."""
        return self.sizes.extra_repr()

    __repr__ = nn.Module.__repr__


class ElasticSequential(_Blocks, nn.Sequential):
    """`nn.Sequential` of which the first blocks run. A mixture is the sum of what all depths give, in one pass."""

    plain_class = nn.Sequential

    def run(self, sizes: Mapping[str, Any], x: Any) -> Any:
        """Return what the first blocks give."""
        for block in self._all()[: sizes["depth"]]:
            x = block(x)
        return x

    def mixed(self, x: Any) -> Any:
        """Return the sum of what all depths give: each is what the one before gives, and further blocks."""
        joint = sorted(self.sizes.joint(), key=lambda one: one.sizes["depth"])
        blocks, done = self._all(), 0
        total: Tensor | None = None
        for one in joint:
            for block in blocks[done : one.sizes["depth"]]:
                x = block(x)
            done = one.sizes["depth"]
            output = x.detach() if one.is_detached else x
            output = output if one.weight is None else one.weight * output
            total = output if total is None else total + output
        return total


class ElasticModuleList(_Blocks, nn.ModuleList):
    """`nn.ModuleList` that the model's code finds as long as has been decided."""

    plain_class = nn.ModuleList

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, as torch's does."""
        return nn.ModuleList.forward(self, *args, **kwargs)


def make_depth_elastic(blocks: nn.Module, depth: Any) -> None:
    """Let the number of blocks of a list follow a value, in place."""
    blocks.__class__ = ElasticSequential if isinstance(blocks, nn.Sequential) else ElasticModuleList
    blocks._modules["sizes"] = Sizes(depth=depth)
