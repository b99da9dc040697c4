"""The operations: one small interface, many backends."""

from cmslap.ops.arguments import ArgumentError
from cmslap.ops.dispatch import BackendError, is_fused, missing_arithmetic, use_backend
from cmslap.ops.explain import Explanation, explain
from cmslap.ops.interface import (
    conv2d_lrelu,
    dense_network,
    dense_recursion,
    lapsrn_last_level,
    lapsrn_level,
    recursive_embedding,
    residual_head,
    tied_conv_transpose2d,
)

__all__ = [
    "ArgumentError",
    "BackendError",
    "Explanation",
    "conv2d_lrelu",
    "dense_network",
    "dense_recursion",
    "explain",
    "is_fused",
    "lapsrn_last_level",
    "lapsrn_level",
    "missing_arithmetic",
    "recursive_embedding",
    "residual_head",
    "tied_conv_transpose2d",
    "use_backend",
]
