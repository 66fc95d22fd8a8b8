"""AutoFormer's search spaces of vision transformers (arXiv 2107.00651), and networks that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.checks import check_counts
from supernet.errors import ChoiceError
from supernet.hub.transformer import Candidates, architecture_of, blocks_of, candidates_of, initialize
from supernet.nn import Attention, Conv2d, LayerNorm, Linear, Mutable, Parameter, Sizes, ValueChoice
from supernet.nn.composed import Composed, as_graph_module
from supernet.nn.elastic.slicing import narrowed, with_weights

__all__ = ["AUTOFORMER_B", "AUTOFORMER_S", "AUTOFORMER_T", "DEIT_S", "AutoFormer"]

# N batch, L tokens, H heads, D features of a head, S patches along a side of the image.

# Those of the paper (supernet-{T,S,B}.yaml of microsoft/Cream), and one for small images.
SPACES: dict[str, Candidates] = {
    "micro": {"width": (32, 48, 64), "depth": (2, 3, 4), "heads": (1, 2), "mlp_ratio": (1.0, 2.0)},
    "tiny": {"width": (192, 216, 240), "depth": (12, 13, 14), "heads": (3, 4), "mlp_ratio": (3.0, 3.5, 4.0)},
    "small": {"width": (320, 384, 448), "depth": (12, 13, 14), "heads": (5, 6, 7), "mlp_ratio": (3.0, 3.5, 4.0)},
    "base": {"width": (528, 576, 624), "depth": (14, 15, 16), "heads": (8, 9, 10), "mlp_ratio": (3.0, 3.5, 4.0)},
}

# AutoFormer-{T,S,B}.yaml of microsoft/Cream.
AUTOFORMER_T = architecture_of(
    192, [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3], [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5]
)
AUTOFORMER_S = architecture_of(
    384, [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7], [3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0]
)
AUTOFORMER_B = architecture_of(
    576,
    [9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10],
    [3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5],
)
# ViT-S of arXiv 2012.12877: in "small", with relative_positions=False and average=False.
DEIT_S = architecture_of(384, [6] * 12, [4.0] * 12)


class AutoFormer(Composed):
    """AutoFormer's search space of vision transformers (arXiv 2107.00651).

    `width` and `depth` are decided, and for each block `heads_{i}`, of 64 features each, and `mlp_ratio_{i}`, how many
    times as wide its MLP is. The paper counts 1.7e16 networks in its three spaces together, with all decisions of the
    deepest: 9**17 in "base", of which those that are reached make 6,245,364,340,204,353 different networks.

    Departs from the paper: "tiny" has the ratio 3 too, for the network that was found in it has it.

    Args:
        space: "tiny", "small" or "base", as in the paper; "micro", for small images; or candidates of your own, by
            "width", "depth", "heads" and "mlp_ratio". Default: "tiny".
        num_classes: Number of classes. Default: 1000.
        in_channels: Number of channels of the images. Default: 3.
        image_size: Height and width of the images, which patches divide. Default: 224.
        patch_size: Height and width of a patch. Default: 16.
        head_dim: Number of features of a head. Default: 64.
        relative_positions: Whether keys and values depend on how far apart two patches are, too (arXiv 1803.02155).
            Default: as in the paper, they do.
        average: Whether the average of all patches is classified, and not the class token. Default: as in the paper's
            code, it is.

    Raises:
        ChoiceError: There is no such space, or patches do not divide the image.

    >>> model = supernet.hub.AutoFormer("micro", num_classes=10, in_channels=1, image_size=8, patch_size=2)
    >>> SearchSpace(model).size == 3 * (4**2 + 4**3 + 4**4)
    True
    """

    def __init__(
        self,
        space: str | Candidates = "tiny",
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        head_dim: int = 64,
        relative_positions: bool = True,
        average: bool = True,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch_size=patch_size)
        if image_size % patch_size:
            raise ChoiceError(f"patch_size={patch_size} does not divide image_size={image_size}; choose one that does")
        candidates, num_along_side = candidates_of(space, SPACES), image_size // patch_size
        width = ValueChoice(candidates["width"], label="width")
        self.average = average
        self.patches = Conv2d(in_channels, width, patch_size, patch_size)
        self.class_token, self.position = Parameter((1, 1, width)), Parameter((1, num_along_side**2 + 1, width))

        def make_attention(heads: Any) -> nn.Module:
            attention = Attention(width, heads, head_dim)
            if relative_positions:
                attention.heads = _RelativeHeads(heads, head_dim, num_along_side)
            return attention

        self.blocks = blocks_of(width, candidates, make_attention)
        self.norm, self.head = LayerNorm(width), Linear(width, num_classes)
        initialize(self, nn.init.trunc_normal_, self.class_token.weight, self.position.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images x (N, in_channels, image_size, image_size)."""
        x_NLC = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token().expand(x_NLC.shape[0], -1, -1), x_NLC], 1) + self.position()
        tokens = self.norm(self.blocks(tokens))
        logits: Tensor = self.head(tokens[:, 1:].mean(1) if self.average else tokens[:, 0])
        return logits


class _RelativeHeads(Mutable):
    """Attention in which keys and values have something added for each pair of tokens (arXiv 1803.02155).

    For two patches that is what a table has for how many rows they are apart, and one for columns; for a pair with the
    class token a number of its own.
    """

    def __init__(self, num_heads: Any, head_dim: int, num_along_side: int) -> None:
        super().__init__()
        self.sizes, self.head_dim = Sizes(num_heads=num_heads), head_dim
        for name in TABLES:  # of rows and of columns
            self.register_parameter(name, nn.Parameter(torch.empty(2, 2 * FARTHEST + 2, head_dim)))
            nn.init.trunc_normal_(getattr(self, name), std=0.02)
        place = torch.arange(num_along_side)
        apart_SS = (place[None] - place[:, None]).clamp(-FARTHEST, FARTHEST) + FARTHEST + 1  # 0 is for the class token
        self.register_buffer("apart", apart_SS)

    def run(self, sizes: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (N, L, H * D) of queries, keys and values (N, L, H * D)."""
        return _attended(q, k, v, sizes["num_heads"], self)

    def run_part(self, sizes: Mapping[str, Any], *qkv: Tensor) -> Tensor:
        """Return the same of the first heads."""
        return self.run(sizes, *(narrowed(x, -1, sizes["num_heads"] * self.head_dim) for x in qkv))

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return a module of torch that does it for the number of heads that is decided."""
        decided = _DecidedHeads(self.sizes.under(decisions)["num_heads"])
        for name in TABLES:
            decided.register_parameter(name, nn.Parameter(torch.empty(0, device="meta")))
        decided.register_buffer("apart", None)
        tensors = {name: getattr(self, name) for name in (*TABLES, "apart")}
        return as_graph_module(with_weights(decided, self, **tensors))


class _DecidedHeads(nn.Module):
    """What `_RelativeHeads` runs for a number of heads, to be traced."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _attended(q, k, v, self.num_heads, self)


TABLES, FARTHEST = ("of_keys", "of_values"), 14


def _attended(q: Tensor, k: Tensor, v: Tensor, num_heads: int, tables: Any) -> Tensor:
    q_NHLD, k_NHLD, v_NHLD = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    of_keys_LLD, of_values_LLD = (_of_pairs(getattr(tables, name), tables.apart) for name in TABLES)
    q_NHLD = q_NHLD * k_NHLD.shape[-1] ** -0.5
    scores_NHLL = q_NHLD @ k_NHLD.transpose(-2, -1) + torch.einsum("nhld,lmd->nhlm", q_NHLD, of_keys_LLD)
    weights_NHLL = scores_NHLL.softmax(-1)
    o_NHLD = weights_NHLL @ v_NHLD + torch.einsum("nhlm,lmd->nhld", weights_NHLL, of_values_LLD)
    return o_NHLD.transpose(1, 2).flatten(-2)


def _of_pairs(table: Tensor, apart_SS: Tensor) -> Tensor:
    """Return (L, L, D), for each pair of tokens, the class token first."""
    of_class_D = table[:, 0].sum(0)
    rows_SSD, columns_SSD = table[0][apart_SS], table[1][apart_SS]
    of_patches = rows_SSD[:, None, :, None] + columns_SSD[None, :, None, :] - of_class_D
    return F.pad(of_patches.flatten(2, 3).flatten(0, 1), (0, 0, 1, 0, 1, 0)) + of_class_D
