"""The operations of a run, by how labels go through them: see `tracing`."""

from __future__ import annotations

__all__: list[str] = []


def operations(names: str) -> frozenset[str]:
    """Return names of ATen's operations."""
    return frozenset(names.split())


MOVES = operations(
    "view _unsafe_view reshape _reshape_alias transpose t permute expand unsqueeze squeeze select slice split "
    "split_with_sizes unbind narrow flip roll repeat index index_select pixel_shuffle pixel_unshuffle diagonal "
    "embedding channel_shuffle native_channel_shuffle movedim swapaxes"
)
RESHAPES = operations("view _unsafe_view reshape _reshape_alias")
JOINS = operations("cat stack")
# Beside what torch tags as pointwise: the shape stays, and each channel of the output is of that of the input. Those
# that write into their input are here without their "_".
SAME_SHAPE = operations(
    "hardswish hardsigmoid hardtanh mish silu gelu elu selu celu leaky_relu rrelu rrelu_with_noise softplus softshrink "
    "hardshrink threshold log_sigmoid_forward tril triu alpha_dropout feature_dropout "
    "alias detach clone contiguous _to_copy to lift_fresh _softmax _safe_softmax _log_softmax native_dropout cumsum "
    "cumprod native_layer_norm native_batch_norm _native_batch_norm_legit native_group_norm _prelu_kernel prelu "
    "_fused_rms_norm dropout bernoulli masked_fill softmax"
)
REDUCTIONS = operations(
    "mean sum amax amin max min var std var_mean logsumexp prod any all argmax argmin linalg_vector_norm norm median"
)
SPATIAL = operations(
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_bilinear2d upsample_linear1d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
    "reflection_pad2d replication_pad1d replication_pad2d grid_sampler_2d"
)
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
# Give tensors that are of no channel: nothing of what they take but its shape.
NEW = operations(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "empty empty_permuted bernoulli_ zero_ fill_ random_ uniform_ normal_ _local_scalar_dense arange"
)
