"""Convolutions of elastic width, kernel, groups, stride and dilation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from supernet.errors import ChoiceError, MixtureError
from supernet.nn.domain import is_int
from supernet.nn.elastic.arguments import of_each_dim, quotients
from supernet.nn.elastic.slicing import first, in_one_pass, narrowed, part, with_weights
from supernet.nn.mutable import Mutable
from supernet.nn.sizes import Sizes, Span
from supernet.nn.value import Value, shown, values_of

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"]

# A, B: the first two dimensions of a weight, one whole and one split among groups: output and input channels, or,
# where transposed, input and output channels. K: the kernel, of any number of dimensions.

Arguments = dict[str, Any]  # of torch's functions
_OF_SLACK = ("kernel_size", "dilation", "padding")


class _Convolution(Mutable, _ConvNd):
    """What all convolutions have in common."""

    plain: type[_ConvNd]  # the layer of torch
    function: Callable[..., Tensor]
    num_dims: int  # of an image, besides its channels
    kernel_transforms: nn.ParameterDict | None

    def _make(self, bias: bool, padding_mode: str, device: Any, dtype: Any, **numbers: Any) -> None:
        """Make the weights at the largest sizes.

        Args:
            bias, padding_mode, device, dtype: As torch's.
            numbers: Name -> number, of torch's other arguments, decided or not.
        """
        widths = {name: numbers[name] for name in ("in_channels", "out_channels", "groups")}
        of_dims = {name: of_each_dim(name, n, self.num_dims) for name, n in numbers.items() if name not in widths}
        sizes = Sizes(**widths, **{name: n for by_name, _ in of_dims.values() for name, n in by_name.items()})
        names = {name: names for name, (_, names) in of_dims.items()}
        largest = {name: sizes.largest(name) for name in widths}
        by_dim = {name: tuple(map(sizes.largest, names[name])) for name in ("kernel_size", "stride", "dilation")}
        _check_parity(sizes, names["kernel_size"])
        padding = _checked_padding(sizes, names)
        in_of_group, out_of_group = (quotients(sizes, name, "groups") for name in ("in_channels", "out_channels"))

        # Torch's constructor makes weights whose groups divide the largest widths, which these need not.
        arguments: Arguments = {"bias": bias, "padding_mode": padding_mode, "padding": padding, **by_dim}
        self.plain.__init__(self, 1, 1, device="meta", **arguments)
        if self.transposed:
            shape_AB = largest["in_channels"], max(out_of_group)
        else:
            shape_AB = largest["out_channels"], max(in_of_group)
        self.weight = nn.Parameter(torch.empty(*shape_AB, *self.kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(largest["out_channels"], device=device, dtype=dtype))
        self.reset_parameters()
        self.in_channels, self.out_channels, self.groups = largest.values()
        self.sizes, self._names, self.kernel_transforms = sizes, names, None

        # One pass mixes sizes that are each a part of the largest: of its channels, which where they are in groups are
        # its first groups; and of its kernel, about the same centre.
        is_grouped = values_of(sizes["groups"]) != [1]
        whole, split = ("in_channels", "out_channels") if self.transposed else ("out_channels", "in_channels")
        kernel = (Span(name, size, True) for name, size in zip(names["kernel_size"], self.kernel_size, strict=True))
        self._spans = Span(whole, shape_AB[0]), None if is_grouped else Span(split, shape_AB[1]), *kernel
        self._whole_of_group = max(in_of_group if self.transposed else out_of_group) if is_grouped else None
        self._slack = [_slack(*(sizes[names[name][dim]] for name in _OF_SLACK)) for dim in range(self.num_dims)]
        self._is_one_pass = (
            (not is_grouped or len(in_of_group) == len(out_of_group) == 1)
            and None not in self._slack
            and not any(sizes.is_chosen(each) for name in {*names} - {"kernel_size", "padding"} for each in names[name])
        )

    def run(self, sizes: Mapping[str, Any], x: Tensor, **others: Any) -> Tensor:
        """Return the convolution of x (N, in_channels, ...), or of one image."""
        weight_ABK, bias = self._sliced(sizes)
        return self._convolution(x, weight_ABK, bias, self._arguments(sizes), **others)

    def run_part(self, sizes: Mapping[str, Any], x: Tensor, **others: Any) -> Tensor:
        """Return the convolution of the first channels of x."""
        return self.run(sizes, narrowed(x, -1 - self.num_dims, sizes["in_channels"]), **others)

    def mixed(self, x: Tensor, **others: Any) -> Tensor:
        """Return the mixture of all sizes: one pass of the mixed weight, where each is a part of the largest."""
        if not self._is_one_pass:
            return super().mixed(x, **others)
        return in_one_pass(lambda x, detached: self._mixed(x, detached, **others), x, self.sizes)

    def _mixed(self, x: Tensor, detached: bool, **others: Any) -> Tensor:
        weight_ABK = self.sizes.entangled(self.weight, *self._spans, detached=detached)
        bias = self.bias
        if bias is not None:
            bias = self.sizes.entangled(bias, Span("out_channels", self.out_channels), detached=detached)
        groups = 1 if self._whole_of_group is None else weight_ABK.shape[0] // self._whole_of_group
        names = {*self._names} - {"kernel_size", "padding"}
        arguments: Arguments = {name: self._each(self.sizes, name) for name in names}
        arguments |= {"groups": groups, "padding": self._padding_of(weight_ABK.shape[2:], arguments["dilation"])}
        in_channels = weight_ABK.shape[0] if self.transposed else weight_ABK.shape[1] * groups
        return self._convolution(narrowed(x, -1 - self.num_dims, in_channels), weight_ABK, bias, arguments, **others)

    def _padding_of(self, kernel: Sequence[int], dilation: Sequence[int]) -> Any:
        """Return the padding about the largest kernel of those that run."""
        if "same" in self._slack:
            return "same"
        return tuple((s + d * (k - 1)) // 2 for s, d, k in zip(self._slack, dilation, kernel, strict=True))

    def _added(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum of two outputs, which may have other channels, but not another size of the image."""
        if a.shape[-self.num_dims :] != b.shape[-self.num_dims :]:
            raise MixtureError(
                f"{type(self).__name__}({self.extra_repr()}) gives images of {tuple(a.shape[-self.num_dims :])} and "
                f"{tuple(b.shape[-self.num_dims :])}, which cannot be mixed; let padding follow from what is chosen, "
                "as in padding=kernel // 2, or use a trainer that samples"
            )
        return super()._added(a, b)

    def _convolution(self, x: Tensor, weight_ABK: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
        if self.padding_mode != "zeros":
            x = F.pad(x, _amounts(arguments, weight_ABK.shape[2:]), self.padding_mode)
            arguments = {**arguments, "padding": 0}
        return self.function(x, weight_ABK, bias, **arguments)

    def _each(self, sizes: Any, name: str) -> tuple[Any, ...]:
        """Return what an argument is in each dimension."""
        return tuple([sizes[each] for each in self._names[name]])

    def _arguments(self, sizes: Mapping[str, Any]) -> Arguments:
        """Return the arguments of torch's function."""
        arguments: Arguments = {name: self._each(sizes, name) for name in self._names if name != "kernel_size"}
        if isinstance(arguments["padding"][0], str):
            arguments["padding"] = arguments["padding"][0]
        return {**arguments, "groups": sizes["groups"]}

    def _sliced(self, sizes: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        in_channels, out_channels, groups = sizes["in_channels"], sizes["out_channels"], sizes["groups"]
        shape_AB = (in_channels, out_channels // groups) if self.transposed else (out_channels, in_channels // groups)
        kernel, bias = self._each(sizes, "kernel_size"), first(self.bias, out_channels)
        if self.kernel_transforms is None:
            return part(self.weight, (*shape_AB, *kernel), 2), bias
        return self._transformed(first(self.weight, *shape_AB), kernel[0]), bias

    def _transformed(self, weight_ABK: Tensor, kernel: int) -> Tensor:
        """Return what the matrices make of the largest kernel: from one size to the next, down to `kernel`."""
        assert self.kernel_transforms is not None
        for name, matrix in self.kernel_transforms.items():
            larger, smaller = map(int, name.split("to"))
            if larger > kernel:
                centre = part(weight_ABK, (*weight_ABK.shape[:2], *[smaller] * self.num_dims), 2)
                weight_ABK = F.linear(centre.flatten(2), matrix).reshape(centre.shape)
        return weight_ABK

    def frozen(self, decisions: Mapping[str, Any]) -> nn.Module:
        """Return torch's layer of the numbers that are decided."""
        sizes = self.sizes.under(decisions)
        weight_ABK, bias = self._sliced(sizes)
        with torch.device("meta"):
            layer = self.plain(
                sizes["in_channels"],
                sizes["out_channels"],
                self._each(sizes, "kernel_size"),
                bias=bias is not None,
                padding_mode=self.padding_mode,
                **self._arguments(sizes),
            )
        return with_weights(layer, self, weight=weight_ABK, bias=bias)

    def extra_repr(self) -> str:
        """Show the numbers, and torch's other arguments where they are not its defaults."""
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        transform = "" if self.kernel_transforms is None else ", kernel_transform=True"
        return f"{self.sizes.extra_repr()}, bias={self.bias is not None}{mode}{transform}"


class _Correlation(_Convolution):
    """A convolution that is not transposed: all three have the same arguments."""

    def __init__(
        self,
        in_channels: Any,
        out_channels: Any,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        kernel_transform: bool = False,
    ) -> None:
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        numbers |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self._make(bias, padding_mode, device, dtype, **numbers)
        if kernel_transform:
            self._make_kernel_transforms(device, dtype)

    def _make_kernel_transforms(self, device: Any, dtype: Any) -> None:
        """Make a matrix for each kernel and the next smaller one, at first the identity."""
        name, *others = dict.fromkeys(self._names["kernel_size"])
        if others:
            raise ChoiceError("kernel_transform is for one kernel_size of all dimensions, not one for each")
        steps = pairwise(sorted(values_of(self.sizes[name]), reverse=True))
        matrices = [(f"{a}to{b}", torch.eye(b**self.num_dims, device=device, dtype=dtype)) for a, b in steps]
        if matrices:  # else the kernel is decided, as where a model is built for an architecture
            # From the largest kernel on, whereas a `ParameterDict` would sort the names of a dict.
            self.kernel_transforms, self._is_one_pass = nn.ParameterDict(OrderedDict(matrices)), False


class Conv1d(_Correlation, nn.Conv1d):
    """`torch.nn.Conv1d` whose numbers may be decided by choices: see `Conv2d`."""

    plain, function, num_dims = nn.Conv1d, staticmethod(F.conv1d), 1


class Conv2d(_Correlation, nn.Conv2d):
    """`torch.nn.Conv2d` whose numbers may be decided by choices: a smaller one has a part of the weight.

    That is the first output channels, the first input channels of a group, and the centre of the kernel. Kernels are
    all odd or all even, so that they have one. A depthwise convolution has one expression for `in_channels`,
    `out_channels` and `groups`.

    Args:
        in_channels: Number of channels of the input. This and the following: a number, `ValueChoice` or expression.
        out_channels: Number of channels of the output.
        kernel_size: Size of the kernel, or one for each dimension.
        stride: Step of the kernel, or one for each dimension. Default: 1.
        padding: What is padded on each side, or one for each dimension, "same" or "valid"; where the kernel is chosen
            "same" or an expression such as `kernel // 2`. Default: 0.
        dilation: Distance of what the kernel takes, or one for each dimension. Default: 1.
        groups: Number of groups into which channels are split. Default: 1.
        bias: Whether a bias is added. Default: it is.
        padding_mode: What is padded, as torch has it. Default: "zeros".
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.
        kernel_transform: Whether a smaller kernel is the centre of the next larger one times a matrix that is learnt,
            at first the identity, as in Once-for-All (arXiv 1908.09791). Default: it is the centre itself.

    Raises:
        ChoiceError: A number is none that torch takes for some values; the groups do not divide the channels; or some
            kernels are even and some odd.

    >>> kernel, width = ValueChoice([3, 5], label="kernel"), ValueChoice([8, 16], label="width")
    >>> conv = supernet.nn.Conv2d(3, width, kernel, padding=kernel // 2)
    >>> freeze(nn.Sequential(conv), {"kernel": 5, "width": 8})[0]
    Conv2d(3, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    """

    plain, function, num_dims = nn.Conv2d, staticmethod(F.conv2d), 2


class Conv3d(_Correlation, nn.Conv3d):
    """`torch.nn.Conv3d` whose numbers may be decided by choices: see `Conv2d`."""

    plain, function, num_dims = nn.Conv3d, staticmethod(F.conv3d), 3


class ConvTranspose2d(_Convolution, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` whose numbers may be decided by choices: a smaller one has a part of the weight.

    That is the first input channels, the first output channels of a group, and the centre of the kernel.

    Args:
        in_channels: Number of channels of the input. This and the following: a number, `ValueChoice` or expression.
        out_channels: Number of channels of the output.
        kernel_size: Size of the kernel, or one for each dimension; all odd or all even.
        stride: Step of the kernel in the output, or one for each dimension. Default: 1.
        padding: What is taken off each side of the output, or one for each dimension. Default: 0.
        output_padding: What is added to one side of it, or one for each dimension. Default: 0.
        groups: Number of groups into which channels are split. Default: 1.
        bias: Whether a bias is added. Default: it is.
        dilation: Distance of what the kernel gives, or one for each dimension. Default: 1.
        padding_mode: "zeros", for torch has no other here. Default: that.
        device: Device of the weights. Default: torch's.
        dtype: Type of the weights. Default: torch's.

    Raises:
        ChoiceError: A number is none that torch takes for some values; the groups do not divide the channels; or some
            kernels are even and some odd.
    """

    plain, function, num_dims = nn.ConvTranspose2d, staticmethod(F.conv_transpose2d), 2

    def __init__(
        self,
        in_channels: Any,
        out_channels: Any,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        numbers |= {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        self._make(bias, padding_mode, device, dtype, **numbers, groups=groups)

    def _convolution(
        self,
        x: Tensor,
        weight_ABK: Tensor,
        bias: Tensor | None,
        arguments: Arguments,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        if output_size is not None:
            stride, padding, dilation = arguments["stride"], arguments["padding"], arguments["dilation"]
            kernel = list(weight_ABK.shape[2:])
            arguments["output_padding"] = self._output_padding(
                x, list(output_size), stride, padding, kernel, self.num_dims, dilation
            )
        return super()._convolution(x, weight_ABK, bias, arguments)


def _slack(kernel: Any, dilation: Any, padding: Any) -> Any:
    """Return by how much the padding is more than kernels need; None where that is not the same for all."""

    def slack(k: int, d: int, p: Any) -> Any:
        return p if p == "same" else (0 if p == "valid" else 2 * p) - d * (k - 1)

    values = values_of(Value.compute(slack, kernel, dilation, padding))
    return values[0] if len(values) == 1 else None


def _amounts(arguments: Arguments, kernel: Sequence[int]) -> list[int]:
    """Return what is padded before and after each dimension, the last first, as torch has it."""
    padding, amounts = arguments["padding"], []
    for dim, (size, dilation) in enumerate(zip(kernel, arguments["dilation"], strict=True)):
        both = dilation * (size - 1) if padding == "same" else 0 if padding == "valid" else 2 * padding[dim]
        amounts.append((both // 2, both - both // 2))
    return [n for pair in reversed(amounts) for n in pair]


def _check_parity(sizes: Sizes, names: Sequence[str]) -> None:
    """Raise `ChoiceError` where some kernels are even and some are odd."""
    for name in names:
        kernels = values_of(sizes[name])
        if len({kernel % 2 for kernel in kernels}) == 2:
            raise ChoiceError(
                f"{name}={shown(sizes[name])} may be {', '.join(map(str, kernels))}, and even and odd kernels have no "
                "common centre; choose all even or all odd"
            )


def _checked_padding(sizes: Sizes, names: Mapping[str, Sequence[str]]) -> Any:
    """Return the largest padding, or a word for it, or raise `ChoiceError` where it is none for some values."""
    words = ("same", "valid") if names["padding"][0] == "padding" and "output_padding" not in names else ()
    for name in (*names["padding"], *names.get("output_padding", ())):
        for value in values_of(sizes[name]):
            if value not in words and not (is_int(value) and value >= 0):
                known = " or ".join(["a whole number from 0 on", *map(repr, words)])
                raise ChoiceError(f"{name} is {known}, but {shown(sizes[name])} may be {value!r}; choose other values")
            if value == "same" and any(values_of(sizes[stride]) != [1] for stride in names["stride"]):
                raise ChoiceError("padding is 'same' only where the stride is 1; give a number, as in kernel // 2")
    values = [values_of(sizes[name]) for name in names["padding"]]
    return values[0][0] if isinstance(values[0][0], str) else tuple(map(max, values))
