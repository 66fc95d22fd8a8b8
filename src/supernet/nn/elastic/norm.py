"""Normalisation of elastic width: over a batch, over features, and over groups of channels."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.errors import ChoiceError
from supernet.nn.elastic.arguments import of_each_dim, quotients
from supernet.nn.elastic.slicing import first, in_one_pass, narrowed, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes, Span
from supernet.nn.value import shown

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm", "RMSNorm"]

# N batch, C channels.


class _BatchNorm(Mutable, nn.modules.batchnorm._BatchNorm):
    """BatchNorm over any number of dimensions: one that is narrower has the first channels, and their statistics."""

    plain: type[nn.modules.batchnorm._BatchNorm]

    def __init__(
        self,
        num_features: Any,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        sizes = Sizes(num_features=num_features)
        if momentum is None and track_running_stats and not sizes.is_decided:
            raise ChoiceError(
                f"{type(self).__name__} with num_features={shown(num_features)} takes no momentum=None: there is one "
                "count of batches for all channels, and those that not every width has are in fewer; give a number, or "
                "recalibrate the frozen network, which averages"
            )
        form = (eps, momentum, affine, track_running_stats, device, dtype)
        self.plain.__init__(self, sizes.largest("num_features"), *form, **_shift(self.plain, bias))
        self.sizes = sizes

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x (N, num_features, ...), normalised; in training form, move the running statistics of these."""
        return self._normalized(x, sizes["num_features"])

    def run_part(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return the first channels of x, normalised."""
        return self.run(sizes, narrowed(x, 1, sizes["num_features"]))

    def mixed(self, x: Tensor) -> Tensor:
        """Return the mixture of all widths: one pass, for what a channel becomes does not depend on the width."""
        self._check_input_dim(x)
        widest = max(one.sizes["num_features"] for one in self.sizes.joint())
        normalized = self._normalized(narrowed(x, 1, widest), widest)

        def weighted(y: Tensor, detached: bool) -> Tensor:
            return self.sizes.entangled(y, None, Span("num_features", widest), detached=detached)

        return in_one_pass(weighted, normalized, self.sizes)

    def _normalized(self, x_NC: Tensor, num_features: int) -> Tensor:
        """Return what torch's norm of this width gives, with views of the parameters and running statistics."""
        self._check_input_dim(x_NC)
        average_factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain average
                average_factor = 1.0 / float(self.num_batches_tracked)
        is_used = not self.training or self.track_running_stats
        mean_C, var_C, weight_C, bias_C = self._sliced(num_features)
        return F.batch_norm(
            x_NC,
            mean_C if is_used else None,
            var_C if is_used else None,
            weight_C,
            bias_C,
            self.training or mean_C is None,
            average_factor,
            self.eps,
        )

    def _sliced(self, num_features: int) -> list[Tensor | None]:
        tensors = self.running_mean, self.running_var, self.weight, self.bias
        return [first(tensor, num_features) for tensor in tensors]

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return torch's norm of the width that is decided, with the running statistics that its channels have."""
        num_features = self.sizes.under(decisions)["num_features"]
        mean_C, var_C, weight_C, bias_C = self._sliced(num_features)
        with torch.device("meta"):
            form = (self.eps, self.momentum, self.affine, self.track_running_stats)
            layer = self.plain(num_features, *form, **_shift(self.plain, bias_C is not None or not self.affine))
        return with_weights(
            layer,
            self,
            weight=weight_C,
            bias=bias_C,
            running_mean=mean_C,
            running_var=var_C,
            num_batches_tracked=self.num_batches_tracked,
        )

    def extra_repr(self) -> str:
        """Show the width, and torch's other arguments."""
        _, others = nn.modules.batchnorm._BatchNorm.extra_repr(self).split(", ", 1)
        return f"{self.sizes.extra_repr()}, {others}"


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose width may be decided by choices: see `BatchNorm2d`."""

    plain = nn.BatchNorm1d


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose width may be decided by choices: a narrower one has the first channels.

    On a path the running statistics of its channels alone are used and moved; before an architecture is measured they
    are computed anew for it. A mixture normalises once, for what a channel becomes does not depend on the width.

    Args:
        num_features: Number of channels: a number, `ValueChoice` or expression.
        eps: What is added to the variance. Default: 1e-5.
        momentum: Weight of a batch in the running statistics; None for their plain average, only where no choice
            decides the width. Default: 0.1.
        affine: Whether channels are scaled and shifted by weights. Default: they are.
        track_running_stats: Whether there are running statistics. Default: there are.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.
        bias: Whether channels are shifted, where they are scaled; False needs torch 2.12. Default: they are.

    >>> freeze(nn.Sequential(supernet.nn.BatchNorm2d(ValueChoice([8, 16], label="width"))), {"width": 8})[0]
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ...)
    """

    plain = nn.BatchNorm2d


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` whose width may be decided by choices: see `BatchNorm2d`."""

    plain = nn.BatchNorm3d


class _OverFeatures(Mutable):
    """A norm over the last dimensions of its input: in a mixture each width is normalised on its own."""

    _names: tuple[str, ...]

    def _shape(self, sizes: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(sizes[name] for name in self._names)

    def run_part(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x, of whose last dimensions each has at least as many features, without those beyond, normalised."""
        for dim, size in enumerate(self._shape(sizes), -len(self._names)):
            x = narrowed(x, dim, size)
        return self.run(sizes, x)

    def extra_repr(self) -> str:
        """Show the shape, and torch's other arguments."""
        shown = f"{self.sizes.extra_repr()}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        return shown if "bias" not in self._parameters else f"{shown}, bias={self.bias is not None}"


class LayerNorm(_OverFeatures, nn.LayerNorm):
    """`torch.nn.LayerNorm` whose shape may be decided by choices: a narrower one has the first weights.

    Args:
        normalized_shape: Shape of what is normalised together: a number, `ValueChoice` or expression, or several.
        eps: What is added to the variance. Default: 1e-5.
        elementwise_affine: Whether features are scaled and shifted by weights. Default: they are.
        bias: Whether features are shifted, where they are scaled. Default: they are.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    >>> freeze(nn.Sequential(supernet.nn.LayerNorm(ValueChoice([8, 16], label="width"))), {"width": 8})[0]
    LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes, names = _of_shape(normalized_shape)
        nn.LayerNorm.__init__(self, [*map(sizes.largest, names)], eps, elementwise_affine, bias, device, dtype)
        self.sizes, self._names = sizes, names

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x (..., *normalized_shape), normalised over these dimensions."""
        shape = self._shape(sizes)
        return F.layer_norm(x, shape, *self._sliced(shape), self.eps)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.LayerNorm:
        """Return torch's norm of the shape that is decided."""
        shape = self._shape(self.sizes.under(decisions))
        weight, bias = self._sliced(shape)
        with torch.device("meta"):
            layer = nn.LayerNorm(shape, self.eps, self.elementwise_affine, bias is not None)
        return with_weights(layer, self, weight=weight, bias=bias)

    def _sliced(self, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        return first(self.weight, *shape), first(self.bias, *shape)


class RMSNorm(_OverFeatures, nn.RMSNorm):
    """`torch.nn.RMSNorm` whose shape may be decided by choices: a narrower one has the first weights.

    Args:
        normalized_shape: Shape of what is normalised together: a number, `ValueChoice` or expression, or several.
        eps: What is added to the mean square. Default: the dtype's own.
        elementwise_affine: Whether features are scaled by weights. Default: they are.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    >>> freeze(nn.Sequential(supernet.nn.RMSNorm(ValueChoice([8, 16], label="width"))), {"width": 8})[0]
    RMSNorm((8,), eps=None, elementwise_affine=True)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes, names = _of_shape(normalized_shape)
        nn.RMSNorm.__init__(self, [*map(sizes.largest, names)], eps, elementwise_affine, device, dtype)
        self.sizes, self._names = sizes, names

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x (..., *normalized_shape), normalised over these dimensions."""
        shape = self._shape(sizes)
        return F.rms_norm(x, shape, first(self.weight, *shape), self.eps)

    def frozen(self, decisions: Mapping[str, Any]) -> nn.RMSNorm:
        """Return torch's norm of the shape that is decided."""
        shape = self._shape(self.sizes.under(decisions))
        with torch.device("meta"):
            layer = nn.RMSNorm(shape, self.eps, self.elementwise_affine)
        return with_weights(layer, self, weight=first(self.weight, *shape))


class GroupNorm(Mutable, nn.GroupNorm):
    """`torch.nn.GroupNorm` whose width and number of groups may be decided by choices.

    A narrower one has the weights of the first channels. In a mixture each width is normalised on its own.

    Args:
        num_groups: Number of groups into which channels are split: a number, `ValueChoice` or expression.
        num_channels: Number of channels: a number, `ValueChoice` or expression.
        eps: What is added to the variance. Default: 1e-5.
        affine: Whether channels are scaled and shifted by weights. Default: they are.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.
        bias: Whether channels are shifted, where they are scaled; False needs torch 2.12. Default: they are.

    Raises:
        ChoiceError: For some values the number of groups does not divide that of channels.

    >>> width = ValueChoice([8, 16], label="width")
    >>> freeze(nn.Sequential(supernet.nn.GroupNorm(width // 4, width)), {"width": 8})[0]
    GroupNorm(2, 8, eps=1e-05, affine=True...)
    """

    def __init__(
        self,
        num_groups: Any,
        num_channels: Any,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        sizes = Sizes(num_groups=num_groups, num_channels=num_channels)
        largest, num_groups = sizes.largest("num_channels"), sizes.largest("num_groups")
        quotients(sizes, "num_channels", "num_groups")
        # Both at their largest need not go together, and the weights do not depend on the groups.
        nn.GroupNorm.__init__(self, 1, largest, eps, affine, device, dtype, **_shift(nn.GroupNorm, bias))
        self.num_groups, self.sizes = num_groups, sizes

    def run(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return x (N, num_channels, ...), normalised over the channels of each group."""
        return F.group_norm(x, sizes["num_groups"], *self._sliced(sizes["num_channels"]), self.eps)

    def run_part(self, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return the first channels of x, normalised."""
        return self.run(sizes, narrowed(x, 1, sizes["num_channels"]))

    def frozen(self, decisions: Mapping[str, Any]) -> nn.GroupNorm:
        """Return torch's norm of the width and the groups that are decided."""
        sizes = self.sizes.under(decisions)
        weight_C, bias_C = self._sliced(sizes["num_channels"])
        with torch.device("meta"):
            shift = _shift(nn.GroupNorm, bias_C is not None or not self.affine)
            layer = nn.GroupNorm(sizes["num_groups"], sizes["num_channels"], self.eps, self.affine, **shift)
        return with_weights(layer, self, weight=weight_C, bias=bias_C)

    def _sliced(self, num_channels: int) -> tuple[Tensor | None, Tensor | None]:
        return first(self.weight, num_channels), first(self.bias, num_channels)

    def extra_repr(self) -> str:
        """Show the groups and the width, and torch's other arguments."""
        return f"{self.sizes.extra_repr()}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"


def _shift(norm: type[nn.Module], bias: bool) -> dict[str, bool]:
    """Return torch's argument `bias` where channels are not shifted: before torch 2.12 it had none."""
    if bias:
        return {}
    if "bias" not in signature(norm).parameters:
        raise ChoiceError(f"{norm.__name__} takes bias=False from torch 2.12 on; this is torch {torch.__version__}")
    return {"bias": False}


def _of_shape(normalized_shape: Any) -> tuple[Sizes, tuple[str, ...]]:
    """Return the numbers of a shape, and their names."""
    shape = tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
    name = "normalized_shape"
    numbers, names = ({name: shape[0]}, (name,)) if len(shape) == 1 else of_each_dim(name, shape, len(shape))
    return Sizes(**numbers), names
