"""What the transformers of the hub have in common: spaces of widths, depths, heads and MLPs, and the block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from supernet.errors import ChoiceError
from supernet.nn import LayerNorm, Linear, Repeat, ValueChoice
from supernet.nn.composed import Composed
from supernet.space import Architecture

__all__ = ["TransformerBlock", "architecture_of", "blocks_of"]

Candidates: TypeAlias = Mapping[str, Sequence[Any]]
NAMES = ("width", "depth", "heads", "mlp_ratio")


def architecture_of(width: int, heads: Sequence[int], mlp_ratios: Sequence[float]) -> Architecture:
    """Return the architecture of a transformer of this width, with the heads and the MLP of each of its blocks."""
    architecture: Architecture = {"width": width, "depth": len(heads)}
    for position, (of_block, ratio) in enumerate(zip(heads, mlp_ratios, strict=True)):
        architecture |= {f"heads_{position}": of_block, f"mlp_ratio_{position}": ratio}
    return architecture


def candidates_of(space: str | Candidates, known: Mapping[str, Candidates]) -> Candidates:
    """Return the candidates of a space by name, or those given.

    Raises:
        ChoiceError: There is no space of that name, or candidates of something are missing, or of nothing known.
    """
    if isinstance(space, str):
        if space not in known:
            raise ChoiceError(
                f"there is no space {space!r}; there are: {', '.join(known)}; or give candidates yourself"
            )
        return known[space]
    if set(space) != set(NAMES):
        raise ChoiceError(f"a space has candidates for {', '.join(NAMES)}, not for {', '.join(space) or 'nothing'}")
    return space


def blocks_of(width: Any, candidates: Candidates, make_attention: Callable[[Any], nn.Module]) -> nn.Module:
    """Return `depth` blocks, of each of which `heads_{i}` and `mlp_ratio_{i}` are decided.

    Args:
        width: Number of features.
        candidates: What may be decided, by name.
        make_attention: A function of the number of heads.
    """

    def make(position: int) -> TransformerBlock:
        heads = ValueChoice(candidates["heads"], label=f"heads_{position}")
        ratio = ValueChoice(candidates["mlp_ratio"], label=f"mlp_ratio_{position}")
        return TransformerBlock(width, make_attention(heads), ValueChoice.to_int(ratio * width))

    return Repeat(make, ValueChoice(candidates["depth"], label="depth"))


class TransformerBlock(Composed):
    """Attention, then an MLP, each of what a norm gives, and added to its input.

    Args:
        width: Number of features.
        attention: A module of (N, L, width).
        hidden: Number of features inside the MLP.
    """

    def __init__(self, width: Any, attention: nn.Module, hidden: Any) -> None:
        super().__init__()
        self.norm1, self.attention = LayerNorm(width), attention
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, width) of x (N, L, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def initialize(model: nn.Module, fill: Callable[..., Any], *others: Tensor) -> None:
    """Fill weights of linear layers, tables and others with numbers of a deviation of 0.02, and biases with zeros."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            fill(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for weight in others:
        fill(weight, std=0.02)
