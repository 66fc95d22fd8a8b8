"""The layers whose widths are known by their class: which dimension of which tensor is which width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from supernet.nn.existing.undo import plain_class

__all__: list[str] = []


class LayerKind(NamedTuple):
    """What a class of layers says of its widths.

    Attributes:
        dim: The dimension of input and output that has the channels.
        tensors: Name of a parameter or buffer -> dimension -> "in", "out", or "features" where both are one.
        attributes: Name of an attribute -> the same, or "groups".
    """

    dim: int
    tensors: Mapping[str, Mapping[int, str]]
    attributes: Mapping[str, str]

    @property
    def is_source(self) -> bool:
        """Whether a layer gives its output a width of its own."""
        return any("out" in dims.values() for dims in self.tensors.values())


def _norm(dim: int, **attributes: str) -> LayerKind:
    names = ("weight", "bias", "running_mean", "running_var")
    return LayerKind(dim, {name: {0: "features"} for name in names}, attributes)


_LINEAR = LayerKind(
    -1, {"weight": {0: "out", 1: "in"}, "bias": {0: "out"}}, {"in_features": "in", "out_features": "out"}
)
_CHANNELS = {"in_channels": "in", "out_channels": "out", "groups": "groups"}
_CONV = {d: LayerKind(-1 - d, {"weight": {0: "out", 1: "in"}, "bias": {0: "out"}}, _CHANNELS) for d in (1, 2, 3)}
_TRANSPOSED = {d: LayerKind(-1 - d, {"weight": {0: "in", 1: "out"}, "bias": {0: "out"}}, _CHANNELS) for d in (1, 2, 3)}
# A linear layer of the package transformers, which need not be there.
_CONV1D = LayerKind(-1, {"weight": {0: "in", 1: "out"}, "bias": {0: "out"}}, {"nx": "in", "nf": "out"})

_BY_CLASS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: _LINEAR,
    nn.Conv1d: _CONV[1],
    nn.Conv2d: _CONV[2],
    nn.Conv3d: _CONV[3],
    nn.ConvTranspose1d: _TRANSPOSED[1],
    nn.ConvTranspose2d: _TRANSPOSED[2],
    nn.ConvTranspose3d: _TRANSPOSED[3],
    nn.Embedding: LayerKind(-1, {"weight": {1: "out"}}, {"embedding_dim": "out"}),
    nn.BatchNorm1d: _norm(1, num_features="features"),
    nn.BatchNorm2d: _norm(1, num_features="features"),
    nn.BatchNorm3d: _norm(1, num_features="features"),
    nn.SyncBatchNorm: _norm(1, num_features="features"),
    nn.InstanceNorm1d: _norm(1, num_features="features"),
    nn.InstanceNorm2d: _norm(1, num_features="features"),
    nn.InstanceNorm3d: _norm(1, num_features="features"),
    nn.GroupNorm: _norm(1, num_channels="features", num_groups="groups"),
    nn.LayerNorm: _norm(-1, normalized_shape="features"),
    nn.RMSNorm: _norm(-1, normalized_shape="features"),
}


# Modules of torch whose weights are packed, or read past the module's attributes: their inputs keep their width.
OPAQUE = nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag


def kind_of(cls: type[nn.Module]) -> LayerKind | None:
    """Return what is known of a class of layers: one of torch's, or a subclass that computes the same."""
    for known, kind in _BY_CLASS.items():
        if issubclass(cls, known) and cls.forward is known.forward:
            return kind
    if cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers."):
        return _CONV1D
    return None


def kind_of_layer(module: nn.Module) -> LayerKind | None:
    """Return what is known of a layer, elastic or not; None where its form is one that is not followed."""
    kind = kind_of(plain_class(module))
    if kind is None:
        return None
    if len(getattr(module, "normalized_shape", (0,))) != 1:  # a norm over several dimensions has no channels
        return None
    if not module._parameters.keys() >= {"weight"}:  # it is computed from others, as by torch's parametrizations
        return None
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return kind
    # Of a grouped convolution's weight the second dimension is within a group, and stays.
    tensors = {name: {dim: role for dim, role in dims.items() if dim == 0} for name, dims in kind.tensors.items()}
    return kind._replace(tensors=tensors)
