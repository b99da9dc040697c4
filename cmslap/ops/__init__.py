"""The operations: one small interface, many backends."""

from cmslap.ops.reference import conv2d_lrelu, lapsrn_level, recursive_embedding, residual_head, tied_conv_transpose2d

__all__ = ["conv2d_lrelu", "lapsrn_level", "recursive_embedding", "residual_head", "tied_conv_transpose2d"]
